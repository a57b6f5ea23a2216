"""A small model, its counts and a folder of images, and a way to run commands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from imbalance_perturb.cli.app import main

#: Options that make the small model's input: 32 x 32, quick.
SMALL = ("--resize", "32", "--crop", "32")


class Finished(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


class Workplace(NamedTuple):
    """A folder with ``model.pth`` (shufflenet, 4 classes), ``counts.json`` and ``images/`` (9 of them)."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> Finished:
        """Run ``imbperturb`` with these arguments in this process, in the folder."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = self.capture.readouterr()
        return Finished(int(ended.value.code or 0), out, err)

    def fails(self, *arguments: str, code: int = 1) -> str:
        """Run a command that must fail: its one-line message, nothing on stdout, nothing written."""
        before = sorted(self.folder.rglob("*"))
        finished = self.run(*arguments)
        assert finished.code == code, finished
        assert finished.out == ""
        *_, last = finished.err.splitlines()
        assert last.startswith("imbperturb: error: ")
        assert "Traceback" not in finished.err
        assert sorted(self.folder.rglob("*")) == before
        return last


@pytest.fixture(scope="session")
def checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = get_model("shufflenet_v2_x0_5", weights=None, num_classes=4).eval()
    # An untrained network answers every image alike: centre and stretch the logits, so that images differ.
    with torch.no_grad():
        logits = model(torch.randn(64, 3, 32, 32))
        centred = logits - logits.mean(0)
        model.fc.weight /= centred.std()
        model.fc.bias.copy_((model.fc.bias - logits.mean(0)) / centred.std())
    return model.state_dict()


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: dict[str, torch.Tensor],
) -> Workplace:
    torch.save(checkpoint, tmp_path / "model.pth")
    (tmp_path / "counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 3}))
    rng = np.random.default_rng(0)
    for index in range(9):
        path = tmp_path / "images" / f"{'sub/' if index % 2 else ''}{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, capsys)

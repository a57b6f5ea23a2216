"""Files that are replaced while a command is at work: what was checked is what is loaded, and what the hash is of."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.inference import model_loading
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.formats import checkpoint, exported_program, snapshot, torchscript
from tests.biased import PLAIN, Biased, write_biased
from tests.functional.conftest import Workplace

SHAPE = (3, 32, 32)


class Constant(nn.Module):
    """The same logits for every image, with a gradient."""

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(10 * torch.eye(3)[largest])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * 1e-3 + self.bias


def network(largest: int) -> nn.Module:
    """A network of torchvision's whose logits are largest for one class, whatever the image."""
    from torchvision.models import squeezenet1_1

    model = squeezenet1_1(num_classes=3).eval()
    with torch.no_grad():
        model.classifier[1].weight.mul_(1e-3)
        model.classifier[1].bias.copy_(10 * torch.eye(3)[largest] + 1)
    return model


def saved(kind: str, largest: int) -> bytes:
    stream = io.BytesIO()
    match kind:
        case "checkpoint" | "legacy":
            torch.save(network(largest).state_dict(), stream, _use_new_zipfile_serialization=kind == "checkpoint")
        case "safetensors":
            return save(dict(network(largest).state_dict()))
        case "torchscript":
            torch.jit.save(torch.jit.script(Constant(largest)), stream)
        case "export":
            program = torch.export.export(Constant(largest), (torch.randn(2, *SHAPE),))
            torch.export.save(program, stream)
    return stream.getvalue()


def rewrite_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def put_another_there(path: Path, content: bytes) -> None:
    path.with_name("other").write_bytes(content)
    path.with_name("other").replace(path)


def remove(path: Path, content: bytes) -> None:
    path.unlink()


@pytest.mark.parametrize("replace", [rewrite_in_place, put_another_there, remove])
@pytest.mark.parametrize(
    ("kind", "module", "last_check"),
    [
        ("checkpoint", checkpoint, "check_checkpoint"),
        ("legacy", checkpoint, "check_checkpoint"),
        ("safetensors", snapshot, "detect_format"),
        ("torchscript", torchscript, "check_torchscript"),
        ("export", exported_program, "check_export"),
    ],
)
def test_a_file_replaced_after_its_check_is_not_loaded(
    kind: str,
    module: Any,
    last_check: str,
    replace: Callable[[Path, bytes], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever can write the file gets nothing past the checks by changing it after them: the checked bytes load."""
    path, checked, other = tmp_path / "m.pt", saved(kind, 1), saved(kind, 2)
    path.write_bytes(checked)
    check, replaced = getattr(module, last_check), []

    def check_and_replace(*arguments: Any) -> Any:
        found = check(*arguments)
        if not replaced:
            replace(path, other)
            replaced.append(True)
        return found

    monkeypatch.setattr(module, last_check, check_and_replace)
    loaded = load_classifier(path, input_shape=SHAPE)
    assert replaced
    assert not path.exists() or path.read_bytes() == other
    assert loaded(torch.randn(2, *SHAPE)).argmax(1).tolist() == [1, 1]
    assert loaded.info.sha256 == sha256(checked).hexdigest()


@pytest.mark.parametrize("kind", ["checkpoint", "legacy", "safetensors", "torchscript", "export"])
def test_a_model_knows_its_hash(kind: str, tmp_path: Path) -> None:
    """The hash is that of the file, as other programs compute it, in every format."""
    path = tmp_path / "m.pt"
    path.write_bytes(saved(kind, 1))
    assert load_classifier(path, input_shape=SHAPE).info.sha256 == sha256(path.read_bytes()).hexdigest()


def test_an_archive_of_something_else_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no model is refused by its beginning and its directory, however large it is."""
    path = tmp_path / "images.zip"
    with path.open("wb") as file:
        file.write(b"\x1f\x8b")
        file.truncate(1 << 40)  # a hole: takes no space, yet a terabyte to read
    assert path.stat().st_size == 1 << 40
    with pytest.raises(ModelFileError, match="gzip"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("command", "out", "counts"),
    [
        ("predict model.pt counts.json val", "predictions.run.json", "counts"),
        ("tune-eps model.pt counts.json --val val --repeats 2", "tune-eps.json", "counts"),
        ("compare model.pt counts.json --val val --repeats 2 --methods none,perturb,la", "compare.json", "counts_file"),
    ],
)
def test_hashes_are_of_what_was_loaded(
    command: str,
    out: str,
    counts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Model and counts that are replaced during a run do not change what it says that it was made with."""
    write_biased(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {name: sha256(Path(name).read_bytes()).hexdigest() for name in ("model.pt", "counts.json")}
    probe = model_loading.probe_classifier

    def probe_and_replace(*arguments: Any, **more: Any) -> Any:
        torch.jit.script(Biased().eval()).save("model.pt", _extra_files={"other": b"bytes"})
        Path("counts.json").write_text(json.dumps({"common": 901, "rare": 30}))
        return probe(*arguments, **more)

    monkeypatch.setattr(model_loading, "probe_classifier", probe_and_replace)
    finished = Workplace(tmp_path, capsys).run(*command.split(), *PLAIN)
    assert finished.code == 0, finished.err
    data = json.loads(Path(out).read_text())
    assert data["model"]["sha256"] == before["model.pt"] != sha256(Path("model.pt").read_bytes()).hexdigest()
    assert data[counts]["sha256"] == before["counts.json"] != sha256(Path("counts.json").read_bytes()).hexdigest()


def test_labels_and_correction_have_the_same_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The counts are read once: labels found by their names cannot meet a model corrected by others."""
    write_biased(tmp_path)
    monkeypatch.chdir(tmp_path)
    read, times = model_loading.read_counts_file, []

    def read_and_replace(path: str) -> Any:
        found = read(path)
        times.append(path)
        Path("counts.json").write_text(json.dumps({"rare": 30, "common": 900}))
        return found

    monkeypatch.setattr(model_loading, "read_counts_file", read_and_replace)
    for command in ("tune-eps", "compare"):
        Path("counts.json").write_text(json.dumps({"common": 900, "rare": 30}))
        finished = Workplace(tmp_path, capsys).run(
            command, "model.pt", "counts.json", "--val", "val", "--repeats", "2", *PLAIN
        )
        assert finished.code == 0, finished.err
    assert len(times) == 2

"""The optimiser is an extra: whatever it raises, and whatever batches a file takes, the network answers as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.inference.acceleration import compilation, convolution, optimisation
from imbalance_perturb.inference.acceleration.optimisation import LowPrecision, compiled, lower, optimise
from imbalance_perturb.inference.inspection import inspect_model
from imbalance_perturb.inference.pipeline import OPTIMISED_FROM, load_pipeline, make_predictor

SHAPE = (3, 16, 16)


class Small(nn.Module):
    """A convolution, batch norm and a head, with a view to a shape in which an exported batch is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)).view(x.shape[0], 8))


def small() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    nn.init.uniform_(network.norm.running_var, 0.5, 1.5)
    return network.eval().requires_grad_(False)


def exported(path: Path, images: int, dim: Any = None) -> None:
    shapes = ({0: dim},) if dim is not None else None
    torch.export.save(torch.export.export(small(), (torch.randn(images, *SHAPE),), dynamic_shapes=shapes), path)


def frozen(path: Path) -> None:
    torch.jit.freeze(torch.jit.trace(small(), torch.randn(2, *SHAPE))).save(str(path))


FILES: dict[str, Callable[[Path], None]] = {
    "export of 1": lambda path: exported(path, 1),
    "export of 3": lambda path: exported(path, 3),
    "export of 8": lambda path: exported(path, 8),
    "export of 3 to 5": lambda path: exported(path, 4, torch.export.Dim("batch", min=3, max=5)),
    "export of 6 and more": lambda path: exported(path, 7, torch.export.Dim("batch", min=6)),
    "export of even batches": lambda path: exported(path, 4, 2 * torch.export.Dim("half", min=1, max=32)),
    "frozen": frozen,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Counts and seven images of 16 x 16 pixels."""
    (tmp_path / "counts.json").write_text('{"a": 90, "b": 9, "c": 3, "d": 2}')
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(7):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def settings(place: Path, **run: Any) -> Settings:
    return Settings(
        model=ModelSettings(model=str(place / "m.pt"), counts=str(place / "counts.json")),
        preprocess=PreprocessSettings(preset="none", resize=(16, 16), crop="none"),
        run=RunSettings(**{"device": "cpu", "workers": 0, "precision": "fp32", **run}),
    )


@pytest.mark.parametrize("file", FILES)
def test_files_with_limits_are_optimised_within_them(file: str, place: Path) -> None:
    """Whatever batches a file takes, it is rewritten, lowered and compiled with one of those, and answers rightly."""
    FILES[file](place / "m.pt")
    network = small()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda network, **options: network)
        patch.setattr(compilation, "_time", lambda call, x: 1.0)
        made = load_pipeline(settings(place, precision="bf16", compile=True, batch_size=4), find_images(place))
    assert "fused convolutions" in made.optimisation.path
    assert not any("not compiled" in note for note in made.execution.notes)
    assert made.low is not None
    for n in (1, 2, 5, 7):
        x = torch.rand(n, *SHAPE)
        torch.testing.assert_close(made.debiased.predict_plain(x), network(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.low.predict_plain(x), network(x), rtol=0.05, atol=0.05)
    predicted = make_predictor(load_pipeline(settings(place), find_images(place))).predict(x)
    torch.testing.assert_close(predicted.base, network(x), rtol=1e-4, atol=1e-5)
    assert "fused convolutions" in inspect_model(settings(place)).optimisation.path


def failing(*_: Any, **__: Any) -> Any:
    raise KeyError("boom")


STAGES = (
    "convert", "fuse", "_convolves", "_rewrite", "Rewriter", "ChannelsLast.__init__", "_output", "_difference",
    "same_gradient",
)  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_stage_raises_the_network_runs(stage: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage of the optimiser raises what nobody expects: the file runs, and what happened is said."""
    FILES["export of 1"](place / "m.pt")
    monkeypatch.setattr(f"{optimisation.__name__}.{stage}", failing)
    found = inspect_model(settings(place)).optimisation
    assert "not rewritten: 'boom'" in found.path
    made = load_pipeline(settings(place), find_images(place), n_images=OPTIMISED_FROM)
    assert made.optimisation.path == found.path
    x = torch.rand(5, *SHAPE)
    torch.testing.assert_close(make_predictor(made).predict(x).base, small()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_what_ends_a_run_ends_the_optimiser(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that ran out, and Ctrl-C, are no reason to go on."""

    def end(*_: Any) -> Any:
        raise error

    for stage in ("fuse", "_output"):
        with monkeypatch.context() as patch:
            patch.setattr(optimisation, stage, end)
            with pytest.raises(type(error)):
                optimise(small(), torch.rand(2, *SHAPE))


def test_low_precision_without_the_rewriter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the low network cannot be rewritten autocast does, and it is said."""
    x = torch.rand(2, *SHAPE)
    network, _ = optimise(small(), x)
    monkeypatch.setattr(optimisation, "Rewriter", failing)
    monkeypatch.setattr(convolution, "available", lambda dtype: True)
    low, done = lower(network, x, torch.bfloat16)
    assert done.path == "bfloat16 by autocast (not rewritten: 'boom')"
    torch.testing.assert_close(low(x), network(x), rtol=0.05, atol=0.05)


def test_a_network_that_fails_in_low_precision_runs_in_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises there, `auto` is fp32 and says why; asked for outright it is an error of one line."""
    FILES["frozen"](place / "m.pt")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(LowPrecision, "forward", failing)
    images = find_images(place)
    made = load_pipeline(settings(place, precision="auto"), images, n_images=1000)
    assert made.execution.low_dtype is None
    assert made.execution.notes == ("auto: the model fails in bf16 ('boom')",)
    with pytest.raises(SettingsError, match=r"fails in it \('boom'\)"):
        load_pipeline(settings(place, precision="bf16"), images)


def test_a_compiler_that_cannot_even_begin_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile refuses some Pythons and systems before it has seen a network."""
    network, _ = optimise(small(), torch.rand(2, *SHAPE))
    monkeypatch.setattr(torch, "compile", failing)
    found, reason = compiled(network, torch.rand(2, *SHAPE))
    assert found is network
    assert reason == "not compiled: 'boom'"

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.errors import OutputFileError, SettingsError
from imbalance_perturb.inference.input_stream import iter_inputs
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.method.perturbation import LossSpec
from imbalance_perturb.selection import sweep as sweep_module
from imbalance_perturb.selection.sweep import MINUS_EPS, RANDOM_SIGN, Variant, run_sweep

CE, MSE = LossSpec("cross-entropy", 1.0), LossSpec("mse", 1.0)


class Pooled(nn.Module):
    """A smooth network of any input size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(x)).mean(dim=(2, 3)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    torch.jit.script(Pooled().eval()).save(tmp_path / "model.pt")
    (tmp_path / "counts.json").write_text('{"a": 90, "b": 9, "c": 3}')
    rng = np.random.default_rng(0)
    for index in range(7):
        size = (12, 10, 3) if index % 3 else (9, 11, 3)
        path = tmp_path / "images" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    (tmp_path / "images" / "3_broken.png").write_text("broken")
    return tmp_path


def prepared(place: Path, **debias: object) -> tuple[Pipeline, ImageList]:
    images = find_images(place / "images")
    settings = Settings(
        model=ModelSettings(model=str(place / "model.pt"), counts=str(place / "counts.json")),
        preprocess=PreprocessSettings(preset="none"),
        debias=DebiasSettings(**debias),  # type: ignore[arg-type]
        run=RunSettings(device="cpu", batch_size=4, workers=0),
    )
    return load_pipeline(settings, images), images


def test_a_sweep_gives_the_logits_of_single_runs(place: Path) -> None:
    """Every variant's logits are those of the module with that loss, T and eps, image by image."""
    pipeline, images = prepared(place)
    variants = [Variant(loss_spec, eps) for loss_spec in (CE, MSE) for eps in (0.0, 0.01, 0.3)]
    sweep = run_sweep(pipeline, images, variants)
    assert sweep.names == [name for name in images.names if name != "3_broken.png"]
    assert sweep.errors == {"3_broken.png": "not an image in a known format"}
    alone = pipeline.execution.__class__(torch.device("cpu"), 1, 0, "fp32", False)
    for variant in variants:
        debias = {"eps": variant.eps, "loss": variant.loss_spec.loss, "temperature": variant.loss_spec.temperature}
        single, _ = prepared(place, **debias)
        inputs = {
            batch.names[position]: x
            for batch in iter_inputs(images, single.preprocessing, alone)
            for group in batch.groups
            for position, x in zip(group.positions, group.x, strict=True)
        }
        expected = [single.debiased.predict_both(inputs[name][None]) for name in sweep.names]
        torch.testing.assert_close(sweep.base, torch.cat([base for base, _ in expected]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            sweep.logits[variant], torch.cat([logits for _, logits in expected]), rtol=1e-4, atol=1e-5
        )


def test_passes_are_one_gradient_and_one_for_each_eps(place: Path) -> None:
    """K values of eps cost 2 + K passes a batch: one forward, one backward, K final; eps 0 costs none."""
    (place / "images" / "3_broken.png").unlink()
    for index in (0, 3, 6):
        (place / "images" / f"{index}.png").unlink()
    pipeline, images = prepared(place)
    grid = [Variant(CE, eps) for eps in (0.0, 0.001, 0.003, 0.01, 0.03)]
    assert run_sweep(pipeline, images, grid).passes == {"forward": 1, "backward": 1, "final": 4}
    more = [*grid, *(Variant(MSE, eps) for eps in (0.001, 0.01))]
    assert run_sweep(pipeline, images, more).passes == {"forward": 1, "backward": 2, "final": 6}


def test_controls_move_the_other_way_and_at_random(place: Path) -> None:
    """minus-eps moves against the step, random-sign by coin tosses that depend on the image's name alone."""
    pipeline, images = prepared(place)
    plus, minus, coin = (Variant(CE, 0.05, d) for d in ("perturb", MINUS_EPS, RANDOM_SIGN))
    sweep = run_sweep(pipeline, images, [plus, minus, coin])
    forward, backward = sweep.logits[plus] - sweep.base, sweep.logits[minus] - sweep.base
    # Nearly linear at this size: the two moves are opposite, and a random one is much smaller.
    torch.testing.assert_close(forward, -backward, rtol=0.3, atol=0.02)
    assert (sweep.logits[coin] - sweep.base).norm() < 0.3 * forward.norm()
    again = run_sweep(pipeline, images, [coin])
    torch.testing.assert_close(again.logits[coin], sweep.logits[coin], rtol=1e-4, atol=1e-5)
    assert again.passes["backward"] == 0


def test_logits_that_fill_the_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in a temporary file; a full disk has its own line."""
    pipeline, images = prepared(place)
    grid = [Variant(CE, eps) for eps in (0.0, 0.05)]
    sweep = run_sweep(pipeline, images, grid)
    monkeypatch.setattr(sweep_module, "_MOST_IN_MEMORY", 0)
    on_disk = run_sweep(pipeline, images, grid)
    assert on_disk.names == sweep.names
    for variant in grid:
        assert torch.equal(on_disk.logits[variant], sweep.logits[variant])
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "wb", buffering=0))  # noqa: PTH123, SIM115
    with pytest.raises(OutputFileError, match=r"has no room for the logits .* set TMPDIR"):
        run_sweep(pipeline, images, grid)


def test_eps_in_pixels_is_that_of_prediction(place: Path) -> None:
    """--eps-space pixel scales the step by each channel's std, as in a prediction."""
    pipeline, images = prepared(place, eps_space="pixel")
    assert torch.equal(
        run_sweep(pipeline, images, [Variant(CE, 0.01)]).logits[Variant(CE, 0.01)],
        run_sweep(prepared(place)[0], images, [Variant(CE, 0.01)]).logits[Variant(CE, 0.01)],
    )


def test_several_steps_cannot_share_a_gradient(place: Path) -> None:
    """steps above 1 is refused: the second step needs a gradient of its own for each eps."""
    pipeline, images = prepared(place, steps=2)
    with pytest.raises(SettingsError, match="a sweep shares one gradient"):
        run_sweep(pipeline, images, [Variant(CE, 0.1)])

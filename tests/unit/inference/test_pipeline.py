from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.inference import pipeline as pipeline_module
from imbalance_perturb.inference.pipeline import load_pipeline, make_predictor


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A state_dict, its counts and five images of 32 x 32 pixels."""
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "counts.json").write_text('{"a": 90, "b": 9, "c": 3}')
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def settings(place: Path, **run: object) -> tuple[Settings, ImageList]:
    made = Settings(
        model=ModelSettings(model=str(place / "model.pth"), counts=str(place / "counts.json")),
        preprocess=PreprocessSettings(preset="none"),
        run=RunSettings(device="cpu", workers=0, **run),  # type: ignore[arg-type]
    )
    return made, find_images(place / "images")


def test_the_batch_follows_from_the_size_of_the_images(place: Path) -> None:
    """In a short run the batch is the usual one for such images; a size that is asked for is kept."""
    assert load_pipeline(*settings(place)).execution.batch_size == 64
    assert load_pipeline(*settings(place, batch_size=3)).execution.batch_size == 3


def test_the_batch_of_a_long_run_is_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model itself is timed on inputs of the right shape, but not where the run must repeat bit for bit."""
    shapes: list[torch.Size] = []

    def measure(predict: object, make_batch: object, sizes: object) -> int:
        assert callable(predict)
        assert callable(make_batch)
        shapes.extend(logits.shape for logits in predict(make_batch(2)))
        return 16

    monkeypatch.setattr(pipeline_module, "MEASURED_FROM", 5)
    monkeypatch.setattr(pipeline_module, "measure_batch_size", measure)
    assert load_pipeline(*settings(place)).execution.batch_size == 16
    assert shapes == [(2, 3), (2, 3)]
    assert load_pipeline(*settings(place, deterministic=True)).execution.batch_size == 64


def test_compiling_replaces_the_network_or_says_why_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both precisions are compiled with batches of the run's size; a reason against it stands in the notes once."""
    seen: list[Tensor] = []

    def refuse(network: nn.Module, x: Tensor) -> tuple[nn.Module, str | None]:
        seen.append(x)
        return network, "not compiled: no compiler"

    monkeypatch.setattr(pipeline_module, "compiled", refuse)
    made = load_pipeline(*settings(place, compile=True, precision="bf16", batch_size=4))
    assert [x.shape for x in seen] == [(4, 3, 32, 32)] * 2
    assert made.execution.notes[-1] == "not compiled: no compiler"
    assert made.execution.notes.count("not compiled: no compiler") == 1
    assert "not compiled" in made.execution.describe_precision()

    class Doubled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.network(x)

    plain = load_pipeline(*settings(place, batch_size=4))
    monkeypatch.setattr(pipeline_module, "compiled", lambda network, x: (Doubled(network), None))
    made = load_pipeline(*settings(place, compile=True, batch_size=4))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(made.debiased.predict_plain(x), 2 * plain.debiased.predict_plain(x))


def test_the_predictor_takes_the_executions_batches(place: Path) -> None:
    """Whatever comes at once, no more than a batch goes through the network."""
    made = load_pipeline(*settings(place, batch_size=2, precision="fp32"))
    sizes: list[int] = []
    made.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = make_predictor(made).predict(torch.rand(5, 3, 32, 32))
    assert len(found.logits) == 5
    assert max(sizes) == 2


def test_few_images_take_what_few_images_are_worth(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short list is not worth a rewritten network, nor one image a batch of four; a part of a long list is."""
    sizes: list[int] = []
    monkeypatch.setattr(pipeline_module, "compiled", lambda network, x: (network, None))

    def run(n_images: int | None, **run: object) -> str:
        asked, images = settings(place, **run)
        asked = replace(asked, preprocess=PreprocessSettings(preset="none", resize=(32, 32), crop="none"))
        made = load_pipeline(asked, images, n_images=n_images)
        handle = made.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        sizes.clear()
        make_predictor(made).predict(torch.randn(1, *made.input_shape))
        handle.remove()
        return made.optimisation.path

    assert run(1) == "as the file has it (few images)"
    assert set(sizes) == {1}
    assert run(None) == "as the file has it (few images)"  # the folder's five
    assert set(sizes) == {4}
    assert "batch norm folded" in run(16)
    assert set(sizes) == {4}
    for asked in ({"compile": True}, {"precision": "bf16"}):
        assert "batch norm folded" in run(5, **asked)

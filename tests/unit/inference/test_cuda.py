"""What has to hold on a GPU. Run where there is one; skipped, and counted, elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from imbalance_perturb.config.settings import PreprocessSettings, RunSettings
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.data.preprocessing import select_preprocessing
from imbalance_perturb.inference.acceleration.optimisation import compiled, lower, optimise
from imbalance_perturb.inference.batching import BatchLimit
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import fast_dtype, select_execution
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.device_errors import is_out_of_memory
from tests.unit.inference.acceleration.test_optimisation import trained_like

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

COUNTS = ClassCounts(("a", "b", "c", "d", "e"), (900, 300, 90, 30, 10))


@pytest.fixture
def network() -> nn.Module:
    return trained_like("resnet18")


def test_the_gpu_gives_the_labels_of_the_cpu(network: nn.Module) -> None:
    """Base and corrected logits in float32 agree with the CPU's to rounding: TF32 is off."""
    x = torch.randn(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = PerturbedClassifier(copy.deepcopy(network), COUNTS, eps=0.001).predict_both(x)
    on_gpu, done = optimise(network.cuda(), x[:2].cuda())
    assert "batch norm folded" in done.path
    found = PerturbedClassifier(on_gpu, COUNTS, eps=0.001).predict_both(x.cuda())
    scale = float(expected[0].abs().max())
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-3, atol=1e-4 * scale)
    # The step's signs may differ where the gradient is all but 0.
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-2, atol=1e-2 * scale)


def test_auto_keeps_the_labels(network: nn.Module) -> None:
    """Low precision with close calls in float32 gives the labels of float32, and says how many it sampled."""
    x = torch.randn(512, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    full, _ = optimise(network.cuda(), x[:2])
    low, done = lower(full, x[:2], fast_dtype(x.device) or torch.float16)
    assert "autocast" in done.path
    reference = PerturbedClassifier(full, COUNTS, eps=0.001)
    predictor = Predictor(reference, PerturbedClassifier(low, COUNTS, eps=0.001), precision="auto")
    predictor.calibrate(x[:64].split(16))
    labels = torch.cat([predictor.predict(part).logits.argmax(1) for part in x.split(128)])
    assert (labels == reference(x).argmax(1)).float().mean() >= 0.995


def test_a_folder_has_the_labels_of_the_cpu(network: nn.Module, tmp_path: Path) -> None:
    """Decoded beside the GPU, pinned and copied: every row in its place, a broken file's among them."""
    rng = np.random.default_rng(0)
    for index in range(300):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{index:03d}.png")
    (tmp_path / "100x.png").write_text("broken")
    images = find_images(tmp_path)
    preprocessing = select_preprocessing(PreprocessSettings(resize=64, crop="none"))

    def labels(device: str) -> list[tuple[str, str | None, str | None]]:
        execution = select_execution(
            RunSettings(device=device, workers=2, batch_size=16, precision="fp32"), len(images)
        )
        assert device == "cpu" or not execution.takes_turns
        debiased = PerturbedClassifier(copy.deepcopy(network).to(device), COUNTS, eps=0.001)
        batches = iter_predictions(Predictor(debiased), images, preprocessing, execution)
        return [(row.image, row.pred, row.error) for rows in batches for row in rows]

    found, expected = labels("cuda"), labels("cpu")
    assert [(image, error) for image, _, error in found] == [(image, error) for image, _, error in expected]
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= 299


def test_auto_has_a_low_precision_on_a_gpu() -> None:
    """Every CUDA GPU has one of the two 16-bit formats."""
    execution = select_execution(RunSettings(device="cuda"), 10_000)
    assert (execution.precision, execution.low_name) in (("auto", "bf16"), ("auto", "fp16"))
    assert execution.batch_size == 128


@pytest.mark.filterwarnings("ignore")
def test_compiling_gives_the_same_or_is_refused(network: nn.Module) -> None:
    """Compiled passes answer as eager ones; where they fail or are slower, eager stays with the reason."""
    x = torch.randn(8, 3, 96, 96).cuda()
    full, _ = optimise(network.cuda(), x[:2])
    with torch.no_grad():
        expected = full(x)
    found, reason = compiled(full, x)
    assert reason is None or reason.startswith("not compiled: ")
    with torch.no_grad():
        torch.testing.assert_close(found(x), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_the_gpus_memory_running_out_halves_the_batch() -> None:
    """An allocation larger than the GPU is told apart, and the parts that fit give all results."""
    total = torch.cuda.get_device_properties(0).total_memory

    def compute(part: slice) -> list[int]:
        size = part.stop - part.start
        torch.empty(size * (total // 3), dtype=torch.uint8, device="cuda")
        return list(range(part.start, part.stop))

    with pytest.raises(RuntimeError) as raised:
        compute(slice(0, 4))
    assert is_out_of_memory(raised.value)
    assert BatchLimit().run(compute, 6) == list(range(6))

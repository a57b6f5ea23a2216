from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_perturb import ClassCounts, PerturbedClassifier
from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.preprocessing import Preprocessing, select_preprocessing
from imbalance_perturb.inference import engine
from imbalance_perturb.inference.calibration import Sampled
from imbalance_perturb.inference.engine import _in_groups, iter_predictions, sample_names
from imbalance_perturb.inference.execution import Execution
from imbalance_perturb.inference.input_stream import iter_inputs
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.rows import PredictionRow
from imbalance_perturb.predictions.run_state import Tally

COUNTS = ClassCounts(("dark", "middle", "bright"), (900, 30, 3))


class Brightness(nn.Module):
    """Three classes by mean brightness: what an image's prediction must be is known from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-3.0], [0.1], [3.0]]))
        self.bias = nn.Parameter(torch.tensor([0.8, 0.6, -1.8]))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3))[:, None] @ self.weight.T + self.bias


class Counting(Brightness):
    """Counts the images that go through it."""

    images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return super().forward(x)


class NanOnBlack(Brightness):
    """Fails on exactly black images as a network fails on what it has not learned: with NaN."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return super().forward(x * (mean / mean))


def execution(batch_size: int = 4, workers: int = 0) -> Execution:
    return Execution(torch.device("cpu"), batch_size, workers, "fp32", False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose brightness is in the name, broken files at several places, and two sizes."""
    rng = np.random.default_rng(0)
    for index in range(23):
        level = int(rng.integers(1, 256))
        size = (8, 8) if index % 3 else (5, 9)
        Image.new("RGB", size, (level, level, level)).save(tmp_path / f"{index:02d}_{level:03d}.png")
    for name in ("00_0.png", "07_x.png", "22_~.png"):
        (tmp_path / name).write_text("broken")
    return tmp_path


def preset_none() -> Preprocessing:
    return select_preprocessing(PreprocessSettings(preset="none"))


def predict(
    images: ImageList, *, model: nn.Module | None = None, eps: float = 0.05, batch_size: int = 4, workers: int = 0
) -> list[PredictionRow]:
    debiased = PerturbedClassifier(model or Brightness(), COUNTS, eps=eps)
    batches = iter_predictions(Predictor(debiased), images, preset_none(), execution(batch_size, workers))
    return [row for rows in batches for row in rows]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_image_has_its_own_prediction(folder: Path, batch_size: int, workers: int) -> None:
    """One row for each file in sorted order, each with the prediction of that image's own pixels."""
    images = find_images(folder)
    rows = predict(images, batch_size=batch_size, workers=workers)
    assert [row.image for row in rows] == list(images.names) == sorted(path.name for path in folder.iterdir())
    model = Brightness()
    for row in rows:
        if not row.image[3].isdigit() or row.image == "00_0.png":
            assert row.error == "not an image in a known format"
            assert (row.pred, row.base_pred, row.confidence, row.changed) == (None, None, None, False)
            continue
        pixel = int(row.image[3:6]) / 255
        # p* is 0 for the largest class and grows to the smallest, so every pixel moves up by eps.
        base, moved = (model(torch.full((1, 3, 1, 1), v)).softmax(1)[0] for v in (pixel, pixel + 0.05))
        assert row.base_pred == COUNTS.names[int(base.argmax())]
        assert row.pred == COUNTS.names[int(moved.argmax())]
        assert row.confidence == pytest.approx(moved.max().item(), abs=1e-5)
        assert row.base_confidence == pytest.approx(base.max().item(), abs=1e-5)
    assert 0 < sum(row.changed for row in rows) < len(rows)


def test_eps_zero_changes_nothing(folder: Path) -> None:
    """With eps 0 every row's prediction and confidence is the base one, bit for bit."""
    rows = predict(find_images(folder), eps=0.0)
    assert all(row.pred == row.base_pred and row.confidence == row.base_confidence for row in rows)


def test_an_image_that_makes_nan_fails_alone(tmp_path: Path) -> None:
    """An image on which the model gives NaN has its own error; its batch mates are predicted as alone."""
    for index, level in enumerate([200, 0, 90, 0, 30]):
        Image.new("RGB", (4, 4), (level,) * 3).save(tmp_path / f"{index}.png")
    images = find_images(tmp_path)
    rows = predict(images, model=NanOnBlack(), batch_size=8)
    assert [row.error is None for row in rows] == [True, False, True, False, True]
    assert "not finite" in str(rows[1].error)
    plain = predict(images, batch_size=8)
    assert [row.pred for row in rows if row.error is None] == [plain[index].pred for index in (0, 2, 4)]
    # Without a gradient pass the output itself is looked at.
    assert "output is not finite" in str(predict(images, model=NanOnBlack(), eps=0.0)[1].error)


def test_probabilities_are_those_of_all_classes(folder: Path) -> None:
    """With probabilities=True rows carry C of each kind that sum to 1 and agree with the confidences."""
    debiased = PerturbedClassifier(Brightness(), COUNTS, eps=0.05)
    images = find_images(folder)
    rows = [
        row
        for rows in iter_predictions(Predictor(debiased), images, preset_none(), execution(), probabilities=True)
        for row in rows
    ]
    for row in rows:
        if row.error is None:
            assert sum(row.probs) == pytest.approx(1)
            assert max(row.probs) == row.confidence
            assert row.base_probs[COUNTS.names.index(str(row.base_pred))] == row.base_confidence
        else:
            assert row.probs == row.base_probs == ()


def test_calibration_images_are_from_the_whole_folder(folder: Path) -> None:
    """The sample is random over all images, in an order of its own, the same every time, and of a shard the list's."""
    images = find_images(folder)
    found = sample_names(images)
    assert sorted(found) == list(images.names)  # of so few all, at most
    assert found == sample_names(images) != list(images.names)
    shard = dataclasses.replace(images, names=images.names[:5], whole=images.names)
    assert sample_names(shard) == found


class Calibrated(Predictor):
    """Keeps what it is calibrated on."""

    seen: ClassVar[list[Sampled]] = []

    def calibrate(self, batches: Iterable[Sampled], *, ahead: int) -> None:
        self.seen[:] = []

        def watched() -> Iterator[Sampled]:
            for batch in batches:
                self.seen.append(batch)
                yield batch

        super().calibrate(watched(), ahead=ahead)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_predictor_is_calibrated_on_the_sample(folder: Path, workers: int) -> None:
    """On usable images of the sample and no other, until it is settled; then come all images from the first on."""
    images = find_images(folder)
    debiased = PerturbedClassifier(Brightness(), COUNTS, eps=0.05)
    predictor = Calibrated(debiased, debiased, precision="auto")
    settings = execution(workers=workers, batch_size=4)
    rows = [row for part in iter_predictions(predictor, images, preset_none(), settings) for row in part]
    assert [row.image for row in rows] == list(images.names)
    names = [name for batch in predictor.seen for name in batch.names]
    usable = [row.image for row in rows if row.error is None]
    drawn = [name for name in sample_names(images) if name in usable]
    assert 16 <= len(names) < len(drawn)  # no difference is settled at once
    assert set(names) <= set(drawn)
    for x, own in predictor.seen:
        alone = dataclasses.replace(images, names=list(own))
        expected = torch.cat([x for batch in iter_inputs(alone, preset_none(), execution()) for _, x in batch.groups])
        assert torch.equal(x, expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_low_precision_has_the_same_rows(folder: Path, precision: str, workers: int) -> None:
    """A predictor in low precision is calibrated by itself and gives the same rows, broken images among them."""
    images = find_images(folder)
    debiased = PerturbedClassifier(Brightness(), COUNTS, eps=0.05)
    predictor = Predictor(debiased, debiased, precision=precision)
    stopwatch = Stopwatch()
    batches = iter_predictions(predictor, images, preset_none(), execution(workers=workers), stopwatch=stopwatch)
    assert [row for rows in batches for row in rows] == predict(images)
    assert ("calibration" in stopwatch.seconds) == (precision == "auto")
    assert predictor.summary().images == 23


@pytest.mark.parametrize("workers", [0, 2])
def test_calibrated_images_go_through_once(folder: Path, workers: int) -> None:
    """Each image has its two passes in low precision once, those that it was calibrated on among them."""
    images, low = find_images(folder), Counting()
    predictor = Predictor(
        PerturbedClassifier(Brightness(), COUNTS, eps=0.05),
        PerturbedClassifier(low, COUNTS, eps=0.05),
        precision="auto",
    )
    batches = iter_predictions(predictor, images, preset_none(), execution(workers=workers))
    rows = [row for batch in batches for row in batch]
    assert rows == predict(images)
    assert low.images == 2 * sum(row.error is None for row in rows)
    assert predictor.summary().sampled >= 16


def test_slices_of_a_list_are_what_the_whole_is(folder: Path) -> None:
    """Slices predicted apart, calibrated alike, have the rows of one run, and their tallies add up to its own."""
    images = find_images(folder)
    debiased = PerturbedClassifier(Brightness(), COUNTS, eps=0.05)
    whole = Predictor(debiased, debiased, precision="auto")
    rows = [row for part in iter_predictions(whole, images, preset_none(), execution()) for row in part]
    calibrated = Predictor(debiased, debiased, precision="auto")
    engine.calibrate(calibrated, images, preset_none(), execution(), whole=True)
    parts, sums = [], calibrated.state().tally
    for start in (16, 0):
        predictor = Predictor(debiased, debiased, precision="auto")
        predictor.restore(dataclasses.replace(calibrated.state(), tally=Tally()))
        part = dataclasses.replace(images, names=images.names[start : start + 16])
        found = iter_predictions(predictor, part, preset_none(), execution(), start=start)
        parts[:0] = [row for batch in found for row in batch]
        tally = vars(predictor.state().tally)
        sums = Tally(**{name: value + tally[name] for name, value in vars(sums).items()})
    assert parts == rows
    assert sums == whole.state().tally
    assert sums.sampled


def test_an_image_that_makes_nan_fails_alone_in_low_precision(tmp_path: Path) -> None:
    """NaN in both precisions is the image's own error, and its batch mates have their predictions."""
    for index, level in enumerate([200, 0, 90, 0, 30]):
        Image.new("RGB", (4, 4), (level,) * 3).save(tmp_path / f"{index}.png")
    debiased = PerturbedClassifier(NanOnBlack(), COUNTS, eps=0.05)
    batches = iter_predictions(
        Predictor(debiased, debiased, precision="bf16"), find_images(tmp_path), preset_none(), execution(8)
    )
    rows = [row for rows in batches for row in rows]
    assert [row.error is None for row in rows] == [True, False, True, False, True]


def test_inputs_hold_every_position_once(folder: Path) -> None:
    """Each batch's positions are in exactly one group or have an error, and stages are timed."""
    stopwatch = Stopwatch()
    images = find_images(folder)
    seen = 0
    for batch in iter_inputs(images, preset_none(), execution(batch_size=5), stopwatch):
        grouped = sorted(position for group in batch.groups for position in group.positions)
        assert grouped == [position for position, error in enumerate(batch.errors) if error is None]
        for positions, x in batch.groups:
            assert x.shape[0] == len(positions)
            assert x.dtype == torch.float32
        seen += len(batch.names)
    assert seen == len(images)
    assert stopwatch.seconds.keys() >= {"decode", "wait for images", "normalise"}


@pytest.mark.parametrize(
    ("device", "images", "sizes"),
    [("cuda", 1100, [32, 512, 512, 44]), ("cuda", 20, [20]), ("cpu", 1100, [512, 512, 76]), ("cuda", 0, [])],
)
def test_the_first_group_on_a_gpu_is_small(device: str, images: int, sizes: list[int]) -> None:
    """Its first rows wait for one task of a worker and not for hundreds of images; every name comes once, in order."""
    names = [str(index) for index in range(images)]
    groups = list(_in_groups(names, Execution(torch.device(device), 128, 1, "fp32", False)))
    assert [len(group) for group in groups] == sizes
    assert [name for group in groups for name in group] == names

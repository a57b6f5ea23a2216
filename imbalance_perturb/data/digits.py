"""The demonstration's real images: scikit-learn's handwritten digits, split so that training is long-tailed."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_perturb.errors import LabelsError, OutputFileError
from imbalance_perturb.files.writing import check_writable, open_whole, write_json, write_whole
from imbalance_perturb.method.counts import ClassCounts

#: Class names in class-index order: the class index is the digit.
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: Training images of each digit: 100 of 'zero' down to 2 of 'nine', each about 0.65 of the one before
#: (100 * 50^(-c/9), rounded: the exponential profile that long-tailed benchmarks use, imbalance 50).
TRAIN_COUNTS = (100, 65, 42, 27, 18, 11, 7, 5, 3, 2)

#: Images of every digit that are held out; with the 100 for training these are all 178 of 'zero'.
VAL_PER_CLASS = 24
TEST_PER_CLASS = 54

#: What deals the images out; another value would put training images of the shipped checkpoint into the test.
_SPLIT_SEED = 0

#: Brightest value in scikit-learn's copy of the digits (each is a count of 0 to 16 dark dots).
_BRIGHTEST = 16

MODEL, COUNTS = "model.safetensors", "counts.json"

#: Images to choose eps on, and images to score on: (folder, labels file) of each.
VAL, TEST = ("val", "val.csv"), ("images", "labels.csv")


class DigitSet(NamedTuple):
    """Images of digits with their classes, in an order that says nothing about the class.

    ``images``: (N, 8, 8) uint8 grey levels 0 to 255; ``labels``: (N,) int64 class indices 0 to 9;
    ``sources``: (N,) int64 positions of the images in scikit-learn's data set.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]


class DigitSplits(NamedTuple):
    """Three disjoint sets: ``train`` is long-tailed, ``val`` and ``test`` hold each digit equally often."""

    train: DigitSet
    val: DigitSet
    test: DigitSet

    @property
    def counts(self) -> ClassCounts:
        """Training images of each digit, in class-index order."""
        found = np.bincount(self.train.labels, minlength=len(DIGIT_NAMES))
        return ClassCounts(DIGIT_NAMES, [int(count) for count in found])


def load_digit_splits() -> DigitSplits:
    """The 280 training, 240 validation and 540 test digits, the same ones on every machine.

    They are read from the installed scikit-learn; nothing is downloaded. The 737 images left over belong to
    the digits that training is short of, and are used nowhere.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / _BRIGHTEST)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    # RandomState, not default_rng: its stream never changes between NumPy versions, so neither does the split.
    random = np.random.RandomState(_SPLIT_SEED)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for digit, train_count in enumerate(TRAIN_COUNTS):
        members = random.permutation(np.flatnonzero(labels == digit))
        # The held-out images come first, so which they are does not depend on the profile of training.
        test, val, rest = np.split(members, [TEST_PER_CLASS, TEST_PER_CLASS + VAL_PER_CLASS])
        for part, chosen in zip(parts, (rest[:train_count], val, test), strict=True):
            part.append(chosen)
    shuffled = [random.permutation(np.concatenate(part)).astype(np.int64) for part in parts]
    return DigitSplits(*(DigitSet(images[chosen], labels[chosen], chosen) for chosen in shuffled))


def write_digit_images(folder: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Path:
    """Write each image as an 8-bit grey PNG into ``folder``, and the classes into ``labels.csv`` beside them.

    Args:
        folder: made if it is not there.
        images: (N, H, W) uint8.
        labels: (N,) class indices 0 to 9.

    Returns:
        The path of ``labels.csv``: header ``image,label``, file names ``digit_0000.png`` and so on with the
        position in ``images`` as the number, class names from :data:`DIGIT_NAMES`.

    Raises:
        LabelsError: if there are not as many labels as images, or one is not the index of a digit.
        OutputFileError: if something cannot be written.
    """
    if len(images) != len(labels):
        raise LabelsError(f"{len(images)} images but {len(labels)} labels; give one for each image")
    wrong = [int(label) for label in labels if not 0 <= label < len(DIGIT_NAMES)]
    if wrong:
        raise LabelsError(f"label {wrong[0]} is not a digit; expected a class index from 0 to {len(DIGIT_NAMES) - 1}")
    folder = Path(folder)
    path = folder / "labels.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFileError(
            f"{folder}: the digit images cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    with open_whole(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("image", "label"))
        for position, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"digit_{position:04d}.png"
            # Not one by one on the disk: there are hundreds, and they can be made again.
            with open_whole(folder / name, binary=True, sync=False) as picture:
                Image.fromarray(image).save(picture, format="PNG")
            rows.writerow((name, DIGIT_NAMES[label]))
    return path


def write_demo(folder: str | Path) -> DigitSplits:
    """Write the demonstration's images, labels, counts and model into a new or empty folder.

    They are ``model.safetensors``, ``counts.json``, ``val/`` with ``val.csv`` and ``images/`` with ``labels.csv``; the
    model sees grey pixels of 64 x 64 (``preset="none"``, ``resize=64``, mean and standard deviation 0.5).

    Returns:
        The digits: those that the model was trained on, and those that were written.

    Raises:
        OutputFileError: if the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    _make_folder(folder)
    splits = load_digit_splits()
    for (images, labels), digits in ((VAL, splits.val), (TEST, splits.test)):
        _write_images(folder / images, folder / labels, digits)
    write_json(folder / COUNTS, splits.counts.to_dict())
    write_whole(
        folder / MODEL, (files("imbalance_perturb") / "data" / "assets" / "demo_digits.safetensors").read_bytes()
    )
    return splits


def _make_folder(folder: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputFileError(
                f"{folder}: is there already and not empty; name a new folder: imbperturb demo FOLDER"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OutputFileError:
        raise
    except OSError as error:
        raise OutputFileError(
            f"{folder}: cannot be made ({error.strerror}); imbperturb demo FOLDER says where"
        ) from None
    check_writable(folder / MODEL)


def _write_images(folder: Path, labels: Path, digits: DigitSet) -> None:
    written = write_digit_images(folder, digits.images, digits.labels)
    written.replace(labels)

"""The demonstration's files: images, labels, counts and model of a small job, written into a new folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.files.writing import check_writable, write_json, write_whole

if TYPE_CHECKING:
    from imbalance_perturb.data.digits import DigitSet, DigitSplits


MODEL, COUNTS = "model.safetensors", "counts.json"

#: Images to choose eps on, and images to score on: (folder, labels file) of each.
VAL, TEST = ("val", "val.csv"), ("images", "labels.csv")


def write_demo(folder: str | Path) -> DigitSplits:
    """Write the demonstration's images, labels, counts and model into a new or empty folder.

    They are ``model.safetensors``, ``counts.json``, ``val/`` with ``val.csv`` and ``images/`` with ``labels.csv``; the
    model sees grey pixels of 64 x 64 (``preset="none"``, ``resize=64``, mean and standard deviation 0.5).

    Returns:
        The digits: those that the model was trained on, and those that were written.

    Raises:
        OutputFileError: if the folder is not empty or cannot be written.
    """
    from imbalance_perturb.data.digits import load_digit_splits

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
    from imbalance_perturb.data.digits import write_digit_images

    written = write_digit_images(folder, digits.images, digits.labels)
    written.replace(labels)

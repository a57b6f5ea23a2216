"""The demonstration's files: images, labels, counts and model of a small job, written into a new folder."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.files.writing import check_writable, write_json, write_whole

if TYPE_CHECKING:
    from imbalance_perturb.data.digits import DigitSet


MODEL, COUNTS = "model.safetensors", "counts.json"

#: Images to choose eps on, and images to score on: (folder, labels file) of each.
VAL, TEST = ("val", "val.csv"), ("images", "labels.csv")


def write_demo(folder: Path, announce: Callable[[str], None] = lambda line: None) -> None:
    """Write the demonstration's images, labels, counts and model into a new or empty folder.

    Raises:
        OutputFileError: if the folder is not empty or cannot be written.
    """
    from imbalance_perturb.data.digits import load_digit_splits

    _make_folder(folder)
    splits = load_digit_splits()
    for (images, labels), digits in ((VAL, splits.val), (TEST, splits.test)):
        _write_images(folder / images, folder / labels, digits)
    write_json(folder / COUNTS, splits.counts.to_dict())
    write_whole(
        folder / MODEL, (files("imbalance_perturb") / "data" / "assets" / "demo_digits.safetensors").read_bytes()
    )
    counts = splits.counts
    announce(
        f"{folder}: a small network trained on {counts.total} handwritten digits (scikit-learn's), long-tailed from"
        f" {max(counts.counts)} of '{counts.names[0]}' down to {min(counts.counts)} of"
        f" '{counts.names[counts.smallest]}', and {len(splits.val.labels)} + {len(splits.test.labels)} digits it has"
        " not seen, to choose eps on and to score."
    )


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

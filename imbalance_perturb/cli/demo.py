"""The demonstration: real images in a folder, and the real commands run on them in front of the user."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from imbalance_perturb.data.digits import DigitSet, load_digit_splits, write_digit_images
from imbalance_perturb.errors import ImbperturbError, OutputFileError
from imbalance_perturb.files.writing import check_writable, write_json, write_whole

#: How the demonstration's model was trained to see an image (``examples/train_demo_model.py``).
_PREPROCESSING = ("--preset", "none", "--resize", "64", "--mean", "0.5", "--std", "0.5")

_MODEL, _COUNTS = "model.safetensors", "counts.json"

#: Images to choose eps on, and images to score on: (folder, labels file) of each.
_VAL, _TEST = ("val", "val.csv"), ("images", "labels.csv")


@dataclass(frozen=True)
class Command:
    """One command of the demonstration: its arguments and the sentence that introduces it."""

    arguments: tuple[str, ...]
    why: str


COMMANDS = (
    Command(
        ("init", _MODEL, _COUNTS, *_PREPROCESSING),
        "Check the model against the counts, and keep all settings in a recipe that the next commands read.",
    ),
    Command(("inspect",), "What is in the model file, and what the counts make of each class."),
    Command(
        ("tune-eps", "--val", _VAL[0], "--labels", _VAL[1], "--eps-grid", "0,0.001,0.002,0.005,0.01,0.02,0.05"),
        "Choose eps on labelled images that are not scored later; the choice goes into the recipe.",
    ),
    Command(("predict", _TEST[0]), "Predict every image twice, plain and corrected."),
    Command(
        ("evaluate", "--labels", _TEST[1]), "What the correction gained and what it cost, on the images just predicted."
    ),
    Command(
        ("compare", "--val", _VAL[0], "--labels", _VAL[1], "--test", _TEST[0], "--test-labels", _TEST[1]),
        "Whether a simpler correction serves as well: parameters chosen on the one set of images, scored on the other.",
    ),
)


def run_demo(folder: Path, announce: Callable[[str], None]) -> None:
    """Write images, counts and model into ``folder`` and run :data:`COMMANDS` there, showing each one.

    ``announce`` is given each line for people.

    Raises:
        OutputFileError: if the folder is not empty or cannot be written.
        ImbperturbError: if one of the commands fails.
    """
    write_demo(folder, announce)
    for command in COMMANDS:
        for line in ("", command.why, f"$ imbperturb {shlex.join(command.arguments)}"):
            announce(line)
        result = subprocess.run(
            [sys.executable, "-P", "-m", "imbalance_perturb", *command.arguments], cwd=folder, check=False
        )
        if result.returncode != 0:
            raise ImbperturbError(f"'imbperturb {command.arguments[0]}' ended with exit code {result.returncode}")
    announce("")
    announce(f"Everything is in {folder}: change eps in imbperturb.toml, or point the commands at your own model.")


def write_demo(folder: Path, announce: Callable[[str], None] = lambda line: None) -> None:
    """Write the demonstration's images, labels, counts and model into a new or empty folder.

    Raises:
        OutputFileError: if the folder is not empty or cannot be written.
    """
    _make_folder(folder)
    splits = load_digit_splits()
    for (images, labels), digits in ((_VAL, splits.val), (_TEST, splits.test)):
        _write_images(folder / images, folder / labels, digits)
    write_json(folder / _COUNTS, splits.counts.to_dict())
    write_whole(
        folder / _MODEL, (files("imbalance_perturb") / "data" / "assets" / "demo_digits.safetensors").read_bytes()
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
    check_writable(folder / _MODEL)


def _write_images(folder: Path, labels: Path, digits: DigitSet) -> None:
    written = write_digit_images(folder, digits.images, digits.labels)
    written.replace(labels)

"""``imbperturb demo``: the real commands run in front of the user."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from imbalance_perturb.cli import terminal
from imbalance_perturb.data.demo_files import COUNTS, MODEL, TEST, VAL, write_demo
from imbalance_perturb.errors import ImbperturbError

if TYPE_CHECKING:
    from imbalance_perturb.data.digits import DigitSplits

#: How the demonstration's model was trained to see an image (``examples/train_demo_model.py``).
_PREPROCESSING = ("--preset", "none", "--resize", "64", "--mean", "0.5", "--std", "0.5")


@dataclass(frozen=True)
class Command:
    """One command of the demonstration: its arguments and the sentence that introduces it."""

    arguments: tuple[str, ...]
    why: str


COMMANDS = (
    Command(
        ("init", MODEL, COUNTS, *_PREPROCESSING),
        "Check the model against the counts, and keep all settings in a recipe that the next commands read.",
    ),
    Command(("inspect",), "What is in the model file, and what the counts make of each class."),
    Command(
        ("tune-eps", "--val", VAL[0], "--labels", VAL[1], "--eps-grid", "0,0.001,0.002,0.005,0.01,0.02,0.05"),
        "Choose eps on labelled images that are not scored later; the choice goes into the recipe.",
    ),
    Command(("predict", TEST[0]), "Predict every image twice, plain and corrected."),
    Command(
        ("evaluate", "--labels", TEST[1]), "What the correction gained and what it cost, on the images just predicted."
    ),
    Command(
        ("compare", "--val", VAL[0], "--labels", VAL[1], "--test", TEST[0], "--test-labels", TEST[1]),
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
    from imbalance_perturb.cli.app import app  # whose commands are this one, too

    announce(describe_digits(folder, write_demo(folder)))
    with chdir(folder):
        for command in COMMANDS:
            for line in ("", command.why, f"$ imbperturb {shlex.join(command.arguments)}"):
                announce(line)
            # In this process: torch is loaded once.
            if code := app(args=list(command.arguments), prog_name="imbperturb", standalone_mode=False):
                raise ImbperturbError(f"'imbperturb {command.arguments[0]}' ended with exit code {code}")
    announce("")
    announce(f"Everything is in {folder}: change eps in imbperturb.toml, or point the commands at your own model.")


def describe_digits(folder: Path, splits: DigitSplits) -> str:
    """What the demonstration works on."""
    counts = splits.counts
    return (
        f"{folder}: a small network trained on {counts.total} handwritten digits (scikit-learn's), long-tailed from"
        f" {max(counts.counts)} of '{counts.names[0]}' down to {min(counts.counts)} of"
        f" '{counts.names[counts.smallest]}', and {len(splits.val.labels)} + {len(splits.test.labels)} digits it has"
        " not seen, to choose eps on and to score."
    )


def demo(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="New or empty folder to work in.")] = Path(
        "imbperturb-demo"
    ),
) -> None:
    """Run the whole job on real images that come with a dependency: handwritten digits, made long-tailed."""
    run_demo(folder, terminal.show)

"""Some of the images whose predicted class the correction changed, drawn at random: for better and for worse alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imbalance_perturb.data.labels import load_labels
from imbalance_perturb.errors import PredictionsError, SettingsError
from imbalance_perturb.files.csv_tables import normal_path
from imbalance_perturb.predictions.reading import iter_images, iter_rows
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_file import load_run_of, run_path

#: Most images of a kind: they lie in one page, two pictures each.
MOST_CHANGED = 100


class ChangedImage(NamedTuple):
    """An image whose predicted class the correction changed: its true class, and its row without probabilities."""

    label: str
    row: PredictionRow


@dataclass(frozen=True)
class ChangedImages:
    """The images of one kind: of ``total`` some were ``drawn``, which stand by name."""

    total: int
    drawn: tuple[ChangedImage, ...]


@dataclass(frozen=True)
class Changed:
    """Images that the correction put right (``gained``), those it put wrong (``lost``), and the seed of the draw."""

    gained: ChangedImages
    lost: ChangedImages
    seed: int

    @property
    def rows(self) -> list[PredictionRow]:
        """The rows of all that were drawn."""
        return [image.row for kind in (self.gained, self.lost) for image in kind.drawn]


def check_number(number: int) -> None:
    """Refuse a number of images of each kind that is none, or too large for one page.

    Raises:
        SettingsError: saying so.
    """
    if not 1 <= number <= MOST_CHANGED:
        raise SettingsError(f"gallery is {number}; expected a number of images of each kind, from 1 to {MOST_CHANGED}")


def draw_changed(predictions: str | Path, labels: str | Path, number: int, seed: int = 0) -> Changed:
    """Draw up to ``number`` images of each kind, at random: the largest changes would be the most flattering.

    Args:
        predictions: as ``predict`` writes them, with the run file beside them.
        labels: as for :func:`load_labels`.
        number: of images of each kind.
        seed: of the draw.

    Raises:
        SettingsError: for a number out of range.
        PredictionsError: if there is no run file, or it and the predictions do not belong together.
        LabelsError: if the labels cannot be used.
    """
    check_number(number)
    predictions, beside = Path(predictions), run_path(Path(predictions))
    if not beside.is_file():
        raise PredictionsError(
            f"{beside}: no such file; --gallery computes the perturbation again by what it says: put it back, or leave"
            " --gallery out"
        )
    run = load_run_of(predictions)
    loaded = load_labels(labels, run.class_counts.names)
    truth = loaded.match([normal_path(name) for name in iter_images(predictions)]).classes
    names = run.class_counts.names
    gained, lost = list[ChangedImage](), list[ChangedImage]()
    for row in _iter_changed(predictions, run.layout.corrected):
        index = truth.get(normal_path(row.image))
        if index is not None and names[index] in (row.pred, row.base_pred):
            (gained if names[index] == row.pred else lost).append(ChangedImage(names[index], row))
    return Changed(_draw(gained, number, seed), _draw(lost, number, seed), seed)


def _iter_changed(predictions: Path, corrected: bool) -> Iterator[PredictionRow]:
    """The rows whose class changed; of thousands of classes the probabilities would fill the memory."""
    return (row for row in iter_rows(predictions, RowLayout(corrected=corrected)) if row.changed)


def _draw(images: list[ChangedImage], number: int, seed: int) -> ChangedImages:
    drawn = random.Random(seed).sample(images, min(number, len(images)))
    return ChangedImages(len(images), tuple(sorted(drawn, key=lambda image: image.row.image)))

"""Which images of a list are tried before or after a run, by their positions; no image is opened here."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

import numpy as np

from imbalance_perturb.errors import ImageFolderError

#: Images that a predictor is calibrated on at most: one in so many, between two bounds.
ONE_IN, CALIBRATED = 8, (64, 256)

#: Images that eps is settled on, where it is ``auto``.
MEASURED = 64

#: So many at the start of a list may be looked at for the size of the model's input.
FIRST = 1000

#: One image in so many tells how strong the eps of a finished run was: that may take no time to speak of.
_TOLD_OF = 50


def calibration_positions(total: int) -> list[int]:
    """Draw at random the positions of the images that a predictor may be calibrated on, of ``total`` images.

    They are taken in this order, until there are enough.
    """
    fewest, most = CALIBRATED
    return random.Random(0).sample(range(total), min(total, max(fewest, min(most, total // ONE_IN))))


def strength_positions(total: int, count: int = MEASURED) -> list[int]:
    """Draw the positions of the images on which the strength of the step is measured, in ascending order."""
    drawn = np.random.default_rng(0).choice(total, min(count, total), replace=False)
    return sorted(drawn.tolist())


def count_told(n_images: int) -> int:
    """Count the images that tell how strong the step of a finished run of ``n_images`` was."""
    return max(8, min(MEASURED, n_images // _TOLD_OF))


class SomeNames(Sequence[str]):
    """A list of ``total`` images of which only those at some positions are known here.

    That is all of a list that a machine needs to prepare for its part of a run.
    """

    def __init__(self, names: Sequence[str], positions: Iterable[int]) -> None:
        self._total = len(names)
        first = range(min(FIRST, len(names)))
        self._known: Mapping[int, str] = {index: names[index] for index in {*first, *positions}}

    @property
    def first(self) -> list[str]:
        """The names at the start of the list."""
        return self[: min(FIRST, self._total)]

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(self._total))]
        if not 0 <= index < self._total:
            raise IndexError(index)
        if index not in self._known:
            raise ImageFolderError(
                f"none of the first {FIRST:,} images can be read, so it is not known what size images come in; give one"
                " with --resize or --crop"
            )
        return self._known[index]

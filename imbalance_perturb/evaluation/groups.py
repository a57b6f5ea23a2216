"""Images in groups that are alike, of one lesion, patient, camera or lot: groups are independent, images are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.data.labels import LabelledImages
from imbalance_perturb.errors import LabelsError
from imbalance_perturb.evaluation.metrics import Floats, IntArray
from imbalance_perturb.evaluation.results import Grouping


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each of N images: ``ids`` (N,) from 0, each number in use, by the labels' column ``column``."""

    column: str
    ids: IntArray

    @classmethod
    def from_names(cls, column: str, names: Sequence[object] | NDArray[Any]) -> Groups:
        """Number the groups that N images are in, in the order of their names."""
        return cls(column, np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1).astype(np.int64))

    @property
    def number(self) -> int:
        """How many groups there are."""
        return int(self.ids.max(initial=-1)) + 1

    def subset(self, images: ArrayLike) -> Groups:
        """The groups of some of the images, given by a mask or by indices."""
        return Groups.from_names(self.column, self.ids[np.asarray(images)])

    def check_length(self, images: int) -> None:
        """Refuse groups of other images.

        Raises:
            LabelsError: if there is not one group for each of so many images.
        """
        if self.ids.shape != (images,):
            raise LabelsError(f"groups are of {len(self.ids):,} images, labels of {images:,}; give one for each image")

    def describe(self) -> Grouping:
        """The groups as results have them."""
        return Grouping(self.column, self.number, int(np.bincount(self.ids).max(initial=0)))


def groups_of(labelled: LabelledImages, names: Sequence[str]) -> Groups | None:
    """The groups of some labelled images, given by name; ``None`` where they have none."""
    if labelled.group is None:
        return None
    return Groups.from_names(labelled.group, [labelled.groups[name] for name in names])


@dataclass(frozen=True, eq=False)
class GroupKinds:
    """Groups that hold the same images, as far as figures tell images apart by K cells, counted.

    ``images`` (U, K) sparse: images of each cell in one group of a kind; ``counts`` (U,) groups of each kind.
    """

    images: Any
    counts: IntArray

    @property
    def sizes(self) -> Floats:
        """(U,) images in a group of each kind."""
        return np.asarray(self.images.sum(axis=1), dtype=np.float64).reshape(-1)

    def add_up(self, values: NDArray[Any]) -> Any:
        """(U, ...) sums of each cell's values, (K, ...) dense or sparse, over the images of a group."""
        return self.images @ values


def count_kinds(cells: IntArray, number: int, ids: IntArray) -> GroupKinds:
    """Count groups of N images that hold the same.

    Args:
        cells: (N,) the cell of each image, below ``number``.
        number: K cells.
        ids: (N,) the group of each image, from 0, each number in use.
    """
    from scipy.sparse import csr_array, vstack

    held = csr_array((np.ones(len(cells)), (ids, cells)), shape=(int(ids.max(initial=-1)) + 1, number))
    held.sum_duplicates()
    found, counts = [], []
    filled = np.diff(held.indptr)
    # Groups with as many distinct cells are rows of one array, in which equal ones are found at once.
    for width in np.unique(filled):
        rows = held[np.flatnonzero(filled == width)]
        shape = (rows.shape[0], int(width))
        signature = np.concatenate([rows.indices.reshape(shape), rows.data.reshape(shape)], axis=1)
        _, first, times = np.unique(signature, axis=0, return_index=True, return_counts=True)
        found.append(rows[first])
        counts.append(times)
    return GroupKinds(csr_array(vstack(found)), np.concatenate(counts).astype(np.int64))

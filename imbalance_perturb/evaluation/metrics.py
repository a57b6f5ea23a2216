"""Count hits and misses: integer counts that merge by addition, and the figures read off them.

The figures are those of scikit-learn: mean class recall is ``balanced_accuracy_score`` (classes without labelled
images are left out of the mean), F1 and precision have ``zero_division=0``, and the macro F1 is over the classes
that have labelled images or were predicted. No torch here: reports on finished predictions need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.errors import LabelsError

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A (C, C) matrix of counts of which only cells that are not 0 are held: with thousands of classes few are not.

    ``rows``, ``columns`` and ``counts`` are (K,) int64, each cell once, in lexical order. What the figures ask of it is
    called as NumPy calls it, so that they take an array as well.
    """

    rows: IntArray
    columns: IntArray
    counts: IntArray
    num_classes: int

    def sum(self, axis: int | None = None) -> IntArray:
        """The sum of all, or (C,) of each column (axis 0) or row (axis 1)."""
        if axis is None:
            return np.asarray(self.counts.sum())
        return self._add_up(self.columns if axis == 0 else self.rows, self.counts)

    def diagonal(self) -> IntArray:
        """(C,) cells on the diagonal."""
        hit = self.rows == self.columns
        return self._add_up(self.rows[hit], self.counts[hit])

    def to_array(self) -> IntArray:
        """(C, C) all cells."""
        matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        matrix[self.rows, self.columns] = self.counts
        return matrix

    def _add_up(self, classes: IntArray, counts: IntArray) -> IntArray:
        totals = np.zeros(self.num_classes, dtype=np.int64)
        np.add.at(totals, classes, counts)
        return totals


Matrix = IntArray | SparseMatrix


@dataclass(frozen=True, eq=False)
class JointCounts:
    """How often each (label, base prediction, perturbed prediction) occurred: all a comparison needs.

    ``cells`` is (K, 3) int64, distinct rows in lexical order; ``counts`` is (K,) int64, all above 0. Shards of
    the same ``num_classes`` merge with ``+``.
    """

    cells: IntArray
    counts: IntArray
    num_classes: int

    @property
    def total(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @cached_property
    def base(self) -> SparseMatrix:
        """(C, C) confusion matrix of the base predictions: true classes are rows."""
        return self._matrix(1)

    @cached_property
    def perturbed(self) -> SparseMatrix:
        """(C, C) confusion matrix of the perturbed predictions: true classes are rows."""
        return self._matrix(2)

    @property
    def correctness(self) -> IntArray:
        """(C, 2, 2): images of a class by whether base (first) and perturbed (second) were right."""
        label, base, perturbed = self.cells.T
        table = np.zeros((self.num_classes, 2, 2), dtype=np.int64)
        np.add.at(table, (label, (base == label).astype(int), (perturbed == label).astype(int)), self.counts)
        return table

    def __add__(self, other: JointCounts) -> JointCounts:
        if self.num_classes != other.num_classes:
            raise LabelsError(
                f"counts over {self.num_classes} and over {other.num_classes} classes do not add up;"
                " merge parts of one evaluation"
            )
        return _merge(
            np.concatenate([self.cells, other.cells]),
            np.concatenate([self.counts, other.counts]),
            self.num_classes,
        )

    def _matrix(self, kind: int) -> SparseMatrix:
        cells, position = np.unique(self.cells[:, [0, kind]], axis=0, return_inverse=True)
        counts = np.zeros(len(cells), dtype=np.int64)
        np.add.at(counts, position.reshape(-1), self.counts)
        return SparseMatrix(cells[:, 0], cells[:, 1], counts, self.num_classes)


def count_jointly(labels: ArrayLike, base_preds: ArrayLike, preds: ArrayLike, num_classes: int) -> JointCounts:
    """Count the predictions of N images, all given as (N,) class indices.

    Raises:
        LabelsError: if the lengths differ or an index is outside 0 to ``num_classes`` - 1.
    """
    columns = [
        _check_indices(name, values, num_classes)
        for name, values in (("labels", labels), ("base_preds", base_preds), ("preds", preds))
    ]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise LabelsError(f"labels, base_preds and preds have {lengths} entries; give one of each for every image")
    cells = np.stack(columns, axis=1)
    return _merge(cells, np.ones(len(cells), dtype=np.int64), num_classes)


def confusion_matrix(labels: ArrayLike, preds: ArrayLike, num_classes: int) -> IntArray:
    """(C, C) int64 counts, true classes as rows and predicted ones as columns; matrices of parts add up.

    Raises:
        LabelsError: if the lengths differ or an index is outside 0 to ``num_classes`` - 1.
    """
    return count_jointly(labels, preds, preds, num_classes).perturbed.to_array()


def recalls(matrix: Matrix) -> Floats:
    """(C,) share of each class's images that got their class; NaN for a class without images."""
    return _ratio(matrix.diagonal(), matrix.sum(axis=1), empty=np.nan)


def precisions(matrix: Matrix) -> Floats:
    """(C,) share of the images given a class that are of it; 0 for a class never predicted."""
    return _ratio(matrix.diagonal(), matrix.sum(axis=0), empty=0.0)


def f1_scores(matrix: Matrix) -> Floats:
    """(C,) harmonic means of precision and recall; 0 for a class neither labelled nor predicted."""
    hits, denominators = f1_parts(matrix)
    return _ratio(2 * hits, denominators, empty=0.0)


def mean_class_recall(matrix: Matrix) -> float:
    """MCR: mean recall over the classes that have images; NaN without any image."""
    found = recalls(matrix)[labelled(matrix)]
    return float(found.mean()) if len(found) else float("nan")


def accuracy(matrix: Matrix) -> float:
    """Share of images that got their class; NaN without any image."""
    total = int(matrix.sum())
    return int(matrix.diagonal().sum()) / total if total else float("nan")


def macro_f1(matrix: Matrix) -> float:
    """Mean F1 over the classes that have images or were predicted; NaN without any image."""
    hits, denominators = f1_parts(matrix)
    seen = denominators > 0
    return float(mean_f1(hits[seen], denominators[seen])) if seen.any() else float("nan")


def f1_parts(matrix: Matrix) -> tuple[Floats, Floats]:
    """Half the numerators of F1, the hits, and its denominators, labelled plus predicted images: (C,) each."""
    return matrix.diagonal().astype(np.float64), (matrix.sum(axis=0) + matrix.sum(axis=1)).astype(np.float64)


def mean_f1(hits: Floats, denominators: Floats) -> Floats:
    """(...,) macro F1 from (..., C) parts of :func:`f1_parts`, over the classes whose denominator is not 0."""
    return np.asarray(_ratio(2 * hits, denominators, empty=0.0).sum(axis=-1) / (denominators > 0).sum(axis=-1))


def labelled(matrix: Matrix) -> NDArray[np.bool_]:
    """(C,) which classes have images."""
    return np.asarray(matrix.sum(axis=1) > 0)


def macro_auc(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean area under the ROC curve, each class against the rest, over the classes that have images.

    Args:
        labels: (N,) class indices.
        probabilities: (N, C), in class-index order.

    Returns:
        A number in [0, 1], or ``None`` with fewer than two classes among the labels.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    present = np.unique(truth)
    if len(present) < 2:
        return None
    return float(np.mean([_auc(scores[:, index], truth == index) for index in present]))


def _auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """How often an image of the class has a higher score than one of another class; ties count half."""
    others = np.sort(scores[~positive])
    below = others.searchsorted(scores[positive], "left") + others.searchsorted(scores[positive], "right")
    return float(below.mean() / (2 * len(others)))


def _merge(cells: IntArray, counts: IntArray, num_classes: int) -> JointCounts:
    distinct, position = np.unique(cells, axis=0, return_inverse=True)
    merged = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(merged, position.reshape(-1), counts)
    return JointCounts(distinct.reshape(-1, 3), merged, num_classes)


def _check_indices(name: str, values: ArrayLike, num_classes: int) -> IntArray:
    found = np.asarray(values)
    if found.ndim != 1:
        raise LabelsError(f"{name} has shape {found.shape}; expected one class index for each image")
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise LabelsError(f"{name} holds {found.dtype}; expected class indices, which are whole numbers")
    # Out of range, an index could land silently in another cell (-1 is the last class to numpy).
    wrong = found[(found < 0) | (found >= num_classes)]
    if wrong.size:
        raise LabelsError(f"{name} holds class index {wrong[0]}; there are {num_classes} classes, from index 0")
    return found.astype(np.int64)


def _ratio(numerator: IntArray | Floats, denominator: IntArray | Floats, *, empty: float) -> Floats:
    quotient = np.full(numerator.shape, empty)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient

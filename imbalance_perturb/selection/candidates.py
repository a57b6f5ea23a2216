"""Several predictions of the same images: which are right, by class and by fold, and how far off they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.selection.brier import class_weights, error_importance, fitted_brier_scores

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: What can be maximised; name -> spelled out.
OBJECTIVES = {
    "mcr": "mean class recall",
    "scr": "recall of the class with the fewest training images",
    "worst": "recall of the worst class",
    "gmean": "geometric mean of the class recalls",
}


@dataclass(frozen=True, eq=False)
class Candidates:
    """K predictions of the same N images, as far as a choice looks at them.

    ``labels`` (N,); ``correct`` (N, K); ``strengths`` (K,), smallest for candidate 0, the uncorrected prediction;
    ``smallest`` is the index of the class with the fewest training images; ``briers`` (N, K, G) the Brier scores at G
    temperatures, by default those of bare predictions, 0 or 2. Where errors have costs, ``prices`` (N, K) are those of
    the predictions, and ``importance`` (C,) what an error of each class costs on average. ``groups`` (N,) are numbers
    of the images' groups, where images are not independent.
    """

    labels: Ints
    correct: Bools
    strengths: Floats
    num_classes: int
    smallest: int
    briers: Floats | None = None
    prices: Floats | None = None
    importance: Floats | None = None
    groups: Ints | None = None

    def subset(self, images: Bools) -> Candidates:
        """The same candidates on some of the images, (N,) true for those."""
        return Candidates(
            self.labels[images],
            self.correct[images],
            self.strengths,
            self.num_classes,
            self.smallest,
            None if self.briers is None else self.briers[images],
            None if self.prices is None else self.prices[images],
            self.importance,
            None if self.groups is None else self.groups[images],
        )

    def weighted_briers(self) -> Floats:
        """(N, K) weighted Brier scores at each candidate's best temperature: the sums are the candidates' scores."""
        weights = class_weights(self.labels, self.num_classes, self.importance)
        if self.briers is None:
            return np.asarray(weights[:, None] * 2.0 * ~self.correct)
        best = np.argmin(np.einsum("n,nkg->kg", weights, self.briers), axis=1)
        return np.asarray(weights[:, None] * self.briers[:, np.arange(len(best)), best])

    def count(self, folds: Ints, number: int) -> tuple[Floats, Floats]:
        """(number, C, K) images predicted right and (number, C) images, in each fold."""
        columns = self.correct.shape[1]
        group = folds * self.num_classes + self.labels
        cells = (group[:, None] * columns + np.arange(columns))[self.correct]
        hits = np.bincount(cells, minlength=number * self.num_classes * columns)
        totals = np.bincount(group, minlength=number * self.num_classes)
        shape = (number, self.num_classes)
        return hits.reshape(*shape, columns).astype(np.float64), totals.reshape(shape).astype(np.float64)

    def count_all(self) -> tuple[Floats, Floats]:
        """(C, K) images predicted right and (C,) images."""
        hits, totals = self.count(np.zeros(len(self.labels), dtype=np.int64), 1)
        return hits[0], totals[0]


def make_candidates(
    labels: ArrayLike,
    preds: ArrayLike,
    strengths: ArrayLike,
    *,
    num_classes: int,
    smallest_class: int,
    logits: Sequence[NDArray[np.floating]] | None = None,
    costs: ArrayLike | None = None,
    groups: Ints | None = None,
) -> Candidates:
    """Check K predictions of N images and bring them into the form that a choice looks at.

    Args:
        labels: (N,) true class indices, of at least two classes.
        preds: (N, K) predicted class indices; column 0 is the uncorrected prediction.
        strengths: (K,) how strong each correction is, smallest for candidate 0; among equally good candidates the
            least is taken (ties: the higher objective).
        num_classes: C.
        smallest_class: index of the class with the fewest training images.
        logits: for each candidate (N, C), what the predictions were made from. Without, a prediction counts as certain:
            the lowest Brier score is then the highest mean class recall.
        costs: (C, C) of predictions, true classes as rows.
        groups: (N,) numbers of the images' groups, where images are not independent.

    Raises:
        LabelsError: if the arrays do not fit each other or the classes, or only one class has images.
    """
    truth, found = np.asarray(labels, dtype=np.int64), np.asarray(preds, dtype=np.int64)
    strength = np.asarray(strengths, dtype=np.float64)
    _check(truth, found, strength, num_classes)
    candidates = Candidates(truth, found == truth[:, None], strength, num_classes, smallest_class, groups=groups)
    if costs is not None:
        matrix = np.asarray(costs, dtype=np.float64)
        candidates = replace(candidates, prices=matrix[truth[:, None], found], importance=error_importance(matrix))
    if logits is None:
        return candidates
    briers = [fitted_brier_scores(each, truth, num_classes, candidates.importance) for each in logits]
    return replace(candidates, briers=np.stack(briers, axis=1))


def stratified_folds(labels: ArrayLike, folds: int, random: np.random.Generator) -> Ints:
    """(N,) fold of each image, at random, each class spread over the folds as evenly as its number allows."""
    truth = np.asarray(labels)
    # Sorted by class and shuffled within: dealing out in turn then spreads every class, and the folds' sizes too.
    order = np.lexsort((random.random(len(truth)), truth))
    dealt = np.empty(len(truth), dtype=np.int64)
    dealt[order] = np.arange(len(truth)) % folds
    return np.asarray(random.permutation(folds)[dealt])


def objective_values(hits: Floats, totals: Floats, objective: str, smallest: int) -> Floats:
    """(..., K) the objective, from (..., C, K) images predicted right of (..., C); NaN where it has no image."""
    present = (totals > 0)[..., None]
    recall = hits / np.maximum(totals, 1)[..., None]
    classes = np.maximum(present.sum(axis=-2), 1)
    if objective == "mcr":
        return np.asarray(recall.sum(axis=-2) / classes)
    if objective == "scr":
        return np.where(present[..., smallest, :], recall[..., smallest, :], np.nan)
    if objective == "worst":
        return np.asarray(np.where(present, recall, np.inf).min(axis=-2))
    with np.errstate(divide="ignore"):
        logs = np.where(present, np.log(recall), 0.0)
    return np.asarray(np.exp(logs.sum(axis=-2) / classes))


def _check(labels: Ints, preds: Ints, strengths: Floats, num_classes: int) -> None:
    if labels.ndim != 1 or preds.ndim != 2 or len(preds) != len(labels) or preds.shape[1] < 1:
        raise LabelsError(
            f"labels have shape {labels.shape} and preds {preds.shape}; expected (images,) and (images, candidates)"
        )
    if strengths.shape != preds.shape[1:]:
        raise LabelsError(f"{preds.shape[1]} candidates but strengths of shape {strengths.shape}; give one for each")
    if (strengths[0] > strengths).any():
        raise LabelsError("candidate 0 must be the mildest: it is the uncorrected prediction")
    for name, values in (("labels", labels), ("preds", preds)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise LabelsError(
                f"{name} hold class index {values.min() if values.min() < 0 else values.max()}; there are"
                f" {num_classes} classes, from index 0"
            )
    if len(np.unique(labels)) < 2:
        raise LabelsError(
            "all labelled images are of one class; a correction trades classes against each other, so label images"
            " of at least two"
        )

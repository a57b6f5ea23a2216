"""Choosing among corrections without being fooled: what helps beyond noise, and what that choice is worth elsewhere.

The candidates are predictions that are there already (nothing is fitted), so a choice is fooled in one way only:
the largest of many noisy figures is large by luck. Three things stand against that:

* a candidate is considered only if its gain over candidate 0, the uncorrected prediction, is more than chance
  among this many candidates gives: a paired permutation test of all of them at once (Westfall and Young's max-T);
* among those considered, the mildest one within one standard error of the best is taken (Breiman et al. 1984).
  The error is that of the paired difference, from leaving out each fold of repeated stratified folds in turn;
* what the choice is worth is only ever measured on images that had no part in it: the whole choice is made again
  without each fold, and that fold scores it (nested cross-validation).

``benchmarks/selection.py`` measures how often the rule answers 'no correction' where none helps, and where one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.errors import LabelsError, SettingsError

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

#: Permutations of the test; the smallest p-value it can give is one over this plus one.
PERMUTATIONS = 999

#: Figures closer than this are ties that rounding has told apart.
_TIE = 1e-12

#: Numbers held at a time by the permutation test.
_MAX_NUMBERS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """How a choice is made.

    Args:
        objective: one of :data:`OBJECTIVES`.
        max_accuracy_drop: candidates whose accuracy is lower than that of candidate 0 by more than this are out;
            ``None`` for no limit. In shares, so 0.01 is one percentage point.
        standard_errors: how far below the best a milder candidate may be.
        significance: largest p-value of a gain over candidate 0 (one-sided, adjusted for the number of
            candidates); ``None`` considers every candidate, whether its gain is noise or not.
        folds: parts that are held out in turn, at least 2.
        repeats: how often the images are parted anew.
        seed: of the parting and the permutations.

    Raises:
        SettingsError: if a value is out of range.
    """

    objective: str = "mcr"
    max_accuracy_drop: float | None = None
    standard_errors: float = 1.0
    significance: float | None = 0.05
    folds: int = 5
    repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SettingsError(f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        drop = self.max_accuracy_drop
        if drop is not None and not 0 <= drop <= 1:
            raise SettingsError(f"max-accuracy-drop is {drop:g}; expected a share from 0 to 1, such as 0.01")
        if not self.standard_errors >= 0:
            raise SettingsError(f"standard-errors is {self.standard_errors:g}; expected at least 0")
        if self.significance is not None and not 0 < self.significance < 1:
            raise SettingsError(f"significance is {self.significance:g}; expected a number between 0 and 1")
        for name, value, least in (("folds", self.folds, 2), ("repeats", self.repeats, 1), ("seed", self.seed, 0)):
            if value < least:
                raise SettingsError(f"{name} is {value}; expected a whole number, at least {least}")


@dataclass(frozen=True, eq=False)
class Choice:
    """A choice among K candidates, and all it rests on.

    Args:
        chosen: the candidate taken; 0 is the uncorrected prediction.
        values: (K,) the objective.
        gains: (K,) ``values`` minus that of candidate 0.
        gain_errors: (K,) standard errors of ``gains``.
        p_values: (K,) of the gains, one-sided, adjusted for the number of candidates; 1 for candidate 0.
        allowed: (K,) whether the accuracy is within ``max_accuracy_drop`` of candidate 0's.
    """

    chosen: int
    values: Floats
    gains: Floats
    gain_errors: Floats
    p_values: Floats
    allowed: Bools


def choose(
    labels: ArrayLike,
    preds: ArrayLike,
    strengths: ArrayLike,
    *,
    num_classes: int,
    smallest_class: int,
    rule: SelectionRule | None = None,
) -> Choice:
    """The choice alone, from all images, without the estimate of its worth (arguments and errors as above)."""
    rule = rule or SelectionRule()
    truth, found = np.asarray(labels, dtype=np.int64), np.asarray(preds, dtype=np.int64)
    strength = np.asarray(strengths, dtype=np.float64)
    _check(truth, found, strength, num_classes, smallest_class, rule)
    candidates = Candidates(truth, found == truth[:, None], strength, num_classes, smallest_class)
    return _choose(candidates, rule, np.random.default_rng(np.random.SeedSequence(rule.seed).spawn(1)[0]))


def stratified_folds(labels: ArrayLike, folds: int, random: np.random.Generator) -> Ints:
    """(N,) fold of each image, at random, each class spread over the folds as evenly as its number allows."""
    truth = np.asarray(labels)
    # Sorted by class and shuffled within: dealing out in turn then spreads every class, and the folds' sizes too.
    order = np.lexsort((random.random(len(truth)), truth))
    dealt = np.empty(len(truth), dtype=np.int64)
    dealt[order] = np.arange(len(truth)) % folds
    return np.asarray(random.permutation(folds)[dealt])


@dataclass(frozen=True, eq=False)
class Candidates:
    """``labels`` (N,), ``correct`` (N, K), ``strengths`` (K,)."""

    labels: Ints
    correct: Bools
    strengths: Floats
    num_classes: int
    smallest: int

    def of(self, images: Bools) -> Candidates:
        return Candidates(self.labels[images], self.correct[images], self.strengths, self.num_classes, self.smallest)

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


def _choose(candidates: Candidates, rule: SelectionRule, random: np.random.Generator) -> Choice:
    hits, totals = candidates.count_all()
    values = _measure(hits, totals, rule.objective, candidates.smallest)
    accuracy = hits.sum(axis=0) / totals.sum()
    drop = np.inf if rule.max_accuracy_drop is None else rule.max_accuracy_drop
    allowed = accuracy[0] - accuracy <= drop + _TIE
    left_out = _leave_out(candidates, rule, random)
    p_values = _adjusted_p_values(candidates, rule.objective, random)
    considered = allowed & (p_values <= (1.0 if rule.significance is None else rule.significance))
    considered[0] = True
    chosen = _mildest(values, considered, left_out, candidates.strengths, rule.standard_errors)
    return Choice(chosen, values, values - values[0], _error_of_difference(left_out, 0), p_values, allowed)


def _mildest(values: Floats, considered: Bools, left_out: Floats, strengths: Floats, standard_errors: float) -> int:
    """The one-standard-error rule."""
    candidates = np.flatnonzero(considered & np.isfinite(values))
    if len(candidates) == 0:
        return 0
    best = int(min(candidates, key=lambda k: (-values[k], strengths[k])))
    tolerance = standard_errors * _error_of_difference(left_out, best)
    near = [int(k) for k in candidates if values[best] - values[k] <= tolerance[k] + _TIE]
    return min(near, key=lambda k: (strengths[k], -values[k]))


def _leave_out(candidates: Candidates, rule: SelectionRule, random: np.random.Generator) -> Floats:
    """(repeats, folds, K) the objective without each fold."""
    values = []
    for _ in range(rule.repeats):
        hits, totals = candidates.count(stratified_folds(candidates.labels, rule.folds, random), rule.folds)
        values.append(_measure(hits.sum(axis=0) - hits, totals.sum(axis=0) - totals, rule.objective, candidates.smallest))
    return np.stack(values)


def _error_of_difference(left_out: Floats, reference: int) -> Floats:
    """(K,) standard error of each candidate's difference from the reference: the grouped jackknife."""
    difference = left_out - left_out[:, :, [reference]]
    folds = left_out.shape[1]
    variance = (folds - 1) * difference.var(axis=1)
    # Not known where a fold held all images of the class: nothing is told apart then.
    return np.asarray(np.sqrt(np.nan_to_num(variance, nan=np.inf).mean(axis=0)))


def _adjusted_p_values(candidates: Candidates, objective: str, random: np.random.Generator) -> Floats:
    """(K,) one-sided p-values of the gains over candidate 0, adjusted for all K by the largest statistic.

    If a candidate did nothing, which of the two predictions of an image is the corrected one would be arbitrary.
    All candidates are swapped with candidate 0 at once, so that how alike they are is accounted for.
    """
    hits, totals = candidates.count_all()
    observed = _measure(hits, totals, objective, candidates.smallest)
    observed = np.nan_to_num(observed - observed[0])
    swapped = _swapped_gains(candidates, hits, totals, objective, random)
    scale = np.sqrt((swapped**2).mean(axis=0))
    moving = scale > _TIE
    if not moving.any():
        return np.ones(len(observed))
    largest = (swapped[:, moving] / scale[moving]).max(axis=1)
    p_values = np.ones(len(observed))
    statistics = observed[moving] / scale[moving]
    p_values[moving] = (1 + (largest[:, None] >= statistics - 1e-9).sum(axis=0)) / (1 + len(largest))
    return p_values


def _swapped_gains(candidates: Candidates, hits: Floats, totals: Floats, objective: str, random: np.random.Generator) -> Floats:
    """(PERMUTATIONS, K) gains over candidate 0 with the two predictions of random images swapped."""
    change = candidates.correct.astype(np.int8) - candidates.correct[:, :1].astype(np.int8)
    moving = change.any(axis=1)
    rows = np.concatenate([candidates.labels[moving, None], change[moving]], axis=1)
    # Images of one class that fare alike under all candidates differ in nothing: count them.
    cells, counts = np.unique(rows, axis=0, return_counts=True)
    chunk = int(np.clip(_MAX_NUMBERS // max(hits.size, 1), 1, PERMUTATIONS))
    gains = []
    for start in range(0, PERMUTATIONS, chunk):
        number = min(chunk, PERMUTATIONS - start)
        moved = np.zeros((number, *hits.shape))
        for label in np.unique(cells[:, 0]):
            of_class = cells[:, 0] == label
            images = random.binomial(counts[of_class], 0.5, (number, int(of_class.sum())))
            moved[:, label] = images.astype(np.float64) @ cells[of_class, 1:].astype(np.float64)
        after = _measure(hits - moved, totals, objective, candidates.smallest)
        before = _measure(hits[:, :1] + moved, totals, objective, candidates.smallest)
        gains.append(np.nan_to_num(after - before))
    return np.concatenate(gains)


def _measure(hits: Floats, totals: Floats, objective: str, smallest: int) -> Floats:
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


def _check(
    labels: Ints, preds: Ints, strengths: Floats, num_classes: int, smallest_class: int, rule: SelectionRule
) -> None:
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
    if len(labels) < rule.folds:
        raise LabelsError(
            f"{len(labels)} labelled images cannot be parted into {rule.folds} folds; label more images or ask for"
            " fewer folds"
        )
    if len(np.unique(labels)) < 2:
        raise LabelsError(
            "all labelled images are of one class; a correction trades classes against each other, so label images"
            " of at least two"
        )
    if rule.objective == "scr" and not (labels == smallest_class).any():
        raise LabelsError(
            "the class with the fewest training images has no labelled image, so its recall cannot be the objective;"
            " label some, or choose another objective"
        )

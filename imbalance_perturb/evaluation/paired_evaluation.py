"""Evaluate base against perturbed predictions of the same labelled images: what the correction gains and costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.errors import LabelsError, SettingsError, first_few
from imbalance_perturb.evaluation.figures_in_use import Given, add_figures_in_use
from imbalance_perturb.evaluation.intervals import (
    DEFAULT_RESAMPLES,
    check_level,
    difference_interval,
    feasible_resamples,
    macro_f1_intervals,
    mean_recall_interval,
    wilson_interval,
    worst_recall_interval,
)
from imbalance_perturb.evaluation.metrics import (
    JointCounts,
    SparseMatrix,
    accuracy,
    count_jointly,
    f1_scores,
    macro_auc,
    macro_f1,
    mean_class_recall,
    precisions,
    recalls,
)
from imbalance_perturb.evaluation.results import METRICS, Changes, ClassScores, Difference, Evaluation, Interval, Scores
from imbalance_perturb.evaluation.significance import macro_f1_test, mcnemar_test, sign_flip_test
from imbalance_perturb.method.counts import ClassCounts


@dataclass(frozen=True, kw_only=True)
class IntervalOptions:
    """How intervals and tests are made: the same options and images give the same figures, to the last digit."""

    level: float = 0.95
    seed: int = 0
    resamples: int = DEFAULT_RESAMPLES

    def __post_init__(self) -> None:
        take_numbers(self)
        check_level(self.level)
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}; expected a whole number, at least 0")
        if self.resamples < 100:
            raise SettingsError(f"resamples is {self.resamples}; expected at least 100")

    def random(self) -> np.random.Generator:
        """A fresh source of draws, so that a figure does not depend on which others were computed before it."""
        return np.random.default_rng(self.seed)


def evaluate(
    labels: ArrayLike,
    base_preds: ArrayLike,
    preds: ArrayLike,
    counts: ClassCounts,
    *,
    base_probs: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    prevalence: ArrayLike | None = None,
    costs: ArrayLike | None = None,
    options: IntervalOptions | None = None,
) -> Evaluation:
    """Compare base and perturbed predictions of N images.

    Args:
        labels: (N,) true class indices.
        base_preds: (N,) class indices predicted on the unperturbed images.
        preds: (N,) class indices predicted on the perturbed images.
        counts: training images of the C classes.
        base_probs: optional (N, C) probabilities on the unperturbed images, for AUC and calibration.
        probs: optional (N, C) probabilities on the perturbed images.
        prevalence: optional (C,) shares of the classes at which PPV, NPV and costs are stated; by default the labels'.
        costs: optional (C, C) costs of predictions, at least 0, true classes as rows.
        options: confidence level, seed and number of resamples.

    Raises:
        LabelsError: if the arrays do not fit each other or the classes, or there is no image.
        SettingsError: if prevalence or costs do not fit the classes.
    """
    options = options or IntervalOptions()
    given = Given.check(base_probs, probs, prevalence, costs, counts.names)
    joint = count_jointly(labels, base_preds, preds, len(counts))
    if joint.total == 0:
        raise LabelsError("there is no labelled image with a prediction, so there is nothing to evaluate")
    f1_base, f1_perturbed, f1_difference = macro_f1_intervals(
        joint, level=options.level, resamples=options.resamples, random=options.random()
    )
    base_auc = None if base_probs is None else macro_auc(labels, base_probs)
    auc = None if probs is None else macro_auc(labels, probs)
    base = _score(joint.base, counts, base_auc, f1_base, options)
    perturbed = _score(joint.perturbed, counts, auc, f1_perturbed, options)
    paired = _Pairs.from_counts(joint)
    support = joint.base.sum(axis=1)
    evaluation = Evaluation(
        classes=counts.names,
        counts=counts.counts,
        smallest_class=counts.names[counts.smallest],
        n=joint.total,
        base=base,
        perturbed=perturbed,
        differences=_compare(joint, paired, base, perturbed, f1_difference, counts, options),
        gains=tuple(paired.gain(index, options) for index in range(len(counts))),
        changes=_changes(joint, paired),
        classes_without_labels=tuple(name for name, n in zip(counts.names, support, strict=True) if n == 0),
        failed=(),
        unlabelled=0,
        unused_labels=0,
        confidence_level=options.level,
        seed=options.seed,
        resamples=options.resamples,
        notes=(*_class_notes(counts, support), *_resampling_notes(support, options)),
    )
    return add_figures_in_use(evaluation, joint, labels, base_preds, preds, given, options)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """(C,) images of each class that only one of the two predictions got right, and all images.

    ``known`` are the gains of classes by these three numbers: of thousands of small classes many have the same.
    """

    lost: NDArray[np.int64]
    gained: NDArray[np.int64]
    totals: NDArray[np.int64]
    known: dict[tuple[int, int, int], Difference] = field(default_factory=dict)

    @classmethod
    def from_counts(cls, joint: JointCounts) -> _Pairs:
        table = joint.correctness
        return cls(table[:, 1, 0], table[:, 0, 1], table.sum(axis=(1, 2)))

    def interval(self, weights: NDArray[np.float64], options: IntervalOptions) -> Interval | None:
        return difference_interval(
            self.lost,
            self.gained,
            self.totals,
            weights,
            level=options.level,
            resamples=options.resamples,
            random=options.random(),
        )

    def gain(self, index: int, options: IntervalOptions) -> Difference | None:
        """The difference in recall of one class; ``None`` without images."""
        lost, gained, total = (int(column[index]) for column in (self.lost, self.gained, self.totals))
        if total == 0:
            return None
        if (lost, gained, total) not in self.known:
            only = _Pairs(self.lost[[index]], self.gained[[index]], self.totals[[index]])
            interval = only.interval(np.ones(1), options)
            test = mcnemar_test(lost, gained)
            self.known[lost, gained, total] = Difference((gained - lost) / total, interval, test, "exact McNemar")
        return self.known[lost, gained, total]


def _score(
    matrix: SparseMatrix, counts: ClassCounts, auc: float | None, f1: Interval | None, options: IntervalOptions
) -> Scores:
    hits, totals, found = matrix.diagonal(), matrix.sum(axis=1), recalls(matrix)
    worst = int(np.nanargmin(found))
    per_class = _score_classes(matrix, counts, options)
    smallest = per_class[counts.smallest]

    def bootstrap(weights: NDArray[np.int64]) -> Interval | None:
        return mean_recall_interval(
            hits, totals, weights, level=options.level, resamples=options.resamples, random=options.random()
        )

    intervals = {
        "mcr": bootstrap(np.ones_like(totals)),
        "scr": smallest.recall_interval,
        "worst_class_recall": worst_recall_interval(hits, totals, options.level),
        "accuracy": bootstrap(totals),
        "macro_f1": f1,
    }
    return Scores(
        mcr=mean_class_recall(matrix),
        scr=smallest.recall,
        worst_class_recall=float(found[worst]),
        worst_class=counts.names[worst],
        accuracy=accuracy(matrix),
        macro_f1=macro_f1(matrix),
        auc=auc,
        per_class=per_class,
        confusion_cells=tuple(zip(matrix.rows.tolist(), matrix.columns.tolist(), matrix.counts.tolist(), strict=True)),
        intervals={name: interval for name, interval in intervals.items() if interval is not None},
    )


def _score_classes(matrix: SparseMatrix, counts: ClassCounts, options: IntervalOptions) -> tuple[ClassScores, ...]:
    hits, recall, precision, f1 = matrix.diagonal(), recalls(matrix), precisions(matrix), f1_scores(matrix)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    return tuple(
        ClassScores(
            name=counts.names[c],
            count=counts.counts[c],
            support=int(support[c]),
            predicted=int(predicted[c]),
            recall=float(recall[c]) if support[c] else None,
            recall_interval=wilson_interval(int(hits[c]), int(support[c]), options.level),
            precision=float(precision[c]) if support[c] + predicted[c] else None,
            f1=float(f1[c]) if support[c] + predicted[c] else None,
        )
        for c in range(len(counts))
    )


def _compare(
    joint: JointCounts,
    paired: _Pairs,
    base: Scores,
    perturbed: Scores,
    f1_interval: Interval | None,
    counts: ClassCounts,
    options: IntervalOptions,
) -> dict[str, Difference]:
    values = {
        name: after - before
        for name in METRICS
        if (before := getattr(base, name)) is not None and (after := getattr(perturbed, name)) is not None
    }
    shares = sign_flip_test(paired.lost, paired.gained, paired.totals, random=options.random())
    small = paired.gain(counts.smallest, options)
    evidence: dict[str, tuple[Interval | None, float | None, str | None]] = {
        "mcr": (paired.interval(np.ones(len(counts)), options), shares, "paired permutation within classes"),
        "scr": (None, None, None) if small is None else (small.interval, small.p_value, small.test),
        "accuracy": (
            paired.interval(paired.totals.astype(np.float64), options),
            mcnemar_test(int(paired.lost.sum()), int(paired.gained.sum())),
            "exact McNemar",
        ),
        "macro_f1": (f1_interval, macro_f1_test(joint, random=options.random()), "paired permutation"),
    }
    nothing = (None, None, None)
    return {name: Difference(value, *evidence.get(name, nothing)) for name, value in values.items()}


def _changes(joint: JointCounts, paired: _Pairs) -> Changes:
    changed = int(joint.counts[joint.cells[:, 1] != joint.cells[:, 2]].sum())
    gained, lost = int(paired.gained.sum()), int(paired.lost.sum())
    return Changes(gained=gained, lost=lost, still_wrong=changed - gained - lost)


def _class_notes(counts: ClassCounts, support: NDArray[np.int64]) -> tuple[str, ...]:
    notes = []
    absent = [name for name, n in zip(counts.names, support, strict=True) if n == 0]
    if absent:
        notes.append(f"classes without labelled images are in no mean: {first_few(absent, 10)}")
    smallest = counts.names[counts.smallest]
    if smallest in absent:
        notes.append(f"there is no SCR: the class with the fewest training images, {smallest}, has no labelled image")
    ties = _names_with(counts, min(counts.counts))
    if len(ties) > 1:
        notes.append(f"{first_few(ties, 10)} tie for the fewest training images; SCR is the recall of {smallest}")
    few = [name for name, n in zip(counts.names, support, strict=True) if 0 < n < 5]
    if few:
        notes.append(f"fewer than 5 labelled images, so intervals say little: {first_few(few, 10)}")
    return tuple(notes)


def _resampling_notes(support: NDArray[np.int64], options: IntervalOptions) -> Iterator[str]:
    # A difference has three cells for each class: gained, lost, and neither.
    made = feasible_resamples(3 * int((support > 0).sum()), options.resamples)
    if made < options.resamples:
        yield f"with so many classes the intervals of means rest on fewer resamples: {made:,} for a difference"


def _names_with(counts: ClassCounts, count: int) -> Sequence[str]:
    return [name for name, found in counts.to_dict().items() if found == count]

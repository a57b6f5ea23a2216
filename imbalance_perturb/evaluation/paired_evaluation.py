"""Evaluate base against perturbed predictions of the same labelled images: what the correction gains and costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.errors import LabelsError, first_few
from imbalance_perturb.evaluation.evidence import Evidence, GroupEvidence, ImageEvidence, Kind
from imbalance_perturb.evaluation.figures_in_use import Given, add_figures_in_use
from imbalance_perturb.evaluation.groups import Groups
from imbalance_perturb.evaluation.interval_options import IntervalOptions
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
from imbalance_perturb.method.counts import ClassCounts

__all__ = ["IntervalOptions", "evaluate"]


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
    groups: Groups | ArrayLike | None = None,
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
        groups: (N,) names or numbers of the images' groups, such as lesions, where images are not independent:
            intervals and tests are then by group.

    Raises:
        LabelsError: if the arrays do not fit each other or the classes, or there is no image.
        SettingsError: if prevalence or costs do not fit the classes.
    """
    options = options or IntervalOptions()
    given = Given.check(base_probs, probs, prevalence, costs, counts.names)
    joint = count_jointly(labels, base_preds, preds, len(counts))
    if joint.total == 0:
        raise LabelsError("there is no labelled image with a prediction, so there is nothing to evaluate")
    if groups is not None and not isinstance(groups, Groups):
        groups = Groups.from_names("groups", np.asarray(groups))
    evidence = _find_evidence(joint, (labels, base_preds, preds), groups, options)
    f1_base, f1_perturbed, f1_difference = evidence.macro_f1()
    base_auc = None if base_probs is None else macro_auc(labels, base_probs)
    auc = None if probs is None else macro_auc(labels, probs)
    base = _score(joint.base, counts, base_auc, f1_base, evidence, "base")
    perturbed = _score(joint.perturbed, counts, auc, f1_perturbed, evidence, "perturbed")
    support = joint.base.sum(axis=1)
    evaluation = Evaluation(
        classes=counts.names,
        counts=counts.counts,
        smallest_class=counts.names[counts.smallest],
        n=joint.total,
        base=base,
        perturbed=perturbed,
        differences=_compare(evidence, base, perturbed, f1_difference, counts, support),
        gains=tuple(evidence.gain(index) for index in range(len(counts))),
        changes=_changes(joint),
        classes_without_labels=tuple(name for name, n in zip(counts.names, support, strict=True) if n == 0),
        failed=(),
        unlabelled=0,
        unused_labels=0,
        confidence_level=options.level,
        seed=options.seed,
        resamples=options.resamples,
        notes=(
            *_class_notes(counts, support),
            *_group_notes(np.asarray(labels), groups, counts, support),
            *_resampling_notes(evidence, groups, options),
        ),
        group=None if groups is None else groups.describe(),
    )
    return add_figures_in_use(evaluation, joint, (labels, base_preds, preds), given, evidence, groups, options)


def _find_evidence(
    joint: JointCounts, columns: Sequence[ArrayLike], groups: Groups | None, options: IntervalOptions
) -> Evidence:
    if groups is None:
        return ImageEvidence(joint, options)
    return GroupEvidence.of_images(joint, np.stack([np.asarray(column) for column in columns], axis=1), groups, options)


def _score(
    matrix: SparseMatrix,
    counts: ClassCounts,
    auc: float | None,
    f1: Interval | None,
    evidence: Evidence,
    kind: Kind,
) -> Scores:
    totals, found = matrix.sum(axis=1), recalls(matrix)
    worst = int(np.nanargmin(found))
    per_class = _score_classes(matrix, counts, evidence.recalls(kind))
    smallest = per_class[counts.smallest]
    intervals = {
        "mcr": evidence.mean_recall(kind, np.ones_like(totals)),
        "scr": smallest.recall_interval,
        "worst_class_recall": evidence.worst_recall(kind),
        "accuracy": evidence.mean_recall(kind, totals),
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


def _score_classes(
    matrix: SparseMatrix, counts: ClassCounts, intervals: Sequence[Interval | None]
) -> tuple[ClassScores, ...]:
    recall, precision, f1 = recalls(matrix), precisions(matrix), f1_scores(matrix)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    return tuple(
        ClassScores(
            name=counts.names[c],
            count=counts.counts[c],
            support=int(support[c]),
            predicted=int(predicted[c]),
            recall=float(recall[c]) if support[c] else None,
            recall_interval=intervals[c],
            precision=float(precision[c]) if support[c] + predicted[c] else None,
            f1=float(f1[c]) if support[c] + predicted[c] else None,
        )
        for c in range(len(counts))
    )


def _compare(
    evidence: Evidence,
    base: Scores,
    perturbed: Scores,
    f1_interval: Interval | None,
    counts: ClassCounts,
    support: NDArray[np.int64],
) -> dict[str, Difference]:
    values = {
        name: after - before
        for name in METRICS
        if (before := getattr(base, name)) is not None and (after := getattr(perturbed, name)) is not None
    }
    small = evidence.gain(counts.smallest)
    found: dict[str, tuple[Interval | None, float | None, str | None]] = {
        "mcr": (evidence.difference(np.ones(len(counts))), *evidence.test_mcr()),
        "scr": (None, None, None) if small is None else (small.interval, small.p_value, small.test),
        "accuracy": (evidence.difference(support.astype(np.float64)), *evidence.test_accuracy()),
        "macro_f1": (f1_interval, *evidence.test_macro_f1()),
    }
    nothing = (None, None, None)
    return {name: Difference(value, *found.get(name, nothing)) for name, value in values.items()}


def _changes(joint: JointCounts) -> Changes:
    changed = int(joint.counts[joint.cells[:, 1] != joint.cells[:, 2]].sum())
    gained, lost = (int(joint.correctness[:, before, 1 - before].sum()) for before in (0, 1))
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


def _group_notes(
    labels: NDArray[np.int64], groups: Groups | None, counts: ClassCounts, support: NDArray[np.int64]
) -> Iterator[str]:
    if groups is None:
        return
    pairs = np.unique(np.stack([labels, groups.ids], axis=1), axis=0)
    number = np.bincount(pairs[:, 0], minlength=len(counts))
    few = [name for name, n, images in zip(counts.names, number, support, strict=True) if n < 5 <= images]
    if few:
        yield f"images of fewer than 5 groups of {groups.column}, so intervals say little: {first_few(few, 10)}"


def _resampling_notes(evidence: Evidence, groups: Groups | None, options: IntervalOptions) -> Iterator[str]:
    made, many = evidence.resamples, "classes" if groups is None else "different groups"
    if made < options.resamples:
        yield f"with so many {many} the intervals of means rest on fewer resamples: {made:,} for a difference"


def _names_with(counts: ClassCounts, count: int) -> Sequence[str]:
    return [name for name, found in counts.to_dict().items() if found == count]

"""Score the predictions of several methods on the same images: figures, paired differences, advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.evaluation.groups import Groups
from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions, evaluate
from imbalance_perturb.evaluation.results import Difference, Evaluation
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.selection.candidates import Candidates
from imbalance_perturb.selection.comparison.advice import advise
from imbalance_perturb.selection.comparison.results import Advice, MethodResult
from imbalance_perturb.selection.max_t_test import adjusted_p_values


def score_lineup(
    methods: Sequence[MethodResult],
    labels: NDArray[np.int64],
    preds: Mapping[str, NDArray[np.int64]],
    counts: ClassCounts,
    *,
    objective: str = "mcr",
    options: IntervalOptions | None = None,
    base: str = "none",
    groups: Groups | None = None,
) -> tuple[tuple[MethodResult, ...], Advice, tuple[str, ...]]:
    """Figures of all methods with intervals and paired differences, the advice, and notes on the classes.

    Args:
        methods: without figures, in the order of the table; those that are available have predictions.
        labels: (N,) true class indices, N at least 1.
        preds: by method, (N,) predicted class indices; ``base`` is among them.
        counts: training images of the C classes.
        objective: what parameters were chosen for.
        options: of the intervals.
        base: the method that the others are compared with.
        groups: of the images, where these are not independent.
    """
    evaluated = {
        m: evaluate(labels, preds[base], found, counts, options=options, groups=groups) for m, found in preds.items()
    }
    results = [
        method
        if method.unavailable
        else _with_figures(method, evaluated[method.method], differences=method.method != base)
        for method in methods
    ]

    @cache
    def compare(first: str, second: str) -> Mapping[str, Difference]:
        return evaluate(labels, preds[first], preds[second], counts, options=options, groups=groups).differences

    def test(metric: str, usable: Sequence[str]) -> Mapping[str, float]:
        columns = np.stack([preds[base], *(preds[method] for method in usable)], axis=1)
        correct = columns == labels[:, None]
        candidates = Candidates(
            labels,
            correct,
            np.zeros(len(usable) + 1),
            len(counts),
            counts.smallest,
            groups=None if groups is None else groups.ids,
        )
        seed = (options or IntervalOptions()).seed
        return dict(zip(usable, adjusted_p_values(candidates, metric, np.random.default_rng(seed))[1:], strict=True))

    level = (options or IntervalOptions()).level
    advice = advise(results, compare, test=test, objective=objective, n=len(labels), level=level, base=base)
    return tuple(results), advice, evaluated[base].notes


def _with_figures(method: MethodResult, evaluation: Evaluation, *, differences: bool) -> MethodResult:
    return replace(
        method,
        scores=evaluation.perturbed,
        differences=evaluation.differences if differences else {},
        changed=evaluation.changes.total,
    )

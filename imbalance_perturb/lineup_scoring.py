"""From predictions of several methods on the same images to the figures, the costs and the advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.advice import advise
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.evaluation import IntervalOptions, evaluate
from imbalance_perturb.lineup import Advice, Entry
from imbalance_perturb.scores import Difference


@dataclass(frozen=True)
class Contestant:
    """A method before it is scored: everything of an :class:`Entry` but its figures."""

    method: str
    control: bool = False
    parameters: Mapping[str, float] | None = None
    agreement: tuple[int, int] | None = None
    passes: int = 1
    images_per_second: float | None = None
    unavailable: str | None = None


def score_lineup(
    contestants: Sequence[Contestant],
    labels: NDArray[np.int64],
    preds: Mapping[str, NDArray[np.int64]],
    counts: ClassCounts,
    *,
    objective: str = "mcr",
    options: IntervalOptions | None = None,
    base: str = "none",
) -> tuple[tuple[Entry, ...], Advice, tuple[str, ...]]:
    """Figures of all methods with intervals and paired differences, the advice, and notes on the classes.

    Args:
        contestants: in the order of the table; those that are available have predictions.
        labels: (N,) true class indices, N at least 1.
        preds: by method, (N,) predicted class indices; ``base`` is among them.
        counts: training images of the C classes.
        objective: what parameters were chosen for.
        options: of the intervals.
        base: the method that the others are compared with.
    """
    evaluated = {m: evaluate(labels, preds[base], found, counts, options=options) for m, found in preds.items()}
    entries = []
    for one in contestants:
        evaluation = None if one.unavailable else evaluated[one.method]
        entries.append(
            Entry(
                method=one.method,
                control=one.control,
                parameters=dict(one.parameters or {}),
                agreement=one.agreement,
                passes=one.passes,
                images_per_second=one.images_per_second,
                scores=None if evaluation is None else evaluation.perturbed,
                differences={} if evaluation is None or one.method == base else evaluation.differences,
                changed=0 if evaluation is None else evaluation.changes.total,
                unavailable=one.unavailable,
            )
        )

    @cache
    def compare(first: str, second: str) -> Mapping[str, Difference]:
        return evaluate(labels, preds[first], preds[second], counts, options=options).differences

    level = (options or IntervalOptions()).level
    advice = advise(entries, compare, objective=objective, n=len(labels), level=level, base=base)
    return tuple(entries), advice, evaluated[base].notes

"""Compute specificity and predictive values of each class against the rest, at the labels' mix of classes or another.

PPV (positive predictive value) is the share of the images given a class that are of it, NPV (negative predictive
value) the share of the images not given it that are not. Both depend on how frequent the classes are, and a test set
seldom has the mix of the place of use. So both can be stated at other shares π: with r_jk the share of the images of
class j that are given class k, PPV_k = π_k r_kk / Σ_j π_j r_jk and NPV_k = Σ_{j≠k} π_j (1 - r_jk) / Σ_j π_j (1 - r_jk).
At the shares of the labels these are the plain ratios of counts. The shares are taken as known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.evaluation.group_intervals import wilson_of_numbers
from imbalance_perturb.evaluation.intervals import feasible_resamples, percentiles
from imbalance_perturb.evaluation.metrics import SparseMatrix
from imbalance_perturb.evaluation.results import Interval

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.interval_options import IntervalOptions

Floats = NDArray[np.float64]

#: Least divisor: above zero, below any share.
_TINY = 1e-300


@dataclass(frozen=True)
class PredictiveValues:
    """One class against the rest, each in [0, 1]; ``None`` where there is no image to tell from."""

    specificity: float | None = None
    ppv: float | None = None
    npv: float | None = None
    specificity_interval: Interval | None = None
    ppv_interval: Interval | None = None
    npv_interval: Interval | None = None

    def to_dict(self, interval_key: str) -> dict[str, Any]:
        """The values as JSON has them; ``interval_key`` ends the names of the intervals."""
        names = ("specificity", "ppv", "npv")
        intervals: dict[str, Interval | None] = {name: getattr(self, f"{name}_interval") for name in names}
        return {
            **{name: getattr(self, name) for name in names},
            **{f"{name}_{interval_key}": entry and entry.to_list() for name, entry in intervals.items()},
        }


def stated_shares(support: NDArray[np.int64], given: Floats | None) -> tuple[Floats, Floats]:
    """Shares of the classes that have images, (C,) with sum 1: those given, or the labels'; and what was left out.

    The second is (C,) of what was given for classes without images: how those are predicted is not known.

    Raises:
        LabelsError: if no class with images has a share.
    """
    if given is None:
        return support / support.sum(), np.zeros(len(support))
    known = np.where(support > 0, given, 0.0)
    if not known.any():
        raise LabelsError("the prevalence is 0 for each class that has labelled images, so nothing can be stated at it")
    return known / known.sum(), np.asarray(given - known)


def predictive_values(
    matrix: SparseMatrix, shares: Floats, options: IntervalOptions, effects: Floats
) -> tuple[PredictiveValues, ...]:
    """Compute the values of all C classes.

    Specificity is of the images at hand, with Wilson's interval. The intervals of PPV and NPV are of draws: the recall
    from its Jeffreys posterior, the rate of false positives, a weighted sum of counts, from the gamma distribution with
    its mean and variance (Fay and Feuer 1997), half an image added to the counts.

    Args:
        matrix: (C, C) counts, true classes as rows.
        shares: (C,) of the images by true class, 0 for classes without images.
        options: confidence level, seed and number of resamples.
        effects: (C,) how many images of a class tell as much as one independent image.
    """
    support = matrix.sum(axis=1)
    total, hits, wrong = int(support.sum()), matrix.diagonal(), matrix.sum(axis=0) - matrix.diagonal()
    worth = np.divide(shares, support, out=np.zeros(len(support)), where=support > 0)
    false, variance = _false_positives(matrix, worth, support, effects)
    numbers = support / effects
    others = numbers.sum() - numbers
    specificity = np.divide(total - support - wrong, total - support, out=np.zeros(len(support)), where=support < total)
    around = wilson_of_numbers(specificity, np.where(support < total, others, 0), options.level)
    random, resamples = options.random(), feasible_resamples(2 * len(support), options.resamples)

    def one_class(c: int) -> PredictiveValues:
        if support[c] == 0:
            return PredictiveValues()
        recall = float(hits[c] / support[c])
        rates = _Rates(float(shares[c]), recall, float(numbers[c]), float(false[c]), float(variance[c]))
        ppv, npv = rates.ppv, rates.npv
        draws = rates.draw(float(others[c]), resamples, random)
        return PredictiveValues(
            specificity=float(specificity[c]) if support[c] < total else None,
            specificity_interval=around[c],
            ppv=ppv,
            ppv_interval=_around(ppv, draws[0], options.level),
            npv=npv,
            npv_interval=_around(npv, draws[1], options.level),
        )

    return tuple(map(one_class, range(len(support))))


@dataclass(frozen=True)
class _Rates:
    """One class: its share of all images, its recall and on how many independent images that rests.

    ``false`` is the share of all images that are wrongly given it, with its variance.
    """

    share: float
    recall: float
    number: float
    false: float
    variance: float

    @property
    def ppv(self) -> float | None:
        right = self.share * self.recall
        return right / (right + self.false) if right + self.false > 0 else None

    @property
    def npv(self) -> float | None:
        missed = self.share * (1 - self.recall)
        # Rounding may leave a hair below 0.
        spared = max(1 - self.share - self.false, 0.0)
        return spared / (missed + spared) if missed + spared > 0 else None

    def draw(self, others: float, resamples: int, random: np.random.Generator) -> tuple[Floats, Floats]:
        """(resamples,) draws of both."""
        hits = self.recall * self.number
        right = self.share * random.beta(hits + 0.5, self.number - hits + 0.5, resamples)
        # Half an independent image of the other classes, of which there are so many, as many of each as there are.
        half = 0.5 * (1 - self.share) / max(others, 1)
        mean, variance = self.false + half, self.variance + 2 * half**2
        if mean == 0:
            return np.ones(resamples), np.zeros(resamples)
        wrong = np.minimum(random.gamma(mean**2 / variance, variance / mean, resamples), 1 - self.share)
        return right / np.maximum(right + wrong, _TINY), (1 - self.share - wrong) / np.maximum(1 - right - wrong, _TINY)


def _false_positives(
    matrix: SparseMatrix, worth: Floats, support: NDArray[np.int64], effects: Floats
) -> tuple[Floats, Floats]:
    """(C,) shares of all images that are wrongly given each class, and the variances of these shares."""
    wrong = matrix.rows != matrix.columns
    rows, columns, counts = matrix.rows[wrong], matrix.columns[wrong], matrix.counts[wrong]
    means = np.bincount(columns, worth[rows] * counts, matrix.num_classes)
    spread = worth[rows] ** 2 * counts * (1 - counts / support[rows]) * effects[rows]
    return np.asarray(means), np.asarray(np.bincount(columns, spread, matrix.num_classes))


def _around(value: float | None, draws: Floats, level: float) -> Interval | None:
    """The interval of draws, stretched to the value where that is at an end (Brown, Cai and DasGupta 2001)."""
    found = percentiles(draws, level)
    return None if value is None or found is None else Interval(min(found.low, value), max(found.high, value))

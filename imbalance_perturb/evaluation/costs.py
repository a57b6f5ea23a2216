"""Compute what the errors of base and perturbed predictions cost, on average over the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.evaluation.intervals import CellDrawer, iter_joint_draws, percentiles
from imbalance_perturb.evaluation.metrics import IntArray, JointCounts
from imbalance_perturb.evaluation.results import Difference, Interval

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.interval_options import IntervalOptions

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExpectedCosts:
    """The mean cost of an image, in the units of the costs, and its difference (perturbed minus base)."""

    base: float
    perturbed: float
    intervals: Mapping[str, Interval]
    difference: Difference

    def to_dict(self, interval_key: str) -> dict[str, Any]:
        """The costs as JSON has them; ``interval_key`` names the entries with the intervals."""
        return {
            "base": self.base,
            "perturbed": self.perturbed,
            "difference": self.difference.to_dict(interval_key),
            interval_key: {name: interval.to_list() for name, interval in self.intervals.items()},
        }


def expected_costs(
    joint: JointCounts, costs: Floats, shares: Floats, options: IntervalOptions, drawer: CellDrawer | None = None
) -> ExpectedCosts:
    """Compute the expected cost of both predictions, with paired bootstrap intervals.

    Args:
        joint: of N images.
        costs: (C, C) at least 0, true classes as rows, predicted ones as columns.
        shares: (C,) of the images by true class, 0 for classes without images: those of the labels give the mean over
            the images, others what it would be over images so mixed.
        options: confidence level, seed and number of resamples.
        drawer: how images are drawn that are not independent.
    """
    support = joint.base.sum(axis=1)
    worth = np.divide(shares, support, out=np.zeros(len(support)), where=support > 0)
    by_cell = _costs_of(joint.cells, costs, worth)
    base, perturbed = (joint.counts @ by_cell).tolist()
    draws = np.concatenate(
        [
            images @ _costs_of(cells, costs, worth)
            for cells, images in iter_joint_draws(joint, options.resamples, options.random(), drawer)
        ]
    )
    named = {"base": draws[:, 0], "perturbed": draws[:, 1]}
    found = {name: percentiles(column, options.level) for name, column in named.items()}
    return ExpectedCosts(
        base=base,
        perturbed=perturbed,
        intervals={name: interval for name, interval in found.items() if interval is not None},
        difference=Difference(perturbed - base, percentiles(draws[:, 1] - draws[:, 0], options.level), None, None),
    )


def _costs_of(cells: IntArray, costs: Floats, worth: Floats) -> Floats:
    """(K, 2) what one image of each cell adds to the mean cost under the base and the perturbed prediction."""
    # In a draw -1 stands for any wrong class: the mean of what they cost.
    wrong = (costs.sum(axis=1) - costs.diagonal()) / max(len(costs) - 1, 1)
    label = cells[:, 0]
    return np.stack(
        [worth[label] * np.where(cells[:, kind] < 0, wrong[label], costs[label, cells[:, kind]]) for kind in (1, 2)],
        axis=1,
    )

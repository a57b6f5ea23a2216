"""Intervals of what a choice gains on images that had no part in it."""

from __future__ import annotations

import numpy as np

from imbalance_perturb.evaluation.evidence import difference_by_groups
from imbalance_perturb.evaluation.groups import Groups, count_kinds
from imbalance_perturb.evaluation.intervals import DEFAULT_RESAMPLES, difference_interval
from imbalance_perturb.evaluation.results import Interval
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.selection.candidates import Floats, Ints


def held_out_intervals(
    labels: Ints, lost: Floats, gained: Floats, counts: ClassCounts, level: float, seed: int, groups: Groups | None
) -> dict[str, Interval | None]:
    """Paired intervals of the differences in MCR, SCR and accuracy; ``None`` without images.

    Args:
        labels: (N,) true class indices.
        lost: (N,) how much of each image is right without correction alone, in [0, 1]: a mean over repeats.
        gained: (N,) how much with it alone.
        counts: training images of the C classes.
        level: confidence level.
        seed: of the resampling.
        groups: of the images, where these are not independent.
    """
    classes, smallest = len(counts), counts.smallest
    totals = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = {"mcr": np.ones(classes), "scr": np.ones(1), "accuracy": totals}
    if groups is None:
        down, up = (np.bincount(labels, weights=moved, minlength=classes) for moved in (lost, gained))

        def interval(weight: Floats, at: slice) -> Interval | None:
            random = np.random.default_rng(seed)
            return difference_interval(down[at], up[at], totals[at], weight, level=level, random=random)

        only = {"scr": slice(smallest, smallest + 1)}
        return {name: interval(weight, only.get(name, slice(None))) for name, weight in weights.items()}
    groups.check_length(len(labels))
    cells, place = np.unique(np.stack([labels, lost, gained], axis=1), axis=0, return_inverse=True)
    kinds = count_kinds(place.reshape(-1), len(cells), groups.ids)
    shares = np.stack([1 - cells[:, 1] - cells[:, 2], cells[:, 1], cells[:, 2]], axis=1)
    outcomes = difference_by_groups(kinds, cells[:, 0].astype(np.int64), shares, classes)
    of = {"scr": outcomes.of_class(smallest)}
    return {
        name: of.get(name, outcomes).interval(
            weight, level=level, resamples=DEFAULT_RESAMPLES, random=np.random.default_rng(seed)
        )
        for name, weight in weights.items()
    }

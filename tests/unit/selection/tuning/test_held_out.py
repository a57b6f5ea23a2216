from __future__ import annotations

import numpy as np
import pytest

from imbalance_perturb import ClassCounts
from imbalance_perturb.evaluation.groups import Groups
from imbalance_perturb.evaluation.intervals import difference_interval
from imbalance_perturb.selection.tuning.held_out import held_out_intervals

COUNTS = ClassCounts(("a", "b", "c"), (900, 90, 9))


def test_groups_of_one_image_and_of_eight() -> None:
    """Alone in its group an image counts as ever, a mean over repeats too; eight copies of each count as one."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 600, p=[0.6, 0.3, 0.1])
    # Most repeats choose alike.
    lost, gained = (random.choice([0, 0.9, 1], 600, p=[1 - p, p / 2, p / 2]) for p in (0.03, 0.08))
    lost[gained > 0] = 0
    totals, sums = np.bincount(labels), [np.bincount(labels, moved) for moved in (lost, gained)]
    alone = held_out_intervals(labels, lost, gained, COUNTS, 0.95, 0, None)
    assert alone["mcr"] == difference_interval(*sums, totals, np.ones(3), random=np.random.default_rng(0))
    single = held_out_intervals(labels, lost, gained, COUNTS, 0.95, 0, Groups.from_names("lesion", np.arange(600)))
    columns = [np.repeat(column, 8) for column in (labels, lost, gained)]
    groups = Groups.from_names("lesion", np.repeat(np.arange(600), 8))
    eight = held_out_intervals(columns[0], columns[1], columns[2], COUNTS, 0.95, 0, groups)
    by_image = held_out_intervals(columns[0], columns[1], columns[2], COUNTS, 0.95, 0, None)
    for name in ("mcr", "scr", "accuracy"):
        first, second, third, narrow = alone[name], single[name], eight[name], by_image[name]
        assert first is not None
        assert second is not None
        assert third is not None
        assert narrow is not None
        width = first.high - first.low
        assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=0.06 * width)
        assert (second.low, second.high) == pytest.approx((third.low, third.high), abs=0.06 * width)
        assert narrow.high - narrow.low < 0.5 * (third.high - third.low)

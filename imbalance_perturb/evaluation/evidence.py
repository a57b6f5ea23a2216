"""How sure the figures of two predictions are: intervals and tests, of images or of groups of images that are alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.evaluation.group_intervals import (
    GroupedOutcomes,
    cell_drawer,
    effective_wilson,
    worst_recall_by_groups,
)
from imbalance_perturb.evaluation.groups import GroupKinds, Groups, count_kinds
from imbalance_perturb.evaluation.interval_options import IntervalOptions
from imbalance_perturb.evaluation.intervals import (
    CellDrawer,
    difference_interval,
    f1_prior,
    feasible_resamples,
    macro_f1_intervals,
    mean_recall_interval,
    wilson_interval,
    worst_recall_interval,
)
from imbalance_perturb.evaluation.metrics import Floats, IntArray, JointCounts
from imbalance_perturb.evaluation.results import Difference, Interval
from imbalance_perturb.evaluation.significance import group_flip_test, macro_f1_test, mcnemar_test, sign_flip_test

#: Which of the two predictions.
Kind = Literal["base", "perturbed"]

#: A p-value, and what test it is of.
Tested = tuple[float, str]

Intervals3 = tuple[Interval | None, Interval | None, Interval | None]

#: What tests of whole groups are called.
_BY_GROUPS = "paired permutation of groups"


class Evidence(Protocol):
    """Intervals and tests of one pair of predictions, in the order in which reports have them."""

    @property
    def resamples(self) -> int:
        """How many the interval of a difference rests on, of those that were asked for."""

    def recalls(self, kind: Kind) -> list[Interval | None]:
        """(C,) intervals of the recalls; ``None`` for classes without images."""

    def worst_recall(self, kind: Kind) -> Interval | None:
        """The interval of the lowest recall."""

    def mean_recall(self, kind: Kind, weights: NDArray[np.number]) -> Interval | None:
        """The interval of the mean recall with (C,) weights."""

    def drawer(self) -> CellDrawer | None:
        """How images of joint counts are drawn; ``None``: each for itself."""

    def design_effects(self, kind: Kind) -> Floats:
        """(C,) how many images of a class tell as much as one independent image."""

    def macro_f1(self) -> Intervals3:
        """The intervals of the macro F1: base, perturbed, difference."""

    def difference(self, weights: NDArray[np.number]) -> Interval | None:
        """The interval of the difference between the mean recalls with (C,) weights."""

    def gain(self, index: int) -> Difference | None:
        """The difference in recall of one class; ``None`` without images."""

    def test_mcr(self) -> Tested:
        """The test of the difference in mean class recall."""

    def test_accuracy(self) -> Tested:
        """The test of the difference in accuracy."""

    def test_macro_f1(self) -> Tested:
        """The test of the difference in macro F1."""


@dataclass(frozen=True, eq=False)
class ImageEvidence:
    """Evidence that takes images as independent; it needs their joint counts alone.

    ``known`` are the gains of classes by images lost, gained and all: of thousands of small classes many have the same.
    """

    joint: JointCounts
    options: IntervalOptions
    known: dict[tuple[int, int, int], Difference] = field(default_factory=dict)

    @cached_property
    def pairs(self) -> tuple[IntArray, IntArray, IntArray]:
        """(C,) images of each class that only the base, only the perturbed prediction got right, and all images."""
        table = self.joint.correctness
        return table[:, 1, 0], table[:, 0, 1], table.sum(axis=(1, 2))

    @property
    def resamples(self) -> int:
        """Fewer with very many classes, which have three cells each: gained, lost, and neither."""
        return feasible_resamples(3 * int((self.pairs[2] > 0).sum()), self.options.resamples)

    def recalls(self, kind: Kind) -> list[Interval | None]:
        """Wilson's intervals."""
        hits, totals = self._counts(kind)
        return [wilson_interval(int(k), int(n), self.options.level) for k, n in zip(hits, totals, strict=True)]

    def worst_recall(self, kind: Kind) -> Interval | None:
        """From those of the classes."""
        return worst_recall_interval(*self._counts(kind), self.options.level)

    def mean_recall(self, kind: Kind, weights: NDArray[np.number]) -> Interval | None:
        """Smoothed bootstrap within classes."""
        level, resamples = self.options.level, self.options.resamples
        counts = self._counts(kind)
        return mean_recall_interval(*counts, weights, level=level, resamples=resamples, random=self.options.random())

    def drawer(self) -> CellDrawer | None:
        """Images are drawn each for itself."""
        return None

    def design_effects(self, kind: Kind) -> Floats:
        """Each tells as much as one."""
        return np.ones(self.joint.num_classes)

    def macro_f1(self) -> Intervals3:
        """Smoothed bootstrap within classes."""
        level, resamples = self.options.level, self.options.resamples
        return macro_f1_intervals(self.joint, level=level, resamples=resamples, random=self.options.random())

    def difference(self, weights: NDArray[np.number]) -> Interval | None:
        """Smoothed paired bootstrap within classes."""
        return self._difference(slice(None), weights)

    def gain(self, index: int) -> Difference | None:
        """With the exact McNemar test."""
        lost, gained, total = (int(column[index]) for column in self.pairs)
        if total == 0:
            return None
        if (lost, gained, total) not in self.known:
            interval, test = self._difference(slice(index, index + 1), np.ones(1)), mcnemar_test(lost, gained)
            self.known[lost, gained, total] = Difference((gained - lost) / total, interval, test, "exact McNemar")
        return self.known[lost, gained, total]

    def test_mcr(self) -> Tested:
        """Swaps within images."""
        return sign_flip_test(*self.pairs, random=self.options.random()), "paired permutation within classes"

    def test_accuracy(self) -> Tested:
        """McNemar's."""
        lost, gained, _ = self.pairs
        return mcnemar_test(int(lost.sum()), int(gained.sum())), "exact McNemar"

    def test_macro_f1(self) -> Tested:
        """Swaps within images."""
        return macro_f1_test(self.joint, random=self.options.random()), "paired permutation"

    def _counts(self, kind: Kind) -> tuple[IntArray, IntArray]:
        matrix = self.joint.base if kind == "base" else self.joint.perturbed
        return matrix.diagonal(), matrix.sum(axis=1)

    def _difference(self, classes: slice, weights: NDArray[np.number]) -> Interval | None:
        lost, gained, totals = (column[classes] for column in self.pairs)
        level, resamples = self.options.level, self.options.resamples
        random = self.options.random()
        return difference_interval(lost, gained, totals, weights, level=level, resamples=resamples, random=random)


@dataclass(frozen=True, eq=False)
class GroupEvidence:
    """Evidence that takes groups of images as independent, whatever their images have in common."""

    joint: JointCounts
    kinds: GroupKinds
    options: IntervalOptions
    known: dict[bytes, Difference] = field(default_factory=dict)

    @classmethod
    def of_images(cls, joint: JointCounts, images: IntArray, groups: Groups, options: IntervalOptions) -> GroupEvidence:
        """Evidence of (N, 3) images, of which ``joint`` has the counts."""
        groups.check_length(len(images))
        cells, place = np.unique(images, axis=0, return_inverse=True)
        return cls(joint, count_kinds(place.reshape(-1), len(cells), groups.ids), options)

    @cached_property
    def _right(self) -> dict[Kind, GroupedOutcomes]:
        label, base, perturbed = self.joint.cells.T
        return {"base": self._outcomes(base == label), "perturbed": self._outcomes(perturbed == label)}

    @cached_property
    def _change(self) -> GroupedOutcomes:
        label, base, perturbed = self.joint.cells.T
        change = (perturbed == label).astype(int) - (base == label).astype(int)
        shares = np.stack([change == 0, change < 0, change > 0], axis=1).astype(np.float64)
        return difference_by_groups(self.kinds, label, shares, self.joint.num_classes)

    @property
    def resamples(self) -> int:
        """Fewer with very many groups of different kinds."""
        return feasible_resamples(self._change.numbers, self.options.resamples)

    def recalls(self, kind: Kind) -> list[Interval | None]:
        """Wilson's intervals with the effective number of images."""
        return effective_wilson(self._right[kind], self.options.level)

    def worst_recall(self, kind: Kind) -> Interval | None:
        """From those of the classes."""
        return worst_recall_by_groups(self._right[kind], self.options.level)

    def mean_recall(self, kind: Kind, weights: NDArray[np.number]) -> Interval | None:
        """Smoothed bootstrap of groups."""
        return self._interval(self._right[kind], weights)

    def drawer(self) -> CellDrawer | None:
        """Whole groups."""
        outcomes = self._right["base"]
        extra, prior = f1_prior(outcomes.groups)
        return cell_drawer(self.kinds, self.joint.cells[:, 0], outcomes, extra, prior)

    def design_effects(self, kind: Kind) -> Floats:
        """Of being right."""
        return self._right[kind].design_effects

    def macro_f1(self) -> Intervals3:
        """Smoothed bootstrap of groups."""
        level, resamples, random = self.options.level, self.options.resamples, self.options.random()
        return macro_f1_intervals(self.joint, level=level, resamples=resamples, random=random, drawer=self.drawer())

    def difference(self, weights: NDArray[np.number]) -> Interval | None:
        """Smoothed paired bootstrap of groups."""
        return self._interval(self._change, weights)

    def gain(self, index: int) -> Difference | None:
        """With swaps within whole groups."""
        if self._change.totals[index] == 0:
            return None
        only = self._change.of_class(index)
        key = b"".join(part.tobytes() for part in (only.images, only.sums, only.counts))
        if key not in self.known:
            p_value = group_flip_test(*only.moves([1.0]), random=self.options.random())
            interval = self._interval(only, np.ones(1))
            self.known[key] = Difference(float(only.means[0]), interval, p_value, _BY_GROUPS)
        return self.known[key]

    def test_mcr(self) -> Tested:
        """Swaps within whole groups."""
        return self._flip(np.ones(self.joint.num_classes))

    def test_accuracy(self) -> Tested:
        """Swaps within whole groups."""
        return self._flip(self._change.totals)

    def test_macro_f1(self) -> Tested:
        """Swaps within whole groups."""
        return macro_f1_test(self.joint, random=self.options.random(), kinds=self.kinds), _BY_GROUPS

    def _outcomes(self, right: NDArray[np.bool_]) -> GroupedOutcomes:
        shares = np.stack([~right, right], axis=1).astype(np.float64)
        label = self.joint.cells[:, 0]
        return GroupedOutcomes.from_kinds(self.kinds, label, shares, self.joint.num_classes, [0.0, 1.0], [1.0, 1.0])

    def _interval(self, outcomes: GroupedOutcomes, weights: NDArray[np.number]) -> Interval | None:
        options = self.options
        return outcomes.interval(weights, level=options.level, resamples=options.resamples, random=options.random())

    def _flip(self, weights: Floats) -> Tested:
        return group_flip_test(*self._change.moves(weights), random=self.options.random()), _BY_GROUPS


def difference_by_groups(kinds: GroupKinds, label: IntArray, shares: Floats, classes: int) -> GroupedOutcomes:
    """What the difference between two predictions rests on.

    Args:
        kinds: of groups, over K cells.
        label: (K,) classes of the cells.
        shares: (K, 3) of an image that neither, only the base, only the perturbed prediction got right alone.
        classes: C.
    """
    # Two of the four outcomes of a pair (both right, both wrong) do not move the difference.
    return GroupedOutcomes.from_kinds(kinds, label, shares, classes, [0.0, -1.0, 1.0], [2.0, 1.0, 1.0])

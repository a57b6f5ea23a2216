"""Compute intervals where images come in groups that are alike: the bootstrap of :mod:`intervals`, of whole groups.

Each group has one weight in a draw, whatever classes its images are of: a gamma variate, so that with every image in a
group of its own the draws are those of the Dirichlet distributions there (the Bayesian bootstrap, Rubin 1981). The
pseudo-images are then pseudo-groups. Each counts for as many images as one independent image is worth: the design
effect 1 + rho (m - 1) (Kish 1965), m the mean group size as an image sees it, rho the correlation of two images of a
group and a class, estimated over all classes by the analysis of variance (Fleiss 1981). Where nothing is known of rho
it is 1.

A single recall has Wilson's interval with the effective number of images, n over the design effect, as is usual for
survey data (Korn and Graubard 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from imbalance_perturb.evaluation.groups import GroupKinds
from imbalance_perturb.evaluation.intervals import (
    LEAST_CONCENTRATION,
    MAX_NUMBERS,
    TINY,
    feasible_resamples,
    percentiles,
    smoothing,
)
from imbalance_perturb.evaluation.metrics import Floats, IntArray
from imbalance_perturb.evaluation.results import Interval


@dataclass(frozen=True, eq=False)
class GroupedOutcomes:
    """What became of the images of each class, added up by group: all that a mean over classes rests on.

    Entry e of E says that one group of kind ``kind[e]``, of which there are ``counts[kind[e]]``, holds ``images[e]``
    images of class ``label[e]``, whose values sum to ``sums[e]``. ``cells`` (C, R) are all images by outcome,
    ``values`` (R,) what an outcome is worth, ``prior`` (R,) how many pseudo-images it gets. ``rho`` is the correlation
    of values within group and class.
    """

    kind: IntArray
    label: IntArray
    images: Floats
    sums: Floats
    counts: Floats
    cells: Floats
    values: Floats
    prior: Floats
    rho: float

    @classmethod
    def from_kinds(
        cls, kinds: GroupKinds, label: IntArray, outcomes: Floats, classes: int, values: ArrayLike, prior: ArrayLike
    ) -> GroupedOutcomes:
        """Add up (K, R) shares of outcomes of cells that are of class ``label`` (K,)."""
        worth = np.asarray(values, dtype=np.float64)
        held = kinds.images.tocoo()
        kind, cell = held.coords
        place, entry = np.unique(kind.astype(np.int64) * classes + label[cell], return_inverse=True)
        images = _add_up(entry, held.data)
        sums = _add_up(entry, held.data * (outcomes @ worth)[cell])
        total = kinds.counts @ kinds.images
        cells = np.stack([_add_up(label, total * column, classes) for column in outcomes.T], axis=1)
        found = cls(
            place // classes, place % classes, images, sums, kinds.counts.astype(np.float64), cells, worth,
            np.asarray(prior, dtype=np.float64), 0.0,
        )  # fmt: skip
        return found.with_rho(found.correlation())

    def with_rho(self, rho: float) -> GroupedOutcomes:
        """The same with another correlation."""
        return GroupedOutcomes(
            self.kind, self.label, self.images, self.sums, self.counts, self.cells, self.values, self.prior, rho
        )

    @property
    def classes(self) -> int:
        """C."""
        return len(self.cells)

    @property
    def numbers(self) -> int:
        """How many are drawn for one resample."""
        return self.counts.size + self.cells.size

    @cached_property
    def totals(self) -> Floats:
        """(C,) images."""
        return np.asarray(self.cells.sum(axis=1))

    @cached_property
    def means(self) -> Floats:
        """(C,) mean values; 0 without images."""
        return np.asarray(self.cells @ self.values / np.maximum(self.totals, TINY))

    @cached_property
    def groups(self) -> Floats:
        """(C,) groups that hold images of the class."""
        return np.asarray(_add_up(self.label, self.counts[self.kind], self.classes))

    @cached_property
    def mean_sizes(self) -> Floats:
        """(C,) images of the class in the group of an image, on average over images; 1 without images."""
        squares = _add_up(self.label, self.counts[self.kind] * self.images**2, self.classes)
        return np.divide(squares, self.totals, out=np.ones(self.classes), where=self.totals > 0)

    @property
    def design_effects(self) -> Floats:
        """(C,) how many images of a class tell as much as one independent image."""
        return np.asarray(1 + self.rho * (self.mean_sizes - 1))

    def correlation(self) -> float:
        """The correlation of values within group and class, in [0, 1], by the analysis of variance over all classes."""
        if (self.mean_sizes <= 1).all():
            return 0.0
        spread = self.cells @ self.values**2 - self.totals * self.means**2
        # In classes that do not vary, or are one group, nothing is to be seen.
        seen = (spread > 1e-9 * self.totals) & (self.groups > 1)
        residuals = self.sums - self.images * self.means[self.label]
        between = _add_up(self.label, self.counts[self.kind] * residuals**2 / self.images, self.classes)
        # Each class counts by its own spread.
        unit = np.divide(self.totals, spread, out=np.zeros(self.classes), where=seen)
        freedom_between, freedom_within = (
            (a - b)[seen].sum() for a, b in ((self.groups, 1), (self.totals, self.groups))
        )
        if not seen.any() or freedom_within <= 0:
            return 1.0
        mean_between = (between * unit).sum() / freedom_between
        mean_within = ((spread - between) * unit).sum() / freedom_within
        size = (self.totals - self.mean_sizes)[seen].sum() / freedom_between
        return float(np.clip((mean_between - mean_within) / (mean_between + (size - 1) * mean_within), 0, 1))

    def of_class(self, index: int) -> GroupedOutcomes:
        """One class alone, with the correlation of all; groups that are alike in it are one kind."""
        mine = self.label == index
        rows, entry = np.unique(np.stack([self.images[mine], self.sums[mine]], axis=1), axis=0, return_inverse=True)
        counts = _add_up(entry.reshape(-1), self.counts[self.kind[mine]])
        each = np.arange(len(rows))
        return GroupedOutcomes(
            each, np.zeros_like(each), rows[:, 0], rows[:, 1], counts, self.cells[[index]], self.values, self.prior,
            self.rho,
        )  # fmt: skip

    def moves(self, weights: ArrayLike) -> tuple[Floats, IntArray]:
        """(U,) what a group of each kind adds to the weighted mean over classes, up to a factor, and (U,) groups."""
        share = np.divide(weights, self.totals, out=np.zeros(self.classes), where=self.totals > 0)
        moved = _add_up(self.kind, self.sums * share[self.label], len(self.counts))
        return np.asarray(moved), self.counts.astype(np.int64)

    def interval(
        self, weights: ArrayLike, *, level: float, resamples: int, random: np.random.Generator
    ) -> Interval | None:
        """Smoothed bootstrap interval, by groups, of the weighted mean of C class means; ``None`` without images."""
        kept = self.totals > 0
        if not kept.any():
            return None
        shares = np.where(kept, np.asarray(weights, dtype=np.float64), 0)
        return percentiles(self._draw(shares / shares.sum(), kept, resamples, random), level)

    def _draw(self, shares: Floats, kept: Any, resamples: int, random: np.random.Generator) -> Floats:
        """(resamples,) draws of the mean over the ``kept`` classes; ``shares`` (C,) are their weights."""
        groups = self.groups[kept]
        in_groups = self.cells[kept] * (groups / self.totals[kept])[:, None]
        added, pooled = smoothing(in_groups, self.prior, shares[kept] / groups)
        pseudo = added + pooled
        scale = np.ones(self.classes)
        scale[kept] = np.maximum(groups - 1 + added.sum(), LEAST_CONCENTRATION) / (groups + pseudo.sum(axis=1))
        shape = self.counts * self._mean_over_images(scale)
        pseudo_shape, effect = pseudo * scale[kept, None], self.design_effects[kept]
        held, worth = self._by_class(self.images), self._by_class(self.sums)
        resamples = feasible_resamples(self.numbers, resamples)
        chunk = max(1, MAX_NUMBERS // (5 * self.numbers))
        draws = []
        for start in range(0, resamples, chunk):
            number = min(chunk, resamples - start)
            weights = random.standard_gamma(shape, (number, len(shape)))
            extra = random.standard_gamma(pseudo_shape, (number, *pseudo_shape.shape)) * effect[:, None]
            images = (weights @ held)[:, kept] + extra.sum(axis=2)
            draws.append(((weights @ worth)[:, kept] + extra @ self.values) / np.maximum(images, TINY))
        return np.asarray(np.concatenate(draws) @ shares[kept])

    def _mean_over_images(self, values: Floats) -> Floats:
        """(U,) the mean of (C,) values over the images of a group of each kind."""
        total, images = (
            _add_up(self.kind, entries, len(self.counts)) for entries in (self.images * values[self.label], self.images)
        )
        return np.asarray(total / images)

    def _by_class(self, entries: Floats) -> Any:
        """(U, C) sparse."""
        from scipy.sparse import csr_array

        return csr_array((entries, (self.kind, self.label)), shape=(len(self.counts), self.classes))


def effective_wilson(outcomes: GroupedOutcomes, level: float) -> list[Interval | None]:
    """(C,) Wilson's score intervals of the class means, with the effective number of images; ``None`` without images.

    Args:
        outcomes: with values 0 and 1.
        level: confidence level.
    """
    return wilson_of_numbers(outcomes.means, outcomes.totals / outcomes.design_effects, level)


def wilson_of_numbers(means: Floats, number: Floats, level: float) -> list[Interval | None]:
    """(C,) Wilson's score intervals (1927) of means of (C,) images, which need not be whole; ``None`` for 0 images."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (means + z**2 / (2 * number)) / (1 + z**2 / number)
        spread = means * (1 - means) / number + (z / (2 * number)) ** 2
        half = z * np.sqrt(np.maximum(spread, 0)) / (1 + z**2 / number)
    ends = zip(np.maximum(centre - half, 0).tolist(), np.minimum(centre + half, 1).tolist(), strict=True)
    # Rounding must not take an end past a mean of 0 or 1.
    return [
        Interval(min(low, mean), max(high, mean)) if images > 0 else None
        for (low, high), mean, images in zip(ends, means.tolist(), number, strict=True)
    ]


def worst_recall_by_groups(outcomes: GroupedOutcomes, level: float) -> Interval | None:
    """An interval for the smallest of C recalls, put together as :func:`worst_recall_interval` does."""
    together = 1 - (1 - level) / max(int((outcomes.totals > 0).sum()), 1)
    lower, upper = ([i for i in effective_wilson(outcomes, at) if i is not None] for at in (level, together))
    return Interval(min(i.low for i in lower), min(i.high for i in upper)) if lower else None


def cell_drawer(
    kinds: GroupKinds, label: IntArray, outcomes: GroupedOutcomes, extra: IntArray, prior: Floats
) -> Callable[[int, np.random.Generator], Floats]:
    """Draw images of cells, for the macro F1: (B, K) observed cells, then (B, L) of pseudo-images.

    Args:
        kinds: over K cells.
        label: (K,) classes of the cells.
        outcomes: of these images, for the groups of each class and what correlates them.
        extra: (L,) classes of the cells of pseudo-images.
        prior: (L,) pseudo-groups in those.
    """
    groups = outcomes.groups
    total = groups + _add_up(extra, prior, len(groups))
    scale = np.maximum(total - 1, LEAST_CONCENTRATION) / np.maximum(total, 1)
    sizes = np.asarray((kinds.images @ scale[label]) / kinds.sizes)
    shape, pseudo_shape = kinds.counts * sizes, prior * scale[extra]
    effect = outcomes.design_effects[extra]

    def draw(number: int, random: np.random.Generator) -> Floats:
        weights = random.standard_gamma(shape, (number, len(shape)))
        pseudo = random.standard_gamma(pseudo_shape, (number, len(pseudo_shape))) * effect
        return np.concatenate([weights @ kinds.images, pseudo], axis=1)

    return draw


def _add_up(index: IntArray, values: ArrayLike, number: int = 0) -> Floats:
    """(number,) sums of the values of each index."""
    return np.bincount(index, np.asarray(values, dtype=np.float64), number).astype(np.float64)

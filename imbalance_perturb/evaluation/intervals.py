"""Compute confidence intervals for recalls, their means, and paired differences.

Images are resampled within each true class (stratified), since the number of images of a class is no outcome of
the prediction. The plain percentile bootstrap fails exactly where class imbalance bites: a class of 23 images
with recall 0 or 1 is the same in every resample, so it contributes no width at all, and neither does a class in
which no prediction changed. The bootstrap here is smoothed. A class with outcome counts x of n images is drawn
from a Dirichlet distribution (the Bayesian bootstrap of Rubin 1981) with

* mean (x + a + b) / (n + sum(a + b)), where ``a`` is Jeffreys's half an image for each outcome (Brown, Cai and
  DasGupta 2001), shared between the classes: 1/2 over the effective number of small classes. In full for every
  class it would pull the mean of many small classes towards 1/2, and widen many small changes into a large one.
  ``b`` is 1/n of an image with the rates of all classes together: a class of one image tells nothing of its spread;
* the variance of the multinomial bootstrap, p (1 - p) / n.

``benchmarks/coverage.py`` measures how often the intervals contain the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.evaluation.metrics import IntArray, JointCounts, mean_f1
from imbalance_perturb.evaluation.results import Interval

Floats = NDArray[np.float64]

#: Draws images (B, K + 2P), B times over: of the K cells of joint counts, and of two cells of pseudo-images for each of
#: the P classes that have images.
CellDrawer = Callable[[int, np.random.Generator], Floats]

#: Resamples of a bootstrap: the ends of an interval then vary by about 1 % of its width between seeds.
DEFAULT_RESAMPLES = 5000

#: Least concentration of a draw: below it gamma variates underflow to 0/0.
LEAST_CONCENTRATION = 0.1

#: Most draws that a bootstrap makes over all its cells; with very many cells it makes fewer resamples, though not less
#: than the second.
MAX_NUMBERS, _LEAST_RESAMPLES = 20_000_000, 500

#: Least divisor: above zero, below any share.
TINY = 1e-300


def feasible_resamples(cells: int, asked: int) -> int:
    """How many resamples of so many cells are drawn: those that were asked for, or fewer for very many cells."""
    return min(asked, max(MAX_NUMBERS // max(cells, 1), _LEAST_RESAMPLES))


def check_level(level: float) -> None:
    """Refuse what is no confidence level.

    Raises:
        SettingsError: unless it lies between 0.5 and 1.
    """
    if not 0.5 <= level < 1:
        raise SettingsError(f"confidence-level is {level:g}; expected a number from 0.5 to below 1, such as 0.95")


def wilson_interval(hits: int, total: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval (1927) for a share of ``total`` images; ``None`` without images."""
    if total == 0:
        return None
    return _wilson(hits, total, level)


def worst_recall_interval(hits: ArrayLike, totals: ArrayLike, level: float = 0.95) -> Interval | None:
    """An interval for the smallest of C recalls, whichever class it is.

    The lowest of the classes' lower limits is one for the minimum: the class that is truly worst is below its
    own with half the error only. The lowest of the upper limits needs all of them at once (Bonferroni).
    A resampled minimum would not do: it lies below the true one even on average.
    """
    pairs = [(int(k), int(n)) for k, n in zip(np.asarray(hits), np.asarray(totals), strict=True) if n > 0]
    if not pairs:
        return None
    together = 1 - (1 - level) / len(pairs)
    return Interval(min(_wilson(*p, level).low for p in pairs), min(_wilson(*p, together).high for p in pairs))


def mean_recall_interval(
    hits: ArrayLike,
    totals: ArrayLike,
    weights: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = DEFAULT_RESAMPLES,
    random: np.random.Generator,
) -> Interval | None:
    """Smoothed stratified bootstrap interval of the weighted mean of C recalls.

    Args:
        hits: (C,) images predicted right.
        totals: (C,) images; classes without any are left out.
        weights: (C,) weights of the mean, of which those of the classes left out are ignored: all equal for
            the MCR, ``totals`` for the accuracy.
        level: confidence level.
        resamples: number of draws.
        random: source of the draws.
    """
    right = np.asarray(hits, dtype=np.float64)
    cells = np.stack([np.asarray(totals) - right, right], axis=1)
    draws = _draw_weighted(cells, np.array([1.0, 1.0]), np.array([0.0, 1.0]), weights, resamples, random)
    return percentiles(draws, level)


def difference_interval(
    lost: ArrayLike,
    gained: ArrayLike,
    totals: ArrayLike,
    weights: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = DEFAULT_RESAMPLES,
    random: np.random.Generator,
) -> Interval | None:
    """Smoothed paired stratified bootstrap interval of a difference of weighted mean recalls.

    Args:
        lost: (C,) images that only the base prediction got right.
        gained: (C,) images that only the perturbed prediction got right.
        totals: (C,) images; classes without any are left out.
        weights: as in :func:`mean_recall_interval`.
        level: confidence level.
        resamples: number of draws.
        random: source of the draws.
    """
    down, up = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    cells = np.stack([np.asarray(totals) - down - up, down, up], axis=1)
    # Two of the four outcomes of a pair (both right, both wrong) do not move the difference.
    draws = _draw_weighted(cells, np.array([2.0, 1.0, 1.0]), np.array([0.0, -1.0, 1.0]), weights, resamples, random)
    return percentiles(draws, level)


def macro_f1_intervals(
    joint: JointCounts,
    *,
    level: float = 0.95,
    resamples: int = DEFAULT_RESAMPLES,
    random: np.random.Generator,
    drawer: CellDrawer | None = None,
) -> tuple[Interval | None, Interval | None, Interval | None]:
    """Smoothed paired stratified bootstrap intervals of the macro F1: base, perturbed and their difference.

    The pseudo-images are wrong in one of the two predictions, and there count for all other classes alike. ``drawer``
    says how images are drawn that are not independent.
    """
    if joint.total == 0:
        return None, None, None
    draws = _draw_macro_f1(joint, resamples, random, drawer)
    base, perturbed = draws[:, 0], draws[:, 1]
    return percentiles(base, level), percentiles(perturbed, level), percentiles(perturbed - base, level)


@lru_cache(maxsize=65536)
def _wilson(hits: int, total: int, level: float) -> Interval:
    # Half a second, which only a report has to wait for.
    from scipy.stats import binomtest

    # SciPy's binomial test brings its intervals; kept, since its p-value is most of the work and not needed.
    low, high = binomtest(hits, total).proportion_ci(level, method="wilson")
    return Interval(float(low), float(high))


def _shared_prior(influence: Floats) -> float:
    """Half an image over the effective number of classes; ``influence`` is what one image does to the figure."""
    return float(0.5 * (influence**2).sum() / influence.sum() ** 2)


def smoothing(cells: Floats, prior: Floats, influence: Floats) -> tuple[Floats, Floats]:
    """(R,) and (C, R) pseudo-images: Jeffreys's of each class, and what it borrows from all (see the module).

    Args:
        cells: (C, R) images by outcome; each class has some.
        prior: (R,) halves of an image for each outcome.
        influence: (C,) what one image of a class does to the figure.
    """
    totals = cells.sum(axis=1, keepdims=True)
    # Rates over all classes, weighted so that borrowing from them leaves the mean where it is.
    share = (influence / (totals[:, 0] + 1 / totals[:, 0]))[:, None] / totals
    pooled = (share * cells).sum(axis=0) / (share * totals).sum()
    return _shared_prior(influence) * prior, pooled / totals


def _shapes(cells: Floats, prior: Floats, influence: Floats) -> Floats:
    """(C, R) parameters of the classes' Dirichlet distributions over R outcomes (see the module)."""
    added, pooled = smoothing(cells, prior, influence)
    totals = cells.sum(axis=1, keepdims=True)
    smoothed = cells + added + pooled
    concentration = np.maximum(totals - 1 + added.sum(), LEAST_CONCENTRATION)
    return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True) * concentration)


def _draw_weighted(
    cells: Floats, prior: Floats, values: Floats, weights: ArrayLike, resamples: int, random: np.random.Generator
) -> Floats:
    """(resamples,) draws of the weighted mean over classes of the outcomes' mean ``values``."""
    kept = cells.sum(axis=1) > 0
    cells = cells[kept]
    if len(cells) == 0:
        return np.empty(0)
    shares = np.asarray(weights, dtype=np.float64)[kept]
    shares = shares / shares.sum()
    resamples = feasible_resamples(cells.size, resamples)
    draws = np.zeros(resamples)
    # One class at a time: 1,000 classes at once would be hundreds of megabytes.
    for shape, share in zip(_shapes(cells, prior, shares / cells.sum(axis=1)), shares, strict=True):
        gamma = random.standard_gamma(shape, (resamples, len(shape)))
        draws += share * (gamma @ values) / gamma.sum(axis=1)
    return draws


def f1_prior(support: NDArray[np.number]) -> tuple[IntArray, Floats]:
    """(2P,) classes of the cells of pseudo-images of the macro F1, and (2P,) pseudo-images, from (C,) images."""
    present = np.flatnonzero(support)
    return np.tile(present, 2), np.full(2 * len(present), _shared_prior(np.asarray(1 / support[present])))


def iter_joint_draws(
    joint: JointCounts, resamples: int, random: np.random.Generator, drawer: CellDrawer | None = None
) -> Iterator[tuple[IntArray, Floats]]:
    """Draw what other images of the same classes might have come to, B draws at a time.

    Yields (L, 3) label, base and perturbed prediction of each cell, where -1 stands for any wrong class, and (B, L)
    images in the cells, in each class as many as there are. ``drawer`` says how images that are not independent are
    drawn.
    """
    classes, support = joint.num_classes, joint.base.sum(axis=1)
    present = np.flatnonzero(support)
    # Beside the observed cells each class has two it may not have shown: right in one prediction, anywhere
    # else (-1) in the other.
    right, elsewhere = present, np.full(len(present), -1)
    cells = np.concatenate(
        [joint.cells, np.stack([present, right, elsewhere], 1), np.stack([present, elsewhere, right], 1)]
    )
    label = cells[:, 0]
    shape = np.concatenate([joint.counts, f1_prior(support)[1]])
    totals = np.bincount(label, shape, classes)[label]
    shape = shape / totals * np.maximum(totals - 1, LEAST_CONCENTRATION)
    of_class = _indicator(label, classes)
    resamples = feasible_resamples(len(cells), resamples)
    chunk = max(1, MAX_NUMBERS // (10 * len(cells)))
    for start in range(0, resamples, chunk):
        number = min(chunk, resamples - start)
        gamma = random.standard_gamma(shape, (number, len(shape))) if drawer is None else drawer(number, random)
        # In images of the class, so that the columns of different classes add up.
        images = gamma * (support / np.maximum(gamma @ of_class, TINY))[:, label]
        yield cells, images


def _draw_macro_f1(
    joint: JointCounts, resamples: int, random: np.random.Generator, drawer: CellDrawer | None
) -> Floats:
    """(resamples, 2) draws of the macro F1 of both predictions."""
    present = np.flatnonzero(joint.base.sum(axis=1))
    return np.concatenate(
        [
            np.stack([_f1_of_draws(images, cells, kind, present, joint) for kind in (1, 2)], axis=1)
            for cells, images in iter_joint_draws(joint, resamples, random, drawer)
        ]
    )


def _f1_of_draws(images: Floats, cells: IntArray, kind: int, present: IntArray, joint: JointCounts) -> Floats:
    """(B,) macro F1 of prediction ``kind`` (1 base, 2 perturbed), given (B, K) images in the cells."""
    label, preds, classes = cells[:, 0], cells[:, kind], joint.num_classes
    hit, known = preds == label, preds >= 0
    hits = images[:, hit] @ _indicator(label[hit], classes)
    given = images[:, known] @ _indicator(preds[known], classes)
    unknown = images[:, ~known]
    spread = unknown.sum(axis=1, keepdims=True) - np.zeros((1, classes))
    spread[:, present] -= unknown
    matrix = joint.base if kind == 1 else joint.perturbed
    denominators = given + spread / max(classes - 1, 1) + matrix.sum(axis=1)
    seen = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    return mean_f1(hits[:, seen], denominators[:, seen])


def _indicator(classes_of_cells: NDArray[Any], num_classes: int) -> Any:
    """(K, C) sparse: one in the column of each cell's class, to add cells up by class."""
    from scipy.sparse import csr_array

    rows = np.arange(len(classes_of_cells))
    return csr_array((np.ones(len(rows)), (rows, classes_of_cells)), shape=(len(rows), num_classes))


def percentiles(draws: Floats, level: float) -> Interval | None:
    """The interval between the two quantiles that leave out half of what ``level`` does each; ``None`` of no draws."""
    if len(draws) == 0:
        return None
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))

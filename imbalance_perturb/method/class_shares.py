"""The shares of the classes among unlabelled images, by maximum likelihood from a model's posteriors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: EM stops when no class's share moves by more than this, or after so many iterations.
EM_TOLERANCE, EM_ITERATIONS = 1e-7, 2000

#: Fewest resamples of a bootstrap, the products (images x classes x resamples) from which there are fewer than were
#: asked for, and the numbers held at a time.
_LEAST_RESAMPLES, _MAX_PRODUCTS, _MAX_NUMBERS = 200, 4_000_000_000, 4_000_000

#: Least share: a class is ruled out rather than lost, since the log of a share is what a correction needs.
_TINY = float(np.finfo(np.float32).tiny)


def fit_shares(posteriors: Floats, training: Floats) -> Floats:
    """Estimate the share of each class among images.

    The expectation-maximisation of Saerens, Latinne and Decaestecker (Neural Computation 2002): it takes the posteriors
    for calibrated under the training shares, and assumes that only the shares have shifted (label shift).

    Args:
        posteriors: (N, C), rows that sum to 1, N at least 1.
        training: (C,) shares of training, above 0, where the iteration starts.

    Returns:
        (C,) shares above 0, summing to 1.
    """
    weights = np.full((1, len(posteriors)), 1 / len(posteriors))
    return np.asarray(_maximise(posteriors, training, weights, training[None])[0])


def resample_shares(
    posteriors: Floats, training: Floats, shares: Floats, *, resamples: int, random: np.random.Generator
) -> Floats:
    """Estimate them again from images drawn with replacement: (R, C), for R of :func:`feasible_resamples`.

    Args:
        posteriors, training: as in :func:`fit_shares`.
        shares: (C,) what that gave, where each iteration starts.
        resamples: number of draws.
        random: source of the draws.
    """
    images = len(posteriors)
    resamples = feasible_resamples(posteriors.size, resamples)
    at_once = max(1, _MAX_NUMBERS // images)
    found = []
    for start in range(0, resamples, at_once):
        drawn = random.multinomial(images, np.full(images, 1 / images), size=min(at_once, resamples - start))
        found.append(_maximise(posteriors, training, drawn / images, np.repeat(shares[None], len(drawn), axis=0)))
    return np.concatenate(found)


def share_interval(shares: Floats, resampled: Floats, images: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """(C,) lower and upper ends of the percentile intervals of ``shares`` (C,), from resampled ones (R, C).

    A class that is in no image of the sample is in none of any resample. So an end is never nearer to 0 or 1 than where
    even a model without errors could not tell from so many images (Clopper and Pearson 1934, no image of the class).
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    unseen = tail ** (1 / images)
    return np.minimum(np.minimum(low, shares), unseen), np.maximum(np.maximum(high, shares), 1 - unseen)


def feasible_resamples(numbers: int, asked: int) -> int:
    """How many resamples of so many posteriors are drawn: those that were asked for, or fewer for very many."""
    return min(asked, max(_MAX_PRODUCTS // numbers, _LEAST_RESAMPLES))


def _maximise(posteriors: Floats, training: Floats, weights: Floats, start: Floats) -> Floats:
    """(B, C) shares for each of B weightings (B, N) of the images, which sum to 1, from (B, C) others."""
    ratios, shares = posteriors / training, start.copy()
    moving = np.arange(len(start))
    for _ in range(EM_ITERATIONS):
        before = shares[moving]
        # Both steps in one: p(c|x) ∝ posterior · share / training, and the new share is its mean over the images.
        after = before * ((weights[moving] / (before @ ratios.T)) @ ratios)
        after = np.maximum(after / after.sum(axis=1, keepdims=True), _TINY)
        shares[moving] = after
        moving = moving[np.abs(after - before).max(axis=1) > EM_TOLERANCE]
        if len(moving) == 0:
            break
    return shares

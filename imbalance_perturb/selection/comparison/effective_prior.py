"""The effective prior of a model: what its own posteriors say of the class mix that it was trained on.

Prior2Posterior (Bhat et al., WACV 2025, arXiv 2412.16540) takes the mean of the posteriors over the training images in
the place of the counts, which are not what a model has learned where training was re-balanced. Training images are not
at hand here, and a network knows them too well: the mean is over labelled images that it has not seen, weighted to the
class mix of the counts. The correction is an offset for each class, -tau log of that mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from imbalance_perturb.method.counts import ClassCounts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Least share, so that its logarithm is finite.
_TINY = float(np.finfo(np.float32).tiny)


def effective_prior(logits: NDArray[np.floating], labels: Ints, counts: ClassCounts) -> Floats:
    """Compute the mean of softmax(logits) over images weighted to the training mix: (C,) above 0, summing to 1.

    Args:
        logits: (N, C).
        labels: (N,) true class indices; classes without an image are left out of the mix.
        counts: training images of the C classes.
    """
    numbers = np.bincount(labels, minlength=len(counts))
    weights = np.array(counts.counts)[labels] / numbers[labels]
    posteriors = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    shares = np.maximum(weights @ posteriors / weights.sum(), _TINY)
    return np.asarray(shares / shares.sum())


def prior_offsets(prior: Floats, tau: float) -> tuple[float, ...]:
    """Compute -tau log of a prior (C,), with mean 0 and to four decimals, as :func:`fit_offsets` has them."""
    offsets = -tau * np.log(prior)
    # + 0.0: of tau 0 too, where they are -0.
    return tuple((np.round(offsets - offsets.mean(), 4) + 0.0).tolist())

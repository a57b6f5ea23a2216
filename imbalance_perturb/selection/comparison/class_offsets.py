"""Fit an offset for each class to labelled images: the best that arithmetic on logits can do with a number a class.

Balanced multinomial logistic regression on the logits with one common slope: softmax(a z + b), each class of images
weighing the same, the offsets b drawn towards 0 by a ridge. What it predicts is the largest of z + b / a.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from imbalance_perturb.selection.brier import class_weights, fitted_brier_scores
from imbalance_perturb.selection.group_folds import deal_folds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Ridges that are tried, and the parts that are held out in turn to choose one.
_RIDGES, _FOLDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), 5


def fit_offsets(
    logits: NDArray[np.floating], labels: Ints, num_classes: int, seed: int = 0, groups: Ints | None = None
) -> tuple[float, ...]:
    """Fit C offsets, with mean 0 and to four decimals, to logits (N, C) and labels (N,).

    The ridge is the one with the least class-balanced Brier score on parts of the images that had no part in the fit.
    Images of one of the (N,) groups stay together.
    """
    z = np.asarray(logits, dtype=np.float64)
    folds = deal_folds(labels, groups, _FOLDS, np.random.default_rng(seed))
    scores = []
    for ridge in _RIDGES:
        held_out = np.empty_like(z)
        for fold in range(_FOLDS):
            out = folds == fold
            held_out[out] = z[out] + _fit(z[~out], labels[~out], num_classes, ridge)
        narrow = fitted_brier_scores(held_out, labels, num_classes)
        scores.append(float((class_weights(labels, num_classes) @ narrow).min()))
    best = _fit(z, labels, num_classes, _RIDGES[int(np.argmin(scores))])
    return tuple(np.round(best - best.mean(), 4).tolist())


def _fit(z: Floats, labels: Ints, num_classes: int, ridge: float) -> Floats:
    """b / a, (C,), for one ridge."""
    weights = class_weights(labels, num_classes)
    rows = np.arange(len(labels))
    # In units of their spread the logits' slope is near 1, and the ridge means the same for every network.
    spread = float(np.median(z.max(axis=1) - z.mean(axis=1))) or 1.0
    scaled = z / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, offsets = np.exp(parameters[0]), parameters[1:]
        logs = log_softmax(slope * scaled + offsets, axis=1)
        error = np.exp(logs)
        error[rows, labels] -= 1
        error *= weights[:, None]
        value = -float(weights @ logs[rows, labels]) + ridge * float(offsets @ offsets) / num_classes
        gradient = error.sum(axis=0) + 2 * ridge * offsets / num_classes
        return value, np.concatenate([[slope * float((error * scaled).sum())], gradient])

    found = minimize(loss, np.zeros(1 + num_classes), jac=True, method="L-BFGS-B")
    return np.asarray(spread * found.x[1:] / np.exp(found.x[0]))

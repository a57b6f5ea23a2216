"""Class-balanced Brier scores of logits: the proper score that a choice among corrections goes by.

The recall of 23 images says little; how far their probabilities are from the truth says more, and a proper score
rewards nothing else. Each image weighs 1 / (C n_c), as in mean class recall; where errors have costs, as much as an
error of its class costs. A temperature is fitted for each
candidate: it changes no prediction, and a correction is not to win or lose by its confidence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Temperatures that are tried, in units of the logits' spread: first wide, then around the best of those.
_WIDE = 2.0 ** np.arange(-6.0, 4.5, 0.5)
NARROW = 2.0 ** np.arange(-0.5, 0.625, 0.125)

#: Numbers held at a time.
_MAX_NUMBERS = 4_000_000


def class_weights(labels: Ints, num_classes: int, importance: Floats | None = None) -> Floats:
    """(N,) 1 / (C n_c), C the classes that have images: they sum to 1, those of each class to 1 / C.

    With (C,) ``importance`` an image of class c weighs that, in proportion, so a class in all its share times that.
    """
    if importance is not None:
        weights = importance[labels]
        # A part of the images may hold none of the classes that matter.
        return np.asarray(weights / (weights.sum() or 1.0))
    totals = np.bincount(labels, minlength=num_classes)
    return np.asarray(1 / (totals[labels] * np.count_nonzero(totals)))


def brier_scores(logits: NDArray[np.floating], labels: Ints, temperatures: Floats) -> Floats:
    """(N, G) squared distance of softmax(z / T) from the true class's corner, in [0, 2], for each of G temperatures.

    Args:
        logits: (N, C).
        labels: (N,) true class indices.
    """
    scores = np.empty((len(labels), len(temperatures)))
    rows = max(1, _MAX_NUMBERS // max(logits.shape[1], 1))
    for start in range(0, len(labels), rows):
        z = logits[start : start + rows].astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        truth = labels[start : start + rows]
        for column, temperature in enumerate(temperatures):
            p = np.exp(z / temperature)
            p /= p.sum(axis=1, keepdims=True)
            right = p[np.arange(len(truth)), truth]
            # Σ (p - y)² = Σ p² - 2 p_true + 1, without a matrix of corners.
            scores[start : start + rows, column] = np.einsum("nc,nc->n", p, p) - 2 * right + 1
    return scores


def error_importance(costs: Floats) -> Floats:
    """(C,) what an error costs on average over the wrong classes, beyond a right prediction; from (C, C) costs."""
    classes = len(costs)
    wrong = (costs.sum(axis=1) - costs.diagonal()) / max(classes - 1, 1)
    return np.asarray(np.maximum(wrong - costs.diagonal(), 0))


def fitted_brier_scores(
    logits: NDArray[np.floating], labels: Ints, num_classes: int, importance: Floats | None = None
) -> Floats:
    """(N, G) Brier scores at :data:`NARROW` multiples of the temperature with the least weighted score."""
    spread = float(np.median(logits.max(axis=1) - logits.mean(axis=1), overwrite_input=True)) or 1.0
    weights = class_weights(labels, num_classes, importance)
    best = _WIDE[np.argmin(weights @ brier_scores(logits, labels, spread * _WIDE))]
    return brier_scores(logits, labels, spread * best * NARROW)

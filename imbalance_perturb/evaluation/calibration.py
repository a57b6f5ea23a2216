"""Measure how far probabilities are from the truth: Brier score, log-loss, calibration error, reliability curve.

All of them are of the test set's mix of classes. A correction for rare classes leaves that mix by intent: its
probabilities may serve to tell classes apart and still be wrong as frequencies, which :func:`mix_note` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.errors import printable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Bins of equal width from 0 to 1, of the calibration error and the reliability curve.
BINS = 15

#: From this factor on a mean probability that is not the class's share is worth a sentence.
_FACTOR = 1.25


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose prediction has a probability within one bin: its mean, and the share that is right."""

    confidence: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities of N images; less is better.

    Args:
        brier: mean over images of Σ_c (p_c - y_c)², in [0, 2].
        log_loss: mean over images of -ln p of the true class, p clipped to double precision's epsilon, as scikit-learn
            does.
        ece: class-wise expected calibration error, in [0, 1]: for each class Σ over 15 bins of equal width of
            (images in the bin / N) |mean p_c - share of the class|, and the mean of that over all C classes (Nixon et
            al. 2019, Kull et al. 2019).
        mean_probabilities: (C,) mean p_c over the images.
        curve: the bins that hold images, by the probability of the predicted class.
    """

    brier: float
    log_loss: float
    ece: float
    mean_probabilities: tuple[float, ...]
    curve: tuple[ReliabilityBin, ...]

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """The calibration as JSON has it."""
        return {
            "brier": self.brier,
            "log_loss": self.log_loss,
            "ece": self.ece,
            "mean_probability": dict(zip(names, self.mean_probabilities, strict=True)),
            "reliability": [
                {"confidence": entry.confidence, "accuracy": entry.accuracy, "images": entry.images}
                for entry in self.curve
            ],
        }


def calibrate(labels: Ints, preds: Ints, probs: Floats) -> Calibration:
    """Measure the calibration of N images.

    Args:
        labels: (N,) true class indices, at least one.
        preds: (N,) predicted class indices.
        probs: (N, C) probabilities, in class-index order.
    """
    rows = np.arange(len(labels))
    true = probs[rows, labels]
    tiny = np.finfo(np.float64).eps
    return Calibration(
        # Σ (p - y)² = Σ p² - 2 p_true + 1, without a matrix of corners.
        brier=float(np.mean(np.einsum("nc,nc->n", probs, probs) - 2 * true + 1)),
        log_loss=float(-np.log(np.clip(true, tiny, 1 - tiny)).mean()),
        ece=float(np.mean([_calibration_error(column, labels == c) for c, column in enumerate(probs.T)])),
        mean_probabilities=tuple(probs.mean(axis=0).tolist()),
        curve=_reliability(probs[rows, preds], preds == labels),
    )


def mix_note(
    labels: Ints, base_probs: Floats, probs: Floats, names: Sequence[str], level: float, groups: Ints | None = None
) -> str | None:
    """Say for which class the corrected probabilities are farthest from the labels' mix; ``None`` where for none.

    A class counts where its mean probability is off its share by a factor of 1.25 and by more than chance, a z-test of
    all classes at once (Bonferroni); of the sums over groups where images are not independent, ``groups`` (N,) from 0.
    """
    from scipy.stats import norm

    shares = np.bincount(labels, minlength=len(names)) / len(labels)
    limit = norm.isf((1 - level) / 2 / len(names))
    worst: int | None = None
    farthest = np.log(_FACTOR)
    for c in np.flatnonzero(shares).tolist():
        off = probs[:, c] - (labels == c)
        ratio = probs[:, c].mean() / shares[c]
        sums = off if groups is None else np.bincount(groups, off)
        sure = abs(sums.sum()) > limit * sums.std() * np.sqrt(len(sums))
        distance = abs(np.log(max(ratio, np.finfo(np.float64).tiny)))
        if sure and distance >= farthest:
            worst, farthest = c, distance
    if worst is None:
        return None
    ratio, before = (kind[:, worst].mean() / shares[worst] for kind in (probs, base_probs))
    nearer = abs(np.log(max(before, np.finfo(np.float64).tiny))) < farthest
    return (
        f"the corrected probabilities are not those of this mix of classes: for {printable(names[worst])} their mean is"
        f" {ratio:.2f} times its share of the labels ({before:.2f} times without correction); go by the predicted"
        f" classes{', and where a probability is needed by that of base_p_<class>' if nearer else ''}"
    )


def _bins(probs: Floats) -> Ints:
    """(N,) bin of each probability, as scikit-learn's ``calibration_curve`` has it: each holds its upper end."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probs)


def _calibration_error(probs: Floats, truth: NDArray[np.bool_]) -> float:
    off = np.bincount(_bins(probs), probs - truth, BINS)
    return float(np.abs(off).sum() / len(probs))


def _reliability(confidences: Floats, right: NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    position = _bins(confidences)
    images = np.bincount(position, minlength=BINS)
    total, hits = np.bincount(position, confidences, BINS), np.bincount(position, right, BINS)
    return tuple(
        ReliabilityBin(float(total[b] / images[b]), float(hits[b] / images[b]), int(images[b]))
        for b in np.flatnonzero(images)
    )

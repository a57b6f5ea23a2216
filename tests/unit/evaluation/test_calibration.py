from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from imbalance_perturb.evaluation.calibration import BINS, calibrate, mix_note

NAMES = ("nv", "mel", "df")


@pytest.fixture(scope="module")
def sample() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels of 500 images and overconfident probabilities, some of them exactly 0, 1 or at the edge of a bin."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 500, p=[0.8, 0.15, 0.05])
    logits = random.normal(size=(500, 3)) + 3 * np.eye(3)[labels]
    probs = np.exp(2 * logits)
    probs /= probs.sum(axis=1, keepdims=True)
    probs[:3] = [[1, 0, 0], [0, 0.2, 0.8], [1 / 3, 1 / 3, 1 / 3]]
    return labels, probs


def test_scores_are_those_of_scikit_learn(sample: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    """Brier score, log-loss and class-wise ECE equal what scikit-learn's functions give, class by class."""
    labels, probs = sample
    found = calibrate(labels, probs.argmax(axis=1), probs)
    assert found.brier == pytest.approx(sum(brier_score_loss(labels == c, probs[:, c]) for c in range(3)))
    assert found.log_loss == pytest.approx(log_loss(labels, probs))
    errors = []
    for c in range(3):
        right, mean = calibration_curve(labels == c, probs[:, c], n_bins=BINS)
        edges = np.linspace(0, 1, BINS + 1)
        images = np.bincount(np.searchsorted(edges[1:-1], probs[:, c]), minlength=BINS)
        errors.append(np.abs(right - mean) @ images[images > 0] / len(labels))
    assert found.ece == pytest.approx(np.mean(errors))
    assert found.mean_probabilities == pytest.approx(probs.mean(axis=0))


def test_the_curve_is_that_of_scikit_learn(sample: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    """The reliability curve is scikit-learn's, of being right against the probability of the predicted class."""
    labels, probs = sample
    preds = probs.argmax(axis=1)
    curve = calibrate(labels, preds, probs).curve
    right, mean = calibration_curve(preds == labels, probs.max(axis=1), n_bins=BINS)
    assert [entry.accuracy for entry in curve] == pytest.approx(right)
    assert [entry.confidence for entry in curve] == pytest.approx(mean)
    assert sum(entry.images for entry in curve) == len(labels)


def test_certain_and_right_is_zero() -> None:
    """Certain predictions that are all right have no error of any kind, certain wrong ones the largest."""
    labels = np.array([0, 1, 2, 2])
    found = calibrate(labels, labels, np.eye(3)[labels])
    assert (found.brier, found.ece) == (0.0, 0.0)
    assert found.log_loss == pytest.approx(0.0, abs=1e-12)
    wrong = (labels + 1) % 3
    found = calibrate(labels, wrong, np.eye(3)[wrong])
    assert found.brier == 2.0
    assert found.log_loss == pytest.approx(-np.log(np.finfo(float).eps))


def test_probabilities_of_another_mix_are_named_with_their_factor() -> None:
    """Calibrated probabilities give no sentence; multiplied for a rare class they give one, with class and factor."""
    random = np.random.default_rng(2)
    base = random.dirichlet([40, 5, 1], 4000)
    labels = (random.random(4000)[:, None] > base.cumsum(axis=1)).sum(axis=1)
    assert mix_note(labels, base, base, NAMES, 0.95) is None
    moved = base * [1, 1, 4]
    moved /= moved.sum(axis=1, keepdims=True)
    said = mix_note(labels, base, moved, NAMES, 0.95)
    factor = moved[:, 2].mean() / (labels == 2).mean()
    assert said is not None
    assert f"for df their mean is {factor:.2f} times its share of the labels" in said
    assert said.endswith("and where a probability is needed by that of base_p_<class>")


def test_a_factor_that_may_be_chance_is_not_named() -> None:
    """Five images of a class are too few to say that probabilities are off by a factor of 1.6."""
    labels = np.repeat([0, 1], [95, 5])
    probs = np.tile([0.92, 0.08, 0.0], (100, 1))
    assert mix_note(labels, probs, probs, NAMES, 0.95) is None


def test_images_of_one_group_are_no_evidence_each() -> None:
    """What 400 images make sure of is not sure where they are of 12 groups that are alike within."""
    of_group = np.repeat([0] * 10 + [1] * 2, 33)
    probs = np.tile([0.9, 0.1, 0.0], (len(of_group), 1))
    assert mix_note(of_group, probs, probs, NAMES, 0.95) is not None
    assert mix_note(of_group, probs, probs, NAMES, 0.95, np.repeat(np.arange(12), 33)) is None

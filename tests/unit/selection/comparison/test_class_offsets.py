from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from imbalance_perturb.selection.comparison.class_offsets import _fit, fit_offsets


def biased(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) logits of a calibrated classifier trained on shares 80:15:5, and labels with those shares."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, n, p=[0.8, 0.15, 0.05])
    x = 1.2 * np.eye(3)[labels] + random.normal(size=(n, 3)) * 0.8
    return 1.2 * x / 0.64 + np.log([0.8, 0.15, 0.05]), labels


def test_the_prior_is_what_is_taken_away() -> None:
    """On a calibrated classifier the offsets are those of logit adjustment with tau 1, and recalls rise as much."""
    z, labels = biased()
    offsets = np.array(fit_offsets(z, labels, 3))
    prior = np.log([0.8, 0.15, 0.05])
    assert offsets == pytest.approx(prior.mean() - prior, abs=0.25)
    assert offsets.mean() == pytest.approx(0, abs=1e-4)
    adjusted = balanced_accuracy_score(labels, (z - prior).argmax(1))
    assert balanced_accuracy_score(labels, (z + offsets).argmax(1)) == pytest.approx(adjusted, abs=0.01)
    assert adjusted > balanced_accuracy_score(labels, z.argmax(1)) + 0.05


def test_two_classes_are_scikit_learns_logistic_regression() -> None:
    """With two classes z is one feature: balanced LogisticRegression without penalty has the same offset."""
    z, labels = biased()
    kept = labels < 2
    z, labels = z[kept, :2], labels[kept]
    reference = LogisticRegression(C=np.inf, class_weight="balanced", tol=1e-10, max_iter=1000)
    reference.fit((z[:, 1] - z[:, 0])[:, None], labels)
    offset = _fit(z, labels, 2, ridge=0.0)
    assert offset[1] - offset[0] == pytest.approx(float(reference.intercept_[0] / reference.coef_[0, 0]), abs=2e-3)


def test_a_ridge_keeps_offsets_near_nothing_and_few_images_do_not_run_away() -> None:
    """The heavier the ridge the smaller the offsets; a class of one image, or none, gives finite ones."""
    z, labels = biased(300)
    sizes = [np.abs(_fit(z, labels, 3, ridge)).sum() for ridge in (0.0, 0.1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2]
    z, labels = z[labels == 0], labels[labels == 0]
    labels = labels.copy()
    labels[0] = 2
    assert np.isfinite(fit_offsets(z, labels, 3)).all()

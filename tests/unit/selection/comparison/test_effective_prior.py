from __future__ import annotations

import numpy as np
import pytest
import torch

import imbalance_perturb as ip
from imbalance_perturb.method.logit_corrections import add_offsets, adjust_logits
from imbalance_perturb.selection.comparison.effective_prior import effective_prior, prior_offsets

COUNTS = ip.ClassCounts(("a", "b", "c"), (800, 150, 50))


def images(trained_on: np.ndarray, per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of exact posteriors under a training mix, and labels, of as many images of each class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    x = rng.normal(size=len(labels)) + 1.5 * labels
    return -0.5 * (x[:, None] - 1.5 * np.arange(3)) ** 2 + np.log(trained_on) + rng.normal(size=(len(x), 1)), labels


def test_it_is_the_mean_posterior_over_the_training_mix() -> None:
    """Written out image by image: each class's mean of softmax, times its share of training."""
    z, labels = images(np.array([0.5, 0.3, 0.2]), 7)
    z, labels = z[:-4], labels[:-4]
    expected = np.zeros(3)
    for k in range(3):
        of_class = [np.exp(row) / np.exp(row).sum() for row, label in zip(z, labels, strict=True) if label == k]
        expected += COUNTS.counts[k] / 1000 * np.mean(of_class, axis=0)
    found = effective_prior(z, labels, COUNTS)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.sum() == pytest.approx(1)


def test_of_a_calibrated_model_it_is_the_class_mix_of_training() -> None:
    """However many labelled images each class has, the prior is the counts', and the offsets are logit adjustment."""
    share = np.array(COUNTS.counts) / 1000
    z, labels = images(share, 100_000)
    rng = np.random.default_rng(1)
    kept = rng.random(len(labels)) < np.array([0.2, 1.0, 0.6])[labels]
    found = effective_prior(z[kept], labels[kept], COUNTS)
    np.testing.assert_allclose(found, share, atol=0.01)
    logits = torch.from_numpy(z[:50])
    expected = adjust_logits(logits, COUNTS, 1.0).softmax(1)
    torch.testing.assert_close(add_offsets(logits, prior_offsets(share, 1.0)).softmax(1), expected, atol=1e-4, rtol=0)


def test_of_a_rebalanced_model_it_is_nearer_to_equal_shares() -> None:
    """Where training saw the classes alike, what the counts say would correct too much, the effective prior less."""
    z, labels = images(np.full(3, 1 / 3), 20_000)
    found = effective_prior(z, labels, COUNTS)
    assert found.max() < 0.8 - 0.1
    assert found.min() > 0.05 + 0.05


def test_a_class_without_images_and_no_strength() -> None:
    """The prior is above 0 for a class that no image has; tau 0 is no offset, not even -0."""
    z, labels = images(np.array([0.5, 0.3, 0.2]), 5)
    found = effective_prior(z[labels < 2], labels[labels < 2], COUNTS)
    assert (found > 0).all()
    assert found.sum() == pytest.approx(1)
    assert str(prior_offsets(found, 0.0)) == "(0.0, 0.0, 0.0)"
    assert sum(prior_offsets(found, 1.5)) == pytest.approx(0, abs=2e-4)

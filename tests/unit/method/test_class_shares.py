from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import binomtest

from imbalance_perturb.method import class_shares
from imbalance_perturb.method.class_shares import feasible_resamples, fit_shares, resample_shares, share_interval

numbers = st.lists(st.integers(1, 10_000), min_size=2, max_size=8)
seeds = st.integers(0, 2**32 - 1)

#: Centres of three classes on a line, in standard deviations of each.
CENTRES = 2.0 * np.arange(3)


def random_logits(seed: int, classes: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(40, classes)) * scale


def shares_of(values: list[int]) -> np.ndarray:
    return np.array(values) / np.sum(values)


def exact_posteriors(training: np.ndarray, truth: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Bayes' posteriors under the training shares, of images that are drawn by the true ones."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=images) + CENTRES[rng.choice(3, images, p=truth)]
    return np.asarray(softmax(-0.5 * (x[:, None] - CENTRES) ** 2 + np.log(training), axis=1))


def em_as_written(posterior: np.ndarray, training: np.ndarray, iterations: int) -> np.ndarray:
    """Saerens et al. 2002 line by line: E step for each image, M step the mean."""
    prior = training.copy()
    for _ in range(iterations):
        shifted = posterior * (prior / training)
        shifted /= shifted.sum(axis=1, keepdims=True)
        prior = shifted.mean(axis=0)
    return prior


@given(values=numbers, seed=seeds)
def test_em_is_the_iteration_as_written(values: list[int], seed: int) -> None:
    """The estimated shares are those of a plain transcription, above 0, and sum to one."""
    posteriors = softmax(random_logits(seed, len(values)), axis=1)
    found = fit_shares(posteriors, shares_of(values))
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()
    np.testing.assert_allclose(found, em_as_written(posteriors, shares_of(values), 2000), atol=2e-3)


@given(values=numbers, seed=seeds)
def test_em_maximises_the_likelihood(values: list[int], seed: int) -> None:
    """No other shares, as found by SciPy's optimiser, make the images more likely."""
    z = random_logits(seed, len(values), scale=1.0)
    ratios = log_softmax(z, axis=1) - np.log(shares_of(values))

    def cost(free: np.ndarray) -> float:
        return -float(logsumexp(ratios + free - logsumexp(free), axis=1).mean())

    best = minimize(cost, np.zeros(len(values)), method="L-BFGS-B").fun
    assert cost(np.log(fit_shares(softmax(z, axis=1), shares_of(values)))) <= best + 1e-5


def test_a_known_shift_is_found() -> None:
    """With exact posteriors and other shares of the classes, the estimate comes to those shares."""
    training, truth = np.array([0.8, 0.15, 0.05]), np.array([0.2, 0.3, 0.5])
    found = fit_shares(exact_posteriors(training, truth, 20_000, seed=0), training)
    np.testing.assert_allclose(found, truth, atol=0.02)


def test_a_resample_is_the_estimate_of_the_images_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is EM on the drawn images, each as often as it was drawn, however many are held at a time."""
    training = np.array([0.8, 0.15, 0.05])
    posteriors = exact_posteriors(training, np.array([0.2, 0.3, 0.5]), 300, seed=1)
    shares = fit_shares(posteriors, training)
    found = resample_shares(posteriors, training, shares, resamples=5, random=np.random.default_rng(3))
    drawn = np.random.default_rng(3).multinomial(300, np.full(300, 1 / 300), size=5)
    for row, times in zip(found, drawn, strict=True):
        np.testing.assert_allclose(row, em_as_written(np.repeat(posteriors, times, axis=0), training, 2000), atol=1e-4)
    monkeypatch.setattr(class_shares, "_MAX_NUMBERS", 600)
    again = resample_shares(posteriors, training, shares, resamples=5, random=np.random.default_rng(3))
    np.testing.assert_allclose(again, found, rtol=1e-12)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """With exact posteriors, 95% percentile intervals hold the true share in about 95% of 120 draws of images."""
    training, truth = np.array([0.8, 0.15, 0.05]), np.array([0.3, 0.3, 0.4])
    inside = []
    for seed in range(120):
        posteriors = exact_posteriors(training, truth, 400, seed)
        shares = fit_shares(posteriors, training)
        drawn = resample_shares(posteriors, training, shares, resamples=200, random=np.random.default_rng(seed))
        low, high = share_interval(shares, drawn, 400)
        inside.append((low <= truth) & (truth <= high))
    assert (np.abs(np.mean(inside, axis=0) - 0.95) < 0.05).all()


def test_a_class_in_no_image_may_be_rare_all_the_same() -> None:
    """Its interval ends where SciPy's exact binomial interval of no image in so many does, that of all begins there."""
    posteriors = np.tile([1 - 1e-12, 1e-12], (40, 1))
    shares = fit_shares(posteriors, np.array([0.5, 0.5]))
    drawn = resample_shares(posteriors, np.array([0.5, 0.5]), shares, resamples=10, random=np.random.default_rng(0))
    low, high = share_interval(shares, drawn, 40)
    exact = binomtest(0, 40).proportion_ci(0.95, method="exact").high
    assert (high[1], low[0]) == pytest.approx((exact, 1 - exact))
    assert (low <= shares).all()
    assert (shares <= high).all()


def test_very_many_posteriors_are_resampled_less_often() -> None:
    """Up to four thousand million products as asked; beyond that fewer, but not less than 200."""
    assert feasible_resamples(2000 * 7, 1000) == 1000
    assert feasible_resamples(10_000_000, 1000) == 400
    assert feasible_resamples(1_000_000_000, 1000) == 200

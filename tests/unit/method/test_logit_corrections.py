from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

from imbalance_perturb import ClassCounts
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.method.logit_corrections import (
    adjust_logits,
    estimate_prior,
    log_prior,
    normalise_rows,
    shift_prior,
)

numbers = st.lists(st.integers(1, 10_000), min_size=2, max_size=8)
seeds = st.integers(0, 2**32 - 1)


def make_counts(values: list[int]) -> ClassCounts:
    return ClassCounts([str(index) for index in range(len(values))], values)


def random_logits(seed: int, classes: int, n: int = 40, scale: float = 3.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, classes)) * scale)


@given(values=numbers, tau=st.floats(-1, 3), seed=seeds)
def test_logit_adjustment_is_the_formula(values: list[int], tau: float, seed: int) -> None:
    """z - tau log(n/Σn), as NumPy has it; tau 0 gives the very same logits."""
    counts, z = make_counts(values), random_logits(seed, len(values))
    expected = z.numpy() - tau * (np.log(values) - np.log(np.sum(values)))
    np.testing.assert_allclose(adjust_logits(z, counts, tau).numpy(), expected, atol=1e-12)
    assert adjust_logits(z, counts, 0.0) is z


def test_logit_adjustment_keeps_dtype_and_the_bayes_rule() -> None:
    """On exact log posteriors tau = 1 decides by the likelihood alone; the dtype stays that of the logits."""
    counts = make_counts([900, 90, 10])
    likelihood = random_logits(0, 3).float()
    posterior = likelihood + log_prior(counts).float()
    adjusted = adjust_logits(posterior, counts, 1.0)
    assert adjusted.dtype == torch.float32
    assert torch.equal(adjusted.argmax(1), likelihood.argmax(1))


@given(seed=seeds, tau=st.floats(0, 2), classes=st.integers(2, 8), with_bias=st.booleans())
def test_tau_normalisation_is_that_of_a_rescaled_layer(seed: int, tau: float, classes: int, with_bias: bool) -> None:
    """The logits are those of the layer with rows w / ||w||^tau, up to one factor for all, bias left as it is."""
    rng = np.random.default_rng(seed)
    w, h = rng.normal(size=(classes, 5)) * rng.uniform(0.2, 3, (classes, 1)), rng.normal(size=(30, 5))
    b = rng.normal(size=classes) * with_bias
    norms = np.sqrt((w**2).sum(1))
    common = np.exp(np.log(norms).mean())
    expected = h @ (w / (norms[:, None] / common) ** tau).T + b
    found = normalise_rows(*(torch.from_numpy(a) for a in (h @ w.T + b, norms, b)), tau)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    if not with_bias:
        # Kang et al. have neither bias nor common factor: the predictions are the same.
        paper = h @ (w / norms[:, None] ** tau).T
        assert (found.numpy().argmax(1) == paper.argmax(1)).all()


def test_tau_normalisation_at_its_ends() -> None:
    """tau 0 leaves the logits as they are, tau 1 makes all rows equally long, and a row of zeros is refused."""
    layer = nn.Linear(4, 3).double()
    h = torch.randn(6, 4, dtype=torch.float64)
    norms, bias = layer.weight.detach().norm(dim=1), layer.bias.detach()
    z = layer(h).detach()
    assert normalise_rows(z, norms, bias, 0.0) is z
    unit = h @ (layer.weight.detach() / norms[:, None]).T * norms.log().mean().exp() + bias
    torch.testing.assert_close(normalise_rows(z, norms, bias, 1.0), unit)
    with pytest.raises(SettingsError, match="each must be above 0"):
        normalise_rows(z, torch.tensor([1.0, 0.0, 2.0]), bias, 1.0)


def em_as_written(z: np.ndarray, training: np.ndarray, iterations: int) -> np.ndarray:
    """Saerens et al. 2002 line by line: E step for each image, M step the mean."""
    posterior = np.exp(z - logsumexp(z, axis=1, keepdims=True))
    prior = training.copy()
    for _ in range(iterations):
        shifted = posterior * (prior / training)
        shifted /= shifted.sum(axis=1, keepdims=True)
        prior = shifted.mean(axis=0)
    return prior


@given(values=numbers, seed=seeds)
def test_prior_shift_em_is_the_iteration_as_written(values: list[int], seed: int) -> None:
    """The estimated shares are those of a plain transcription, and sum to one."""
    counts, z = make_counts(values), random_logits(seed, len(values))
    found = estimate_prior(z, counts)
    assert found.sum().item() == pytest.approx(1)
    expected = em_as_written(z.numpy(), np.array(values) / np.sum(values), 2000)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


@given(values=numbers, seed=seeds)
def test_prior_shift_em_maximises_the_likelihood(values: list[int], seed: int) -> None:
    """No other shares, as found by SciPy's optimiser, make the images' logits more likely."""
    counts, z = make_counts(values), random_logits(seed, len(values), scale=1.0)
    ratios = (torch.log_softmax(z, 1) - log_prior(counts)).numpy()

    def cost(free: np.ndarray) -> float:
        shares = free - logsumexp(free)
        return -float(logsumexp(ratios + shares, axis=1).mean())

    best = minimize(cost, np.zeros(len(values)), method="L-BFGS-B").fun
    found = np.log(np.maximum(estimate_prior(z, counts).numpy(), 1e-300))
    assert cost(found) <= best + 1e-5


def test_prior_shift_em_finds_a_known_shift() -> None:
    """With exact posteriors and other shares of the classes, the estimate comes to those shares."""
    rng = np.random.default_rng(0)
    counts, truth = make_counts([800, 150, 50]), np.array([0.2, 0.3, 0.5])
    labels = rng.choice(3, 20_000, p=truth)
    x = rng.normal(size=20_000) + 2.0 * labels
    z = torch.from_numpy(-0.5 * (x[:, None] - 2.0 * np.arange(3)) ** 2) + log_prior(counts)
    found = estimate_prior(z, counts)
    np.testing.assert_allclose(found.numpy(), truth, atol=0.02)
    shifted = shift_prior(z, counts, found)
    right = lambda logits: (logits.argmax(1).numpy() == labels).mean()  # noqa: E731
    assert right(shifted) > right(z) + 0.1


def test_shifting_to_equal_shares_is_logit_adjustment() -> None:
    """Towards 1/C the shift is logit adjustment with tau 1, up to a constant; a share of 0 stays finite."""
    counts, z = make_counts([70, 20, 10]), random_logits(1, 3).float()
    shifted = shift_prior(z, counts, torch.full((3,), 1 / 3))
    torch.testing.assert_close(shifted.softmax(1), adjust_logits(z, counts, 1.0).softmax(1))
    assert shifted.dtype == torch.float32
    without = shift_prior(z, counts, torch.tensor([0.5, 0.5, 0.0]))
    assert torch.isfinite(without).all()
    assert (without.argmax(1) < 2).all()

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from imbalance_perturb import ClassCounts
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.method.logit_corrections import adjust_logits, log_prior, normalise_rows

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

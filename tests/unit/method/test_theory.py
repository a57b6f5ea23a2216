"""The claims of docs/theory.md, each one as numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imbalance_perturb import ClassCounts, PerturbedClassifier, target_distribution
from imbalance_perturb.method.logit_corrections import adjust_logits, log_prior
from imbalance_perturb.method.perturbation import LOGIT_GRADIENTS, gradient_sign, logit_gradient, perturb
from tests.analytic import as_module
from tests.reference import AnalyticModel

COUNTS = ClassCounts(("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df"), (4023, 668, 659, 308, 195, 86, 69))

unequal_counts = st.lists(st.integers(1, 10_000), min_size=2, max_size=10).filter(lambda n: len(set(n)) > 1)


def make_counts(numbers: list[int]) -> ClassCounts:
    return ClassCounts([str(index) for index in range(len(numbers))], numbers)


def centred_log_prior(counts: ClassCounts) -> Tensor:
    logs = log_prior(counts)
    return logs - logs.mean()


def jacobian(model: torch.nn.Module, x: Tensor) -> Tensor:
    """(N, C, D) of a model whose images do not touch each other."""
    full = torch.autograd.functional.jacobian(lambda batch: model(batch).sum(0), x)
    return full.transpose(0, 1).flatten(2)


@given(numbers=unequal_counts, factor=st.floats(1, 100))
def test_the_fixed_vector_is_the_centred_log_prior(numbers: list[int], factor: float) -> None:
    """1/C - p* = (log n_c - mean log n) / S with S = Σ log(M/n), whatever M is."""
    counts = make_counts(numbers)
    m = int(factor * max(numbers))
    u = 1 / len(counts) - target_distribution(counts, m=m)
    s = np.log(m / np.array(numbers)).sum()
    np.testing.assert_allclose(u.numpy(), centred_log_prior(counts).numpy() / s, atol=1e-12)


@given(numbers=unequal_counts, seed=st.integers(0, 2**32 - 1))
def test_with_a_prior_the_fixed_vector_is_the_log_ratio_of_the_shares(numbers: list[int], seed: int) -> None:
    """1/C - p* is log(π_c / w_c), centred, up to a positive factor, for the shares w of where the model is used."""
    shares = np.random.default_rng(seed).dirichlet(np.full(len(numbers), 5.0))
    u = 1 / len(numbers) - target_distribution(make_counts(numbers), prior=torch.from_numpy(shares)).numpy()
    ratio = np.log(np.array(numbers) / shares)
    centred = ratio - ratio.mean()
    np.testing.assert_allclose(u / np.linalg.norm(u), centred / np.linalg.norm(centred), atol=1e-9)


@given(numbers=unequal_counts, loss=st.sampled_from(sorted(LOGIT_GRADIENTS)), seed=st.integers(0, 2**32 - 1))
def test_at_large_temperature_every_loss_pulls_along_the_log_prior(numbers: list[int], loss: str, seed: int) -> None:
    """At T = 1000 the gradient of every loss with respect to the logits is parallel to the centred log prior."""
    counts = make_counts(numbers)
    z = torch.rand(8, len(counts), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 20 - 10
    gradient = logit_gradient(loss)(z, target_distribution(counts), 1000.0)
    similarity = torch.cosine_similarity(gradient, centred_log_prior(counts)[None], dim=1)
    assert (similarity > 1 - 1e-3).all()


def test_at_finite_temperature_a_pull_to_equal_logits_is_added() -> None:
    """T ∂ℓ/∂z = u + (z - mean z)/(C T) up to O(1/T²): the second part dominates where T is about the logits' size."""
    z = torch.randn(5, 7, dtype=torch.float64) * 4
    target = target_distribution(COUNTS)
    u, centred = 1 / 7 - target, z - z.mean(1, keepdim=True)
    errors = []
    for temperature in (100.0, 200.0, 400.0):
        found = logit_gradient("cross-entropy")(z, target, temperature)
        errors.append((found - u - centred / (7 * temperature)).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)
    assert (centred / 7).norm() / 1.0 > 5 * u.norm()  # at T = 1
    assert (centred / 7).norm() / 1000.0 < 0.05 * u.norm() * 5**0.5  # at T = 1000, over 5 images


def test_to_first_order_logits_move_by_a_jacobian_product() -> None:
    """z(x̃) - z(x) = -eps J sign(Jᵀu) + O(eps²), and along u by exactly -eps ||Jᵀu||₁."""
    model = as_module(AnalyticModel.random(0, features=20, hidden=16, classes=7))
    x = torch.randn(6, 20, dtype=torch.float64)
    target = target_distribution(COUNTS)
    u = 1 / 7 - target
    j = jacobian(model, x)
    pulled = torch.einsum("ncd,c->nd", j, u)
    first_order = -torch.einsum("ncd,nd->nc", j, pulled.sign())
    torch.testing.assert_close(first_order @ u, -pulled.abs().sum(1))
    # T large enough that no sign differs from that of the limit.
    sign = gradient_sign(model, x, target, temperature=1e9).sign
    assert torch.equal(sign.double(), pulled.sign())
    errors = [
        ((model(perturb(model, x, target, eps=eps, temperature=1e9)) - model(x)) - eps * first_order).abs().max().item()
        for eps in (1e-3, 5e-4, 2.5e-4)
    ]
    assert errors[0] < 0.02 * 1e-3 * first_order.abs().max()
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_strength_is_that_of_logit_adjustment_with_a_tau_of_the_image() -> None:
    """Along the log prior, a step of eps is logit adjustment with tau(x) = eps ||Jᵀl||₁/||l||², to first order."""
    model = as_module(AnalyticModel.random(1, features=20, hidden=16, classes=7))
    x = torch.randn(6, 20, dtype=torch.float64)
    prior, eps = centred_log_prior(COUNTS), 1e-5
    tau = eps * torch.einsum("ncd,c->nd", jacobian(model, x), prior).abs().sum(1) / prior.square().sum()
    moved = model(perturb(model, x, target_distribution(COUNTS), eps=eps, temperature=1e9)) - model(x)
    torch.testing.assert_close(-(moved @ prior) / prior.square().sum(), tau, rtol=1e-3, atol=0)
    assert tau.max() > 1.2 * tau.min()
    adjusted = adjust_logits(model(x), COUNTS, tau[0].item()) - model(x)
    torch.testing.assert_close(adjusted[0] @ prior, moved[0] @ prior, rtol=1e-3, atol=0)


def test_a_linear_model_is_moved_by_the_same_offset_everywhere() -> None:
    """Where the logits are linear in the input, perturbation adds one and the same vector to all images' logits."""
    model = torch.nn.Linear(30, 7).double()
    x = torch.randn(50, 30, dtype=torch.float64)
    moved = model(perturb(model, x, target_distribution(COUNTS), eps=0.01)) - model(x)
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))


def test_a_step_at_a_hidden_layer_lowers_the_log_prior_by_the_gradient_there() -> None:
    """l.(z~ - z) = -eps ||J_h^T l||_1 to first order, J_h at the front's output; a fixed offset if that is constant."""
    front = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU()).double()
    back = as_module(AnalyticModel.random(2, features=20, hidden=16, classes=7))
    x, eps, prior = torch.randn(6, 12, dtype=torch.float64), 1e-5, centred_log_prior(COUNTS)
    debiased = PerturbedClassifier(back, COUNTS, eps=eps, temperature=1e9, front=front)
    base, moved = debiased.predict_both(x)
    torch.testing.assert_close(base, back(front(x)))
    pulled = torch.einsum("ncd,c->nd", jacobian(back, front(x).detach()), prior).abs().sum(1)
    torch.testing.assert_close((base - moved) @ prior, eps * pulled, rtol=1e-3, atol=0)
    assert pulled.max() > 1.2 * pulled.min()
    linear = PerturbedClassifier(torch.nn.Linear(20, 7).double(), COUNTS, eps=0.1, temperature=1e9, front=front)
    base, moved = linear.predict_both(x)
    torch.testing.assert_close(moved - base, (moved - base)[:1].expand_as(base))


@given(numbers=st.lists(st.integers(1, 10_000), min_size=2, max_size=2).filter(lambda n: n[0] != n[1]))
def test_with_two_classes_the_counts_say_only_which_is_smaller(numbers: list[int]) -> None:
    """p* is one-hot and the fixed vector (1/2, -1/2), so the step knows nothing of how unequal the counts are."""
    target = target_distribution(make_counts(numbers))
    small = int(numbers[1] < numbers[0])
    assert target.tolist() == [float(small == 0), float(small == 1)]
    model = as_module(AnalyticModel.random(2, features=12, hidden=8, classes=2))
    x = torch.randn(4, 12, dtype=torch.float64)
    j = jacobian(model, x)
    margin = j[:, small] - j[:, 1 - small]
    assert torch.equal(gradient_sign(model, x, target, temperature=1e9).sign.double(), -margin.sign())


class _Groups(torch.nn.Module):
    """A true log odds of two classes, stated too boldly in one of two groups of images: z = k(group) · log odds.

    Inputs are (N, 2): the evidence t, and the group, which stretches the evidence but is not differentiated (it is
    far from where it would change).
    """

    def __init__(self, slopes: tuple[float, float], offset: tuple[float, float], log_odds: float) -> None:
        super().__init__()
        self.slopes, self.offset, self.log_odds = slopes, offset, log_odds

    def forward(self, x: Tensor) -> Tensor:
        group = (x[:, 1].detach() > 0).long()
        slope, offset = torch.tensor(self.slopes).to(x)[group], torch.tensor(self.offset).to(x)[group]
        z = slope * (x[:, 0] + self.log_odds) + offset
        return torch.stack([torch.zeros_like(z), z], dim=1)


def _recall(logits: Tensor, labels: Tensor) -> float:
    right = logits.argmax(1) == labels
    return torch.stack([right[labels == c].double().mean() for c in (0, 1)]).mean().item()


def _two_groups(n: int = 40_000) -> tuple[Tensor, Tensor]:
    """Evidence t of unit-variance Gaussians at ∓1 for the two classes (log odds 2 t), halved to slope 1, and groups."""
    labels = torch.arange(n) % 2
    t = 2 * (torch.randn(n, dtype=torch.float64) + (2 * labels - 1))
    group = torch.where(torch.rand(n) < 0.5, 1.0, -1.0).double()
    return torch.stack([t, group], 1), labels


PAIR = ClassCounts(("common", "rare"), (900, 100))


def _best(model: _Groups, x: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """MCR of the Bayes rule for balanced classes, of the best fixed offset, and of the best step."""
    bayes = _recall(torch.stack([torch.zeros(len(x)), x[:, 0]], 1), labels)
    z, target = model(x), target_distribution(PAIR)
    fixed = max(_recall(adjust_logits(z, PAIR, tau), labels) for tau in np.linspace(0, 6, 61))
    moved = max(_recall(model(perturb(model, x, target, eps=eps)), labels) for eps in np.linspace(0, 2 * np.log(9), 61))
    return bayes, fixed, moved


def test_a_step_beats_every_fixed_offset_where_sensitivity_follows_the_fault() -> None:
    """Where logits are stretched differently from image to image, the step is stretched alike, and is Bayes-optimal."""
    x, labels = _two_groups()
    model = _Groups(slopes=(0.5, 4.0), offset=(0.0, 0.0), log_odds=-float(np.log(9)))
    bayes, fixed, moved = _best(model, x, labels)
    assert moved == pytest.approx(bayes, abs=0.002)
    assert fixed < bayes - 0.02


def test_a_fixed_offset_is_optimal_where_the_model_is_calibrated() -> None:
    """With exact posteriors tau = 1 is the Bayes rule for balanced classes, which no step can beat."""
    x, labels = _two_groups()
    model = _Groups(slopes=(1.0, 1.0), offset=(0.0, 0.0), log_odds=-float(np.log(9)))
    bayes, fixed, moved = _best(model, x, labels)
    assert _recall(adjust_logits(model(x), PAIR, 1.0), labels) == pytest.approx(bayes, abs=1e-12)
    assert moved <= fixed + 0.002


def test_a_fixed_offset_beats_every_step_where_sensitivity_says_nothing() -> None:
    """Where sensitivity differs between images that all need the same offset, the step over- and undershoots."""
    x, labels = _two_groups()
    # Both groups lack the same log 9; the second is steeper in its own evidence, which is that much more telling.
    scale = torch.where(x[:, 1] > 0, 4.0, 1.0)
    stretched = torch.stack([x[:, 0] / scale, x[:, 1]], 1)
    model = _Groups(slopes=(1.0, 4.0), offset=(-float(np.log(9)),) * 2, log_odds=0.0)
    z, target = model(stretched), target_distribution(PAIR)
    fixed = _recall(adjust_logits(z, PAIR, 1.0), labels)
    steps = np.linspace(0, 4, 81)
    moved = max(_recall(model(perturb(model, stretched, target, eps=eps)), labels) for eps in steps)
    assert moved < fixed - 0.01

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imbalance_perturb.errors import ModelGradientError, ModelOutputError, SettingsError
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import parse_class_counts
from imbalance_perturb.method.perturbation import (
    LOGIT_GRADIENTS,
    LossSpec,
    gradient_sign,
    gradient_signs,
    logit_gradient,
    perturb,
    step,
)
from imbalance_perturb.method.target import target_distribution
from tests import reference
from tests.analytic import as_module
from tests.reference import AnalyticModel
from tests.strategies import imbalanced_counts


@settings(deadline=None)
@given(
    counts=imbalanced_counts,
    seed=st.integers(0, 2**32 - 1),
    eps=st.floats(1e-5, 0.5),
    temperature=st.sampled_from([0.5, 1.0, 10.0, 1000.0, 1e6]),
    loss=st.sampled_from(sorted(LOGIT_GRADIENTS)),
)
def test_perturbed_predictions_equal_the_reference(
    counts: list[int], seed: int, eps: float, temperature: float, loss: str
) -> None:
    """On an analytic model in float64 x̃ and all labels equal the paper's equations transcribed in NumPy."""
    model = AnalyticModel.random(seed, features=12, hidden=9, classes=len(counts))
    x = np.random.default_rng(seed).normal(size=(5, 3, 2, 2))
    target = target_distribution(parse_class_counts(counts))
    moved = perturb(as_module(model), torch.from_numpy(x), target, eps=eps, temperature=temperature, loss=loss)
    expected = model.perturb(x, reference.target(counts), eps, temperature, loss)
    gradient = model.gradient(x, reference.target(counts), temperature, loss)
    # A sign is only compared where the gradient is clearly not zero; float64 leaves almost none out.
    clear = np.abs(gradient) > 1e-9 * np.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_array_equal(moved.numpy()[clear], expected[clear])
    labels = as_module(model)(moved).argmax(dim=1).numpy()
    np.testing.assert_array_equal(labels, model.logits(expected).argmax(axis=1))


@pytest.mark.parametrize("loss", sorted(LOGIT_GRADIENTS))
@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_logit_gradients_are_those_of_the_losses(loss: str, temperature: float) -> None:
    """Each ∂ℓ/∂z is, up to a positive factor, what autograd gives for the loss as the paper writes it."""
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    target = target_distribution(parse_class_counts([90, 40, 20, 5, 2]))
    p = torch.softmax(z / temperature, dim=1)
    written = {
        "cross-entropy": -(target * p.log()).sum(),
        "mse": ((p - target) ** 2).sum(),
        "focal": -(target * (1 - p) ** 2 * p.log()).sum(),
    }[loss]
    (autograd,) = torch.autograd.grad(written, z)
    ours = logit_gradient(loss)(z.detach(), target, temperature)
    factor = (autograd * ours).sum() / (ours * ours).sum()
    assert factor > 0
    torch.testing.assert_close(autograd, factor * ours, rtol=1e-6, atol=0)


def test_each_sample_is_on_its_own() -> None:
    """A sample's sign and logits do not depend on its batch mates (float64, exactly)."""
    model = as_module(AnalyticModel.random(1, 12, 9, 4))
    x = torch.randn(16, 12, dtype=torch.float64)
    target = target_distribution(parse_class_counts([90, 40, 20, 5]))
    together = gradient_sign(model, x, target)
    alone = [gradient_sign(model, row[None], target) for row in x]
    assert torch.equal(together.sign, torch.cat([a.sign for a in alone]))


def test_the_sign_of_zero_is_zero() -> None:
    """An input element that the output does not depend on is not moved."""
    model = nn.Linear(4, 2).double().eval()
    with torch.no_grad():
        model.weight[:, 2] = 0
    x = torch.randn(3, 4, dtype=torch.float64)
    found = gradient_sign(model, x, torch.tensor([0.0, 1.0]))
    assert found.sign.dtype == torch.int8
    assert (found.sign[:, 2] == 0).all()
    assert (found.sign[:, [0, 1, 3]] != 0).all()


def test_half_precision_does_not_underflow() -> None:
    """At T = 1000 the gradient of a bf16 model still has a sign almost everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(4, 3, 16, 16)
    target = target_distribution(parse_class_counts([90, 40, 20, 5]))
    full = gradient_sign(model, x, target).sign
    low = gradient_sign(model.to(torch.bfloat16), x.to(torch.bfloat16), target).sign
    assert (low == 0).float().mean() <= (full == 0).float().mean() + 0.01
    assert (low == full).float().mean() > 0.9


def test_several_measures_share_one_forward_pass() -> None:
    """gradient_signs gives each loss and temperature its own sign, from one forward pass for all of them."""
    net = as_module(AnalyticModel.random(2, 12, 9, 4))
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(20, 12, dtype=torch.float64)
    target = target_distribution(parse_class_counts([90, 40, 20, 5]))
    loss_specs = [LossSpec(loss, temperature) for loss in sorted(LOGIT_GRADIENTS) for temperature in (1.0, 1000.0)]
    signs, logits = gradient_signs(net, x, target, loss_specs)
    assert len(calls) == 1
    for loss_spec, sign in zip(loss_specs, signs, strict=True):
        alone = gradient_sign(net, x, target, loss=loss_spec.loss, temperature=loss_spec.temperature)
        assert torch.equal(sign, alone.sign)
        assert torch.equal(logits, alone.logits)
    assert len({tuple(sign.flatten().tolist()) for sign in signs}) > 1


def test_target_and_temperature_pull_towards_the_minority() -> None:
    """A small step lowers the loss of every sample: the move is downhill, not up."""
    model = AnalyticModel.random(3, 12, 9, 4)
    x = np.random.default_rng(0).normal(size=(50, 12))
    counts = [900, 40, 20, 5]
    target = target_distribution(parse_class_counts(counts))
    moved = perturb(as_module(model), torch.from_numpy(x), target, eps=1e-4).numpy()
    for kind in LOGIT_GRADIENTS:
        before, after = (
            reference.loss(reference.softmax(model.logits(v), 1000), target.numpy(), kind) for v in (x, moved)
        )
        assert (after < before).all()


@pytest.mark.parametrize("temperature", [100.0, 1e4, 1e6])
def test_large_temperatures_give_the_same_labels(temperature: float) -> None:
    """T from 100 to 10^6 gives the labels of T = 1000 but for near-ties."""
    model = AnalyticModel.random(5, 12, 9, 6)
    x = torch.randn(2000, 12, dtype=torch.float64)
    target = target_distribution(parse_class_counts([900, 300, 90, 40, 20, 5]))
    net = as_module(model)

    def logits(t: float) -> Tensor:
        return net(perturb(net, x, target, eps=0.05, temperature=t)).detach()

    a, b = logits(1000.0), logits(temperature)
    differ = a.argmax(1) != b.argmax(1)
    top = a.topk(2, dim=1).values
    assert differ.float().mean() < 0.005
    assert ((top[:, 0] - top[:, 1])[differ] < 0.1).all()


def test_step_clips_and_broadcasts() -> None:
    """eps may differ between channels, and clip bounds hold for each channel."""
    x = torch.zeros(2, 3, 1, 1)
    sign = torch.ones(2, 3, 1, 1, dtype=torch.int8)
    eps = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(step(x, sign, eps)[0].flatten(), torch.tensor([-0.1, -0.2, -0.3]))
    low = torch.tensor([-1.0, -0.15, -0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(step(x, sign, eps, (low, 1.0))[0].flatten(), torch.tensor([-0.1, -0.15, -0.1]))
    assert torch.equal(step(x, sign, 0.0), x)


def test_several_steps_follow_the_gradient_anew() -> None:
    """steps=2 is one step from where the first ended."""
    net = as_module(AnalyticModel.random(7, 12, 9, 4))
    x = torch.randn(5, 12, dtype=torch.float64)
    target = target_distribution(parse_class_counts([90, 40, 20, 5]))
    once = perturb(net, x, target, eps=0.3)
    assert torch.equal(perturb(net, x, target, eps=0.3, steps=2), perturb(net, once, target, eps=0.3))


class InPlaceFirst(nn.Module):
    """Writes to its input before anything else, as a leading nn.ReLU(inplace=True) does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mul_(2))


def test_a_model_that_works_in_place_leaves_the_input_alone() -> None:
    """A model that writes to its input is differentiated all the same, and the caller's tensor is kept."""
    x = torch.randn(2, 4)
    kept = x.clone()
    gradient_sign(InPlaceFirst().eval(), x, torch.tensor([0.0, 0.4, 0.6]))
    assert torch.equal(x, kept)


class Detaching(nn.Module):
    """Cuts the graph between input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.detach())


class Unrelated(nn.Module):
    """Its output requires grad, but not through the input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.ones_like(x)).requires_grad_()


@pytest.mark.parametrize("model", [Detaching(), Unrelated()])
def test_a_model_without_gradient_is_an_error(model: nn.Module) -> None:
    """A model whose output does not depend differentiably on its input is refused with the reason."""
    with pytest.raises(ModelGradientError, match="no gradient reaches the model's input"):
        gradient_sign(model, torch.randn(2, 4), torch.tensor([0.0, 0.4, 0.6]))


class _Failing(torch.autograd.Function):
    """Its backward pass fails with the message it was given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, message: str) -> Tensor:
        ctx.message = message
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.message)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("derivative for aten::mkldnn_linear is not implemented", ModelGradientError),
        ("CUDA out of memory. Tried to allocate 2 GiB", RuntimeError),
    ],
)
def test_only_a_missing_derivative_is_called_one(message: str, error: type[Exception]) -> None:
    """A backward pass that fails for want of a derivative is a gradient error; out of memory stays what it is."""

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(_Failing.apply(x, message))

    with pytest.raises(error, match=message[:20]) as caught:
        gradient_sign(Model(4, 3), torch.randn(2, 4), torch.tensor([0.0, 0.4, 0.6]))
    assert isinstance(caught.value, ModelGradientError) == (error is ModelGradientError)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    """NaN in the input ends in an error, not in a sign of NaN."""
    with pytest.raises(ModelGradientError, match="not finite"):
        gradient_sign(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
            torch.full((1, 4), float("nan")),
            torch.tensor([0.0, 0.4, 0.6]),
        )


def test_outputs_and_settings_are_checked() -> None:
    """A wrong number of classes, a wrong shape, an unknown loss and T = 0 are errors that name the matter."""
    model, x, target = nn.Linear(4, 3).eval(), torch.randn(2, 4), torch.tensor([0.0, 0.4, 0.6])
    with pytest.raises(ModelOutputError, match="the model has 3 classes but the target has 2"):
        gradient_sign(model, x, torch.tensor([0.0, 1.0]))
    with pytest.raises(ModelOutputError, match=r"returned \(2, 5, 3\) for 2 inputs"):
        gradient_sign(model, torch.randn(2, 5, 4), target)
    with pytest.raises(SettingsError, match="loss 'hinge' is not known"):
        gradient_sign(model, x, target, loss="hinge")
    with pytest.raises(SettingsError, match="the temperature is 0"):
        gradient_sign(model, x, target, temperature=0)


class Watching(nn.Module):
    """A network that writes down by what precision its products are computed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(6, 3), list[tuple[str, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        self._note()
        if logits.requires_grad:
            logits.register_hook(lambda _: self._note())
        return logits

    def _note(self, *_: object) -> None:
        self.seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))


def test_float32_is_float32_in_both_passes() -> None:
    """Whoever has allowed TF32 has it afterwards; a step of 0.001 is not computed in it, forward or backward."""
    counts = parse_class_counts({"a": 90, "b": 9, "c": 3})
    model = Watching()
    torch.set_float32_matmul_precision("high")
    try:
        perturb(model, torch.randn(2, 6), target_distribution(counts))
        PerturbedClassifier(model, counts)(torch.randn(2, 6))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert model.seen == [("highest", False)] * 5

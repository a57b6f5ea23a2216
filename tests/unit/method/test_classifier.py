from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from imbalance_perturb import ClassCounts, PerturbedClassifier, perturb, target_distribution
from imbalance_perturb.errors import ModelGradientError, NothingToCorrectError, SettingsError
from imbalance_perturb.method.logit_corrections import adjust_logits

COUNTS = ClassCounts(("a", "b", "c", "d"), (900, 90, 30, 3))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=4).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, 64, 64)


def test_it_predicts_on_the_perturbed_input(resnet: nn.Module, images: torch.Tensor) -> None:
    """Its logits are the model's on x̃, and the base logits are the model's on x."""
    debiased = PerturbedClassifier(resnet, COUNTS, eps=0.01)
    base, logits = debiased.predict_both(images)
    with torch.no_grad():
        torch.testing.assert_close(base, resnet(images))
        moved = perturb(resnet, images, target_distribution(COUNTS), eps=0.01)
        assert torch.equal(logits, resnet(moved))
    assert torch.equal(debiased(images), logits)


def test_eps_zero_is_the_base_prediction_bit_for_bit(resnet: nn.Module, images: torch.Tensor) -> None:
    """eps = 0 gives the plain model's logits exactly, also when the passes are run one after the other."""
    with torch.no_grad():
        plain = resnet(images)
    base, logits = PerturbedClassifier(resnet, COUNTS, eps=0.0).predict_both(images)
    assert torch.equal(base, plain)
    assert torch.equal(logits, plain)
    moved = perturb(resnet, images, target_distribution(COUNTS), eps=0.0)
    assert torch.equal(moved, images)
    # The base logits of the gradient pass are those of the plain pass, too.
    assert torch.equal(PerturbedClassifier(resnet, COUNTS, eps=0.01).predict_both(images)[0], plain)


def test_it_works_under_no_grad_and_inference_mode(resnet: nn.Module, images: torch.Tensor) -> None:
    """The logits are the same under no_grad, inference_mode and neither, for inputs made in either mode."""
    debiased = PerturbedClassifier(resnet, COUNTS, eps=0.01)
    expected = debiased(images)
    assert not expected.requires_grad
    with torch.no_grad():
        assert torch.equal(debiased(images), expected)
    with torch.inference_mode():
        assert torch.equal(debiased(images), expected)
        assert torch.equal(debiased(images * 1), expected)


def test_it_works_under_autocast(resnet: nn.Module, images: torch.Tensor) -> None:
    """Under bf16 autocast the gradient pass is bf16 while the final pass keeps the step: fp32 logits."""
    debiased = PerturbedClassifier(resnet, COUNTS, eps=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base, logits = debiased.predict_both(images)
    assert base.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, debiased(images), rtol=0.05, atol=0.05)


def test_it_leaves_the_callers_module_untouched(images: torch.Tensor) -> None:
    """Mode, requires_grad, .grad, buffers and hooks of the wrapped module are as before, even after an error."""
    model = torchvision.models.resnet18(num_classes=4).train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    calls: list[str] = []
    model.fc.register_forward_hook(lambda *_: calls.append("fc"))
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    debiased = PerturbedClassifier(model, COUNTS, eps=0.01)
    first = debiased(images)
    with pytest.raises(ModelGradientError):
        debiased(images * float("nan"))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert all(p.grad is None for p in model.parameters() if p is not model.fc.weight)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert calls == ["fc"] * 3
    # In training mode the result is that of eval mode: batch mates have no say.
    torch.testing.assert_close(debiased(images[:1]), first[:1], rtol=1e-4, atol=1e-4)
    assert torch.equal(PerturbedClassifier(copy.deepcopy(model).eval(), COUNTS, eps=0.01)(images), first)


def test_batch_sizes_give_the_same_labels(resnet: nn.Module, images: torch.Tensor) -> None:
    """Batch sizes 1 and 6 give the same labels and logits to rounding."""
    debiased = PerturbedClassifier(resnet, COUNTS, eps=0.01)
    together = debiased(images)
    alone = torch.cat([debiased(image[None]) for image in images])
    assert torch.equal(together.argmax(1), alone.argmax(1))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_a_model_made_in_inference_mode_is_named_as_the_cause() -> None:
    """Parameters that are inference tensors cannot be differentiated through: the error says so."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(ModelGradientError, match="inference_mode"):
        PerturbedClassifier(model.eval(), COUNTS)(torch.randn(2, 4))


def test_tau_adds_logit_adjustment_on_top(resnet: nn.Module, images: torch.Tensor) -> None:
    """tau shifts the corrected logits by -tau log π and leaves the base logits plain."""
    plain = PerturbedClassifier(resnet, COUNTS, eps=0.01).predict_both(images)
    both = PerturbedClassifier(resnet, COUNTS, eps=0.01, tau=0.5).predict_both(images)
    assert torch.equal(both[0], plain[0])
    prior = torch.tensor([900, 90, 30, 3]) / 1023
    torch.testing.assert_close(both[1], plain[1] - 0.5 * prior.log())
    assert torch.equal(adjust_logits(plain[1], COUNTS, 0.0), plain[1])


def test_low_precision_input_warns_that_the_step_is_lost() -> None:
    """A bf16 input cannot hold a step of 0.001: the caller is warned, a float32 one is not."""
    model = nn.Linear(4, 4).eval()
    with pytest.warns(UserWarning, match="below the resolution"):
        PerturbedClassifier(copy.deepcopy(model).to(torch.bfloat16), COUNTS)(torch.randn(2, 4, dtype=torch.bfloat16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PerturbedClassifier(model, COUNTS)(torch.randn(2, 4))


def test_casting_the_module_keeps_eps_and_target() -> None:
    """half() on the wrapper rounds neither eps nor p*."""
    debiased = PerturbedClassifier(nn.Linear(4, 4), COUNTS).half()
    assert debiased.eps.item() == 1e-3
    assert torch.equal(debiased.target, target_distribution(COUNTS))
    assert list(debiased.state_dict()) == ["model.weight", "model.bias"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"steps": 0}, "steps is 0"),
        ({"loss": "hinge"}, "loss 'hinge' is not known"),
        ({"target": torch.tensor([0.5, 0.5])}, "target has shape"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], cause: str) -> None:
    """Arguments out of range raise SettingsError when the module is made, not when it is used."""
    with pytest.raises(SettingsError, match=cause):
        PerturbedClassifier(nn.Linear(4, 4), COUNTS, **arguments)  # type: ignore[arg-type]


def test_balanced_counts_are_refused() -> None:
    """Equal counts leave nothing to correct, and the error says so."""
    with pytest.raises(NothingToCorrectError):
        PerturbedClassifier(nn.Linear(4, 2), ClassCounts(("a", "b"), (5, 5)))


def test_its_text_names_the_settings() -> None:
    """print(module) shows eps, T, the loss and tau."""
    assert "eps=0.001, temperature=1000, loss='cross-entropy', tau=0" in repr(
        PerturbedClassifier(nn.Linear(4, 4), COUNTS)
    )


def test_numpy_scalars_are_numbers(skin7_counts: ClassCounts) -> None:
    """Settings that NumPy computed give the logits of Python's numbers; a target may be an array."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 7))
    target = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    x = torch.randn(2, 3, 2, 2)
    made = PerturbedClassifier(
        model,
        skin7_counts,
        eps=np.float32(0.5),
        temperature=np.float32(2),
        tau=np.float64(1),
        steps=np.int64(2),  # type: ignore[arg-type]
        target=target,  # type: ignore[arg-type]
    )
    plain = PerturbedClassifier(
        model, skin7_counts, eps=0.5, temperature=2, tau=1, steps=2, target=torch.tensor(target)
    )
    assert torch.equal(made(x), plain(x))
    with pytest.raises(SettingsError, match=r"steps is 1\.5; it must be a whole number"):
        PerturbedClassifier(model, skin7_counts, steps=1.5)  # type: ignore[arg-type]


class _InPlace(nn.Module):
    """A back whose first layer writes into what it is given."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(h.mul_(1.0))
        return out


@pytest.mark.parametrize("steps", [1, 2])
def test_a_front_takes_the_step_behind_it(resnet: nn.Module, images: torch.Tensor, steps: int) -> None:
    """h~ = h - eps sign(dL/dh), against a float64 transcription by hooks; base logits are the model's own."""
    front, back = nn.Sequential(*list(resnet.children())[:6]), nn.Sequential(*list(resnet.children())[6:-1])
    back = _InPlace(nn.Sequential(back, nn.Flatten(), resnet.fc))
    debiased = PerturbedClassifier(back, COUNTS, eps=0.05, front=front, steps=steps)
    base, logits = debiased.predict_both(images)

    exact = copy.deepcopy(resnet).double()
    p = np.log(900 / np.array(COUNTS.counts))
    target = torch.tensor(p / p.sum())
    moved: list[torch.Tensor] = []

    def through(hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def replace(*found: torch.Tensor) -> torch.Tensor:
            seen.append(found[2].detach().clone() if hidden is None else hidden)
            seen[0].requires_grad_(True)
            return seen[0].clone()

        hook = exact.layer2.register_forward_hook(replace)
        z = exact(images.double())
        hook.remove()
        return z, seen[0]

    h = None
    for _ in range(steps):
        z, h = through(h)
        moved.append(z.detach())
        loss = -(target * torch.log_softmax(z / 1000, dim=1)).sum()
        (gradient,) = torch.autograd.grad(loss, h)
        h = (h - 0.05 * gradient.sign()).detach()
    expected = through(h)[0].detach()
    torch.testing.assert_close(base.double(), moved[0], rtol=1e-3, atol=1e-4)
    # Signs of gradients that are all but zero may differ between float32 and float64.
    torch.testing.assert_close(logits.double(), expected, rtol=1e-2, atol=2e-3)
    assert float((logits - base).abs().max()) > 0.1
    plain = PerturbedClassifier(back, COUNTS, eps=0.0, front=front)
    same, stage = plain.perturb_input(images)
    assert torch.equal(same, plain.predict_plain(images))
    assert torch.equal(stage, front(images))

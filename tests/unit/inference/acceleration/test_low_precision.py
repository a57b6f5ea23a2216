"""What a GPU runs in low precision, looked at on the CPU: the same autocast, the same copy."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from imbalance_perturb.inference.acceleration import optimisation
from imbalance_perturb.inference.acceleration.low_precision import FullPrecision, LowPrecision, low_copy
from imbalance_perturb.inference.acceleration.optimisation import fold_batch_norm
from tests.unit.inference.acceleration.test_optimisation import trained_like


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Batch norm folded, as a GPU gets it."""
    return fold_batch_norm(trained_like("resnet18"))[0]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_weights_are_cast_once_but_for_the_ends(network: nn.Module, x: Tensor) -> None:
    """Inner layers hold low precision, the first and the last float32; the network that was given is not changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copied = low_copy(network, x, torch.bfloat16)
    assert copied is not None
    layers = {name: module for name, module in copied.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    float32 = {name for name, module in layers.items() if module.weight.dtype == torch.float32}
    assert float32 == {"conv1.layer", "fc.layer"}
    assert all(module.weight.dtype == torch.bfloat16 for name, module in layers.items() if name not in float32)
    assert network.state_dict().keys() == before.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.is_contiguous()


def test_a_small_step_reaches_the_first_layer(network: nn.Module, x: Tensor) -> None:
    """A step of 0.001 moves what leaves the first layer as it does in float32; by autocast alone most of it is lost."""
    step = 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()

    def moved_by(model: nn.Module, at: str) -> Tensor:
        seen: list[Tensor] = []
        hook = model.get_submodule(at).register_forward_hook(lambda *found: seen.append(found[2].float().clone()))
        for batch in (x, x - step):
            LowPrecision(model, torch.bfloat16)(batch)
        hook.remove()
        return seen[1] - seen[0]

    copied = low_copy(network, x, torch.bfloat16)
    assert copied is not None
    exact = nn.functional.conv2d(-step, network.get_submodule("conv1").weight, stride=2, padding=3)
    ours, plain = moved_by(copied, "conv1"), moved_by(copy.deepcopy(network), "conv1")
    assert isinstance(copied.get_submodule("conv1"), FullPrecision)
    assert float((ours - exact).norm() / exact.norm()) < 1e-2
    assert float((plain - exact).norm() / exact.norm()) > 0.3


def test_logits_have_the_digits_of_float32(network: nn.Module) -> None:
    """Of some images no two classes' logits are equal, as they are where the head rounds to eight bits."""
    x = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    copied = low_copy(network, x[:2], torch.bfloat16)
    assert copied is not None
    with torch.no_grad():
        logits, plain = LowPrecision(copied, torch.bfloat16)(x), LowPrecision(network, torch.bfloat16)(x)
        full = network(x)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert torch.equal(plain, plain.bfloat16().float())
    assert float((logits - full).abs().max()) < 0.1 * float(full.abs().max())


def test_a_network_that_turns_autocast_off_has_no_copy(x: Tensor) -> None:
    """Weights cast once do not fit a layer that its network keeps in float32: then none are, and it is known why."""

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            with torch.autocast("cpu", enabled=False):
                h = self.middle(h.float())
            return self.head(h.mean((2, 3)))

    network = Careful().eval().requires_grad_(False)
    with pytest.raises(RuntimeError):
        optimisation._copy_lowered(network, x, torch.bfloat16, None)
    found, reason = optimisation._attempt(lambda: optimisation._copy_lowered(network, x, torch.bfloat16, None))
    assert found is None
    assert reason is not None


def test_a_script_that_is_no_graph_has_no_copy(x: Tensor) -> None:
    """Its layers cannot be exchanged."""
    traced = torch.jit.trace(torchvision.models.resnet18(num_classes=3).eval().requires_grad_(False), x)
    assert low_copy(traced, x, torch.bfloat16) is None

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from imbalance_perturb.optimisation import optimise
from imbalance_perturb.perturbation import gradient_sign


def trained_like(name: str) -> nn.Module:
    """A network whose batch norms are not the identity, frozen and in eval mode."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("resnet18", "batch norm folded into 20 convolutions, channels-last"),
        ("mobilenet_v2", "batch norm folded into 52 convolutions, channels-last"),
        ("densenet121", "channels-last"),
        ("shufflenet_v2_x0_5", "channels-last"),
        ("efficientnet_b0", "channels-last"),
        ("vit_b_32", "channels-last"),
    ],
)
def test_the_optimised_network_computes_the_same(name: str, path: str) -> None:
    """Logits move by rounding only, labels not at all, and clear gradient signs agree."""
    model = trained_like(name)
    size = 224 if name.startswith("vit") else 64
    x = torch.randn(4, 3, size, size)
    with torch.no_grad():
        expected = model(x)
    target = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    sign = gradient_sign(model, x, target).sign
    network, done = optimise(copy.deepcopy(model), x[:2])
    assert path in done.path
    assert done.difference < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert (gradient_sign(network, x, target).sign == sign).float().mean() > 0.98
    assert not any(parameter.requires_grad for parameter in network.parameters())


class Branching(nn.Module):
    """Its forward looks at values, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.fc(y.mean(dim=(2, 3)) if float(y.detach().sum()) > 0 else y.amax(dim=(2, 3)))


class SharedConvolution(nn.Module):
    """One convolution before two different batch norms: folding would have to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.first.weight, 3.0)
        nn.init.constant_(self.second.bias, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)))).mean(dim=(2, 3))


@pytest.mark.parametrize("model", [Branching(), SharedConvolution()], ids=["branching", "shared"])
def test_what_cannot_be_rewritten_runs_as_it_is(model: nn.Module) -> None:
    """A network that cannot be traced, or that folding would change, gives the same logits all the same."""
    model = model.eval().requires_grad_(False)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        network, _ = optimise(copy.deepcopy(model), x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_exported_graphs_and_other_outputs_are_left_alone() -> None:
    """An exported graph and a network that returns a dict are handed back as they are."""
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), (x,)).module()
    assert optimise(exported, x)[0] is exported

    class Dict(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.mean(dim=(2, 3))}

    network = Dict().eval()
    assert optimise(network, x)[0] is network

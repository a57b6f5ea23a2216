from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb.inference.acceleration import compilation
from imbalance_perturb.inference.acceleration.compilation import Compiled, compile_network

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: no g++")


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_passes_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and the input's gradient of the compiled network are those of the plain one; others are not compiled."""
    monkeypatch.setattr(compilation, "_time", lambda call, x: 1.0)  # whether it is faster is not asked here
    network, x = small_network(), torch.randn(4, 3, 16, 16)
    compiled, reason = compile_network(network, network, x, 1e-4, 0.99)
    assert reason is None
    assert isinstance(compiled, Compiled)
    compilations = dict(torch._dynamo.utils.counters["stats"])
    assert compilations["unique_graphs"] >= 2
    for batch in (x, x[:1]):
        with torch.no_grad():
            torch.testing.assert_close(compiled(batch), network(batch))
        gradients = []
        for module in (compiled, network):
            leaf = batch.clone().requires_grad_(True)
            gradients += torch.autograd.grad(module(leaf)[:, 1].sum(), leaf)
        torch.testing.assert_close(*gradients)
    assert dict(torch._dynamo.utils.counters["stats"]) == compilations


class Unstable(nn.Module):
    """Computes something else once it has been called a few times, as a wrongly compiled network might."""

    def __init__(self, network: nn.Module, _: torch.Size) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.network(x)


class WrongBackward(nn.Module):
    """Has the network's logits, and half of their gradient lost on the way back."""

    def __init__(self, network: nn.Module, _: torch.Size) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=3)
        return self.network(torch.cat([left, right.detach()], dim=3))


@pytest.mark.parametrize(
    ("make", "seconds", "reason"),
    [
        (Unstable, [1.0, 1.0], "its logits differ by 0.5"),
        (WrongBackward, [1.0, 1.0], "its gradient differs"),
        (nn.Identity, [1.0, 1.0], "not compiled: "),
        (lambda network, _: nn.Sequential(network), [2.5, 1.0], "it takes 2.5 times as long"),
    ],
    ids=["differs", "wrong gradient", "fails", "slower"],
)
def test_what_gains_nothing_runs_as_it_is(
    make: object, seconds: list[float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled network that differs, fails or is slower is not used, and the reason is told."""
    monkeypatch.setattr(compilation, "Compiled", make)
    times = iter(seconds)
    monkeypatch.setattr(compilation, "_time", lambda call, x: next(times))
    network = small_network()
    found, why = compile_network(network, network, torch.randn(2, 3, 16, 16), 1e-4, 0.99)
    assert found is network
    assert why is not None
    assert reason in why

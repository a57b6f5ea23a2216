"""A network's passes compiled by torch.compile, each on its own, where that gives the same and takes less time.

What compiling gains depends on the machine: much on a GPU, often nothing on a CPU, where the gradient pass can come
out slower by far. So the compiled network must show on a trial batch that it computes the same and is no slower.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import first_line
from imbalance_perturb.inference.acceleration.trial import alike
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.method.module_state import frozen_eval, full_precision

#: Timed calls of each network; the first calls of all have been made before.
_CALLS = 3


class Compiled(nn.Module):
    """Two compilations of one network: with the input's gradient recorded, and without, parameters frozen in.

    They are for batches of one shape. Others, of which a run has one at its end, are computed by the network itself: to
    compile once more takes longer, and may fail.
    """

    def __init__(self, network: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.network, self.shape = network, shape
        # One compilation each: a graph made for autograd keeps what the plain pass has no use for.
        self._recorded = torch.compile(network)
        self._plain = torch.compile(network, options={"freezing": True})

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        if x.shape != self.shape:
            return self.network(x)  # type: ignore[no-any-return]
        recorded = torch.is_grad_enabled() and x.requires_grad
        return (self._recorded if recorded else self._plain)(x)  # type: ignore[no-any-return]


def compile_network(
    network: nn.Module, source: nn.Module, x: Tensor, tolerance: float, least_cosine: float
) -> tuple[nn.Module, str | None]:
    """Compile a network where that gains; returns it, or the network unchanged and the reason.

    Args:
        network: frozen, in eval mode, on its device.
        source: what to compile: the network itself, or one that computes the same and suits a compiler better.
        x: a trial batch (N, C, H, W) there, of the size of the batches to come.
        tolerance: largest difference of a logit, relative to the largest, that counts as rounding.
        least_cosine: between the gradients, down to which they count as the same.
    """
    try:
        compiled = Compiled(source, x.shape)
        with full_precision(x.device), frozen_eval(network):
            expected, found = _passes(network, x), _passes(compiled, x)
            for mine, other in zip(found[0], expected[0], strict=True):
                difference = float((mine - other).abs().max() / other.abs().max().clamp_min(1e-6))
                if not difference <= tolerance:
                    return network, f"not compiled: compiled, its logits differ by {difference:.2g}"
            if not alike(expected[1], found[1], least_cosine):
                return network, "not compiled: compiled, its gradient differs"
            slower = _time(lambda: _passes(compiled, x), x) / _time(lambda: _passes(network, x), x)
    except Exception as error:  # noqa: BLE001 - a compiler can fail in any way, and what it failed on runs uncompiled
        pass_on_device_errors(error)
        return network, f"not compiled: {first_line(error)}"
    if slower > 1:
        return network, f"not compiled: compiled, it takes {slower:.1f} times as long"
    return compiled, None


def _passes(network: nn.Module, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Compute logits with the gradient recorded and without, and the gradient of the first logit."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        recorded = network(leaf)
        (gradient,) = torch.autograd.grad(recorded[:, 0].sum(), leaf)
    with torch.no_grad():
        plain = network(x)
    return (recorded.detach(), plain), gradient


def _time(call: Callable[[], object], x: Tensor) -> float:
    seconds = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)

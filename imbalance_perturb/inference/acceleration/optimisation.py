"""Make a loaded network cheaper without changing what it computes: fewer operations, a layout that suits the machine.

Batch norm in eval mode is a fixed affine map, so it is folded into the convolution before it; on a CPU,
convolutions run channels-last, with packed weights and with what follows them done inside, forward and backward.
All this changes logits by rounding only, which is checked on a trial batch; a network that cannot be rewritten, or
would answer differently, runs unchanged. The same network in low precision is a second module beside the first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.errors import first_line
from imbalance_perturb.inference.acceleration import convolution
from imbalance_perturb.inference.acceleration.compilation import compile_network
from imbalance_perturb.inference.acceleration.conversion import convert
from imbalance_perturb.inference.acceleration.fusion import Rewriter
from imbalance_perturb.inference.acceleration.low_precision import LowPrecision, low_copy
from imbalance_perturb.inference.acceleration.trial import LEAST_COSINE, LOW_LEAST_COSINE, same_gradient
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.method.module_state import frozen_eval, full_precision
from imbalance_perturb.method.private_torch import find

_T = TypeVar("_T")

fuse = find("torch.fx.experimental.optimization.fuse")

#: Characters of a reason: what a tracer says may hold a whole graph.
_MOST_REASON = 200

#: Largest difference of a logit, relative to the largest logit, that counts as rounding in float32.
TOLERANCE = 1e-3

#: The same for two ways to compute in bfloat16 or float16.
LOW_TOLERANCE = 0.05


@dataclass(frozen=True)
class Optimisation:
    """What was done to a network, for people: ``path`` in words, and how far its logits moved on the trial batch."""

    path: str
    difference: float


class ChannelsLast(nn.Module):
    """A network whose parameters and inputs are laid out channels-last, which CPU convolutions prefer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for x in another layout."""
        return self.network(x.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


class Rewritten(ChannelsLast):
    """A traced network after :class:`Rewriter`, with the traced graph it came from."""

    def __init__(self, network: nn.Module, source: fx.GraphModule) -> None:
        super().__init__(network)
        # In a list, so that the source's parameters are not counted as this module's.
        self._source = [source]

    @property
    def source(self) -> fx.GraphModule:
        """The traced network, batch norm folded, not rewritten: what another precision starts from."""
        return self._source[0]

    @property
    def traced(self) -> nn.Module:
        """The same for a compiler, which fuses in its own way."""
        return ChannelsLast(self.source)


def optimise(network: nn.Module, x: Tensor) -> tuple[nn.Module, Optimisation]:
    """Build a network that computes the same for less, or ``network`` itself where there is none.

    Whatever fails on the way, but for memory, is no fault of the network: it runs as it is, and ``path`` says why.

    Args:
        network: frozen, in eval mode, on its device; not to be used any more afterwards but through what is returned.
        x: a trial batch (N, C, H, W) on that device, of a size that the network takes, on which the two are compared.
    """
    found, reason = _attempt(lambda: _optimise(network, x))
    return found or (network, Optimisation(f"as the file has it ({reason})", 0.0))


def _optimise(network: nn.Module, x: Tensor) -> tuple[nn.Module, Optimisation]:
    expected = _output(network, x)
    if expected is None:
        return network, Optimisation("as the file has it (its output is not one tensor)", 0.0)
    steps, reasons, candidate = [], [], network
    folded, reason = _attempt(lambda: fold_batch_norm(network))
    reasons += [reason] if reason else []
    if folded is not None:
        candidate, count = folded
        steps += [f"batch norm folded into {count} convolutions"] if count else []
    if x.device.type == "cpu" and _convolves(candidate, x):
        graph = None if folded is None else folded[0]
        rewritten, reason = _attempt(lambda: None if graph is None else _rewrite(graph, x, torch.float32))
        reasons += [reason] if reason else []
        if rewritten is None or graph is None:
            candidate = ChannelsLast(candidate)
        else:
            candidate = Rewritten(rewritten[0], graph)
            steps += [f"{count} {what}" for what, count in rewritten[1].items()]
        steps.append("channels-last")
    if not steps:
        return network, Optimisation(_with_reasons("as the file has it", reasons), 0.0)
    made = ", ".join(steps)
    found, reason = _attempt(lambda: _output(candidate, x))
    if found is None:  # whatever a rewritten graph fails on, the file itself has just run
        return network, Optimisation(_with_reasons("as the file has it", [f"{made}: {reason}"]), 0.0)
    difference = _difference(found, expected)
    if not difference <= TOLERANCE:
        # A new layout of the parameters changed no value of the network itself: it still answers as before.
        return network, Optimisation(f"as the file has it ({made} moved its logits by {difference:.2g})", 0.0)
    if not same_gradient(network, candidate, x):
        return network, Optimisation(f"as the file has it ({made} changed its gradient)", 0.0)
    return candidate, Optimisation(_with_reasons(made, reasons), difference)


def lower(network: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Optimisation]:
    """Build the network in low precision, beside the one given, which is not changed.

    Args:
        network: what :func:`optimise` returned.
        x: a trial batch (N, C, H, W) on its device, of a size that the network takes.
        dtype: bfloat16 or float16.

    Returns:
        a module that takes and returns float32, and how far its logits lie from the network's own.

    Raises:
        Exception: whatever the network itself raises when it is run in that precision.
    """
    name = str(dtype).removeprefix("torch.")
    expected, reasons = _output(network, x), []
    ways: list[Callable[[], tuple[nn.Module, Optimisation] | None]] = []
    if isinstance(network, Rewritten) and dtype is torch.bfloat16:
        ways.append(partial(_lower_rewritten, network, x, dtype, expected))
    if x.device.type == "cuda":
        ways.append(partial(_copy_lowered, network, x, dtype, expected))
    for way in ways:
        found, reason = _attempt(way)
        if found is not None:
            return found
        reasons += [reason] if reason else []
    path = f"{name} by autocast"
    lowered = LowPrecision(network, dtype)
    return lowered, Optimisation(_with_reasons(path, reasons), _moved(lowered, x, expected))


def _copy_lowered(
    network: nn.Module, x: Tensor, dtype: torch.dtype, expected: Tensor | None
) -> tuple[nn.Module, Optimisation] | None:
    copied = low_copy(network, x, dtype)
    if copied is None:
        return None
    path = f"{str(dtype).removeprefix('torch.')} by autocast, weights cast once, first and last layer in float32"
    if _convolves(copied, x):
        # Half-precision units work on channels-last tensors; others are converted at each layer.
        copied, path = ChannelsLast(copied), f"{path}, channels-last"
    lowered = LowPrecision(copied, dtype)
    return lowered, Optimisation(path, _moved(lowered, x, expected))


def _lower_rewritten(
    network: Rewritten, x: Tensor, dtype: torch.dtype, expected: Tensor | None
) -> tuple[nn.Module, Optimisation] | None:
    rewritten = _rewrite(network.source, x, dtype)
    if rewritten is None:
        return None
    lowered = LowPrecision(Rewritten(rewritten[0], network.source), dtype)
    path = f"{str(dtype).removeprefix('torch.')} inside the convolutions, the rest by autocast"
    return lowered, Optimisation(path, _moved(lowered, x, expected))


def _moved(candidate: nn.Module, x: Tensor, expected: Tensor | None) -> float:
    found = _output(candidate, x)
    return 0.0 if found is None or expected is None else _difference(found, expected)


def _attempt(call: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """What a call returns, or ``None`` and the reason where it raises anything but that memory has run out.

    An optimisation is an extra: the file's own network has run, and does without.
    """
    try:
        return call(), None
    except Exception as error:  # noqa: BLE001 - tracers run a network's own code, on symbols, which raises anything
        pass_on_device_errors(error)
        return None, f"not rewritten: {first_line(error)[:_MOST_REASON]}"


def _with_reasons(path: str, reasons: list[str]) -> str:
    return f"{path} ({'; '.join(reasons)})" if reasons else path


def compiled(network: nn.Module, x: Tensor) -> tuple[nn.Module, str | None]:
    """Compile what :func:`optimise` or :func:`lower` returned where that gains, else return it and the reason.

    Args:
        network: not to be used any more but through what is returned.
        x: a trial batch (N, C, H, W), of the size of the batches to come.
    """
    if isinstance(network, LowPrecision):
        inner = network.network
        low = LowPrecision(inner.traced, network.dtype) if isinstance(inner, Rewritten) else network
        return compile_network(network, low, x, LOW_TOLERANCE, LOW_LEAST_COSINE)
    source = network.traced if isinstance(network, Rewritten) else network
    return compile_network(network, source, x, TOLERANCE, LEAST_COSINE)


def _convolves(network: nn.Module, x: Tensor) -> bool:
    """Whether channels-last is a layout that the input and some parameter have."""
    return x.ndim == 4 and any(parameter.ndim == 4 for parameter in network.parameters())


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def fold_batch_norm(network: nn.Module) -> tuple[fx.GraphModule, int]:
    """Trace the network and fold batch norm away; returns it and how many. Raises whatever tracing leads to."""
    if isinstance(network, torch.jit.ScriptModule | fx.GraphModule):
        network = convert(network)
    before = _batch_norms(network)
    folded = fuse(network)
    assert isinstance(folded, fx.GraphModule)
    for node in folded.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            # The same where a view is possible, which depends on the layout in memory: channels-last may not be.
            node.target = "reshape"
    folded.recompile()
    return folded, before - _batch_norms(folded)


def _rewrite(graph: fx.GraphModule, x: Tensor, dtype: torch.dtype) -> tuple[fx.GraphModule, dict[str, int]] | None:
    """Rewrite a copy of a traced network; returns it and what was made, ``None`` where nothing is gained."""
    if not convolution.available(dtype):
        return None
    # Modules are shared with the copy: the rewriter puts others beside them and changes none.
    duplicate = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    made = Rewriter(duplicate, x.contiguous(memory_format=torch.channels_last), dtype).rewrite()
    return (duplicate, made) if made else None


def _batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _output(network: nn.Module, x: Tensor) -> Tensor | None:
    """Compute the network's logits, or ``None`` where it returns something else."""
    with torch.no_grad(), frozen_eval(network), full_precision(x.device):
        found = network(x)
    return found if isinstance(found, Tensor) else None

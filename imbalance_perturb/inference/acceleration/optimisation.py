"""Make a loaded network cheaper without changing what it computes: fewer operations, a layout that suits the machine.

Batch norm in eval mode is a fixed affine map, so it is folded into the convolution before it; on a CPU,
convolutions run channels-last, with packed weights and with what follows them done inside, forward and backward.
All this changes logits by rounding only, which is checked on a trial batch; a network that cannot be rewritten, or
would answer differently, runs unchanged. The same network in low precision is a second module beside the first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from imbalance_perturb.inference.acceleration import convolution
from imbalance_perturb.inference.acceleration.compilation import compile_network
from imbalance_perturb.inference.acceleration.conversion import convert
from imbalance_perturb.inference.acceleration.fusion import Rewriter
from imbalance_perturb.inference.acceleration.trial import LEAST_COSINE, LOW_LEAST_COSINE, same_gradient
from imbalance_perturb.method.module_state import frozen_eval, full_precision

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


class LowPrecision(nn.Module):
    """A network in low precision that takes and returns float32.

    The input stays float32 up to the first layer: rounded to bfloat16 it would lose a step of 0.001.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output, float32."""
        with torch.autocast(x.device.type, dtype=self.dtype):
            return self.network(x).float()  # type: ignore[no-any-return]


def optimise(network: nn.Module, x: Tensor) -> tuple[nn.Module, Optimisation]:
    """Build a network that computes the same for less, or ``network`` itself where there is none.

    Args:
        network: frozen, in eval mode, on its device; not to be used any more afterwards but through what is returned.
        x: a trial batch (N, C, H, W) on that device, on which the two are compared.
    """
    expected = _output(network, x)
    if expected is None:
        return network, Optimisation("as the file has it (its output is not one tensor)", 0.0)
    steps, candidate = [], network
    folded = _fold_batch_norm(network)
    if folded is not None:
        candidate, count = folded
        steps += [f"batch norm folded into {count} convolutions"] if count else []
    if x.device.type == "cpu" and _convolves(network, x):
        rewritten = None if folded is None else _rewrite(folded[0], x, torch.float32)
        if rewritten is None:
            candidate = ChannelsLast(candidate)
        else:
            candidate = Rewritten(rewritten[0], folded[0])  # type: ignore[index]
            steps += [f"{count} {what}" for what, count in rewritten[1].items()]
        steps.append("channels-last")
    if not steps:
        return network, Optimisation("as the file has it", 0.0)
    try:
        found = _output(candidate, x)
    except Exception as error:  # noqa: BLE001 - whatever a rewritten graph fails on, the file itself has just run
        return network, Optimisation(f"as the file has it ({', '.join(steps)}: {type(error).__name__})", 0.0)
    assert found is not None  # rewriting leaves the kind of output alone
    difference = _difference(found, expected)
    if not difference <= TOLERANCE:
        # A new layout of the parameters changed no value of the network itself: it still answers as before.
        return network, Optimisation(
            f"as the file has it ({', '.join(steps)} moved its logits by {difference:.2g})", 0.0
        )
    if not same_gradient(network, candidate, x):
        return network, Optimisation(f"as the file has it ({', '.join(steps)} changed its gradient)", 0.0)
    return candidate, Optimisation(", ".join(steps), difference)


def lower(network: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Optimisation]:
    """Build the network in low precision, beside the one given, which is not changed.

    Args:
        network: what :func:`optimise` returned.
        x: a trial batch (N, C, H, W) on its device.
        dtype: bfloat16 or float16.

    Returns:
        a module that takes and returns float32, and how far its logits lie from the network's own.
    """
    name = str(dtype).removeprefix("torch.")
    expected = _output(network, x)
    candidate, path = network, f"{name} by autocast"
    if x.device.type == "cuda" and _convolves(network, x):
        # The half-precision units of a GPU work on channels-last tensors; others are converted at each layer.
        candidate, path = ChannelsLast(network), f"{path}, channels-last"
    if isinstance(network, Rewritten) and dtype is torch.bfloat16:
        rewritten = _rewrite(network.source, x, dtype)
        if rewritten is not None:
            candidate = Rewritten(rewritten[0], network.source)
            path = f"{name} inside the convolutions, the rest by autocast"
    lowered = LowPrecision(candidate, dtype)
    found = _output(lowered, x)
    if found is None or expected is None:
        return lowered, Optimisation(path, 0.0)
    return lowered, Optimisation(path, _difference(found, expected))


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


def _fold_batch_norm(network: nn.Module) -> tuple[fx.GraphModule, int] | None:
    """Trace the network and fold batch norm away; returns it and how many, ``None`` where tracing fails."""
    if isinstance(network, torch.jit.ScriptModule | fx.GraphModule):
        converted = convert(network)
        if converted is None:
            return None
        network = converted
    before = _batch_norms(network)
    try:
        folded = fuse(network)
    except Exception:  # noqa: BLE001 - tracing runs the network's own code on symbols; if it raises, it runs unchanged
        return None
    assert isinstance(folded, fx.GraphModule)
    for node in folded.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            # The same where a view is possible, which depends on the layout in memory: channels-last may not be.
            node.target = "reshape"
    folded.recompile()
    return folded, before - _batch_norms(folded)


def _rewrite(graph: fx.GraphModule, x: Tensor, dtype: torch.dtype) -> tuple[fx.GraphModule, dict[str, int]] | None:
    """Rewrite a copy of a traced network; returns it and what was made, ``None`` where nothing is gained."""
    if not convolution.available():
        return None
    # Modules are shared with the copy: the rewriter puts others beside them and changes none.
    duplicate = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    try:
        made = Rewriter(duplicate, x.contiguous(memory_format=torch.channels_last), dtype).rewrite()
    except Exception:  # noqa: BLE001 - shapes are found by running the graph; one that fails then runs unchanged
        return None
    return (duplicate, made) if made else None


def _batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _output(network: nn.Module, x: Tensor) -> Tensor | None:
    """Compute the network's logits, or ``None`` where it returns something else."""
    with torch.no_grad(), frozen_eval(network), full_precision(x.device):
        found = network(x)
    return found if isinstance(found, Tensor) else None

"""Make a loaded network cheaper without changing what it computes: fewer operations, a layout that suits the machine.

Batch norm in eval mode is a fixed affine map, so it is folded into the convolution before it; on a CPU,
convolutions run on channels-last tensors. Both change logits by rounding only, which is checked on a trial batch;
a network that cannot be rewritten, or would answer differently, runs as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from imbalance_perturb.modes import frozen_eval, full_precision

#: Largest difference of a logit, relative to the largest logit, that counts as rounding in float32.
TOLERANCE = 1e-3


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
        """The network's output for x in another layout."""
        return self.network(x.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


def optimise(network: nn.Module, x: Tensor) -> tuple[nn.Module, Optimisation]:
    """A network that computes the same for less, or ``network`` itself where there is none.

    Args:
        network: frozen, in eval mode, on its device; not to be used any more afterwards but through what is returned.
        x: a trial batch (N, C, H, W) on that device, on which the two are compared.
    """
    expected = _output(network, x)
    if expected is None:
        return network, Optimisation("as the file has it (its output is not one tensor)", 0.0)
    if isinstance(network, fx.GraphModule):
        # The strides of the tensors it was exported with may be written into its graph.
        return network, Optimisation("as the file has it (an exported graph)", 0.0)
    steps, candidate = [], network
    folded = _fold_batch_norm(network)
    if folded is not None:
        candidate, count = folded
        steps.append(f"batch norm folded into {count} convolutions")
    if x.device.type == "cpu" and x.ndim == 4 and any(parameter.ndim == 4 for parameter in network.parameters()):
        candidate = ChannelsLast(candidate)
        steps.append("channels-last")
    if not steps:
        return network, Optimisation("as the file has it", 0.0)
    found = _output(candidate, x)
    assert found is not None  # rewriting leaves the kind of output alone
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= TOLERANCE:
        # Laying parameters out anew changed no value of the network itself: it still answers as before.
        return network, Optimisation(
            f"as the file has it ({', '.join(steps)} moved its logits by {difference:.2g})", 0.0
        )
    return candidate, Optimisation(", ".join(steps), difference)


def _fold_batch_norm(network: nn.Module) -> tuple[nn.Module, int] | None:
    """A copy with batch norm folded away and how often, or ``None`` where nothing could be folded."""
    if isinstance(network, torch.jit.ScriptModule):
        return None
    before = _batch_norms(network)
    if not before:
        return None
    try:
        folded = fuse(network)
    except Exception:  # noqa: BLE001 - tracing runs the network's own code on symbols; if it raises, it runs as it is
        return None
    count = before - _batch_norms(folded)
    return (folded, count) if count else None


def _batch_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _output(network: nn.Module, x: Tensor) -> Tensor | None:
    """The network's logits, or ``None`` where it returns something else."""
    with torch.no_grad(), frozen_eval(network), full_precision(x.device):
        found = network(x)
    return found if isinstance(found, Tensor) else None

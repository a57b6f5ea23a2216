"""A network in low precision by autocast, with what autocast would lose or do anew in each pass settled once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from imbalance_perturb.method.module_state import frozen_eval, full_precision

#: Layers whose products autocast computes in low precision.
_LAYERS = (nn.Conv2d, nn.Linear)


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


class FullPrecision(nn.Module):
    """A layer in float32 whatever precision is in force."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x, both in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())  # type: ignore[no-any-return]


def low_copy(network: nn.Module, x: Tensor, dtype: torch.dtype) -> nn.Module | None:
    """Copy a network with its weights in low precision, which autocast would cast anew in each pass.

    What takes the input and what gives the output stays in float32: rounded to bfloat16 an input would lose a step of
    0.001, and logits would be equal that are not.

    Args:
        network: frozen, in eval mode; not changed.
        x: a trial batch (N, ...) on its device.
        dtype: bfloat16 or float16.

    Returns:
        a copy to be run under autocast, or ``None`` where layers cannot be exchanged: those of a TorchScript file that
        did not become a graph.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        return None
    copied = copy.deepcopy(network)
    order = _in_order(copied, x)
    for name, layer in order[1:-1]:
        if name not in (order[0][0], order[-1][0]):
            layer.to(dtype)
    for name, layer in dict((*order[:1], *order[-1:])).items():
        parent, _, own = name.rpartition(".")
        setattr(copied.get_submodule(parent), own, FullPrecision(layer))
    return copied


def _in_order(network: nn.Module, x: Tensor) -> list[tuple[str, nn.Module]]:
    """The network's convolutions and linear layers with their names, in the order in which they are called."""
    called: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, _, name=name: called.append((name, layer)))
        for name, module in network.named_modules()
        if type(module) in _LAYERS
    ]
    try:
        with torch.no_grad(), frozen_eval(network), full_precision(x.device):
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return called

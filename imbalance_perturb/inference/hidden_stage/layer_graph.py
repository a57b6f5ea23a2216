"""A network as a graph of operations, each with the path of the layer that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.inference.acceleration.conversion import LAYER, convert
from imbalance_perturb.method.module_state import frozen_eval, full_precision
from imbalance_perturb.models.outputs import LogitsOf


def trace_layers(network: nn.Module) -> fx.GraphModule:
    """Trace a network: ``meta[LAYER]`` of a node is the path of the layer that it lies in, as in the state_dict.

    Args:
        network: frozen, in eval mode; not changed.

    Raises:
        Exception: whatever a network raises that runs otherwise than layer after layer.
    """
    if isinstance(network, torch.jit.ScriptModule | fx.GraphModule):
        return convert(network)
    whole = _OneInput(network)
    tracer = _Tracer("network.network." if isinstance(network, LogitsOf) else "network.")
    layers = fx.GraphModule(whole, tracer.trace(whole))
    layers.graph.eliminate_dead_code()
    layers.recompile()
    return layers


class _OneInput(nn.Module):
    """A network without what else it could be called with, whose defaults are values and no symbols this way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


class _Tracer(fx.Tracer):
    """Traces as :func:`torch.fx.symbolic_trace` does, and notes where it is."""

    def __init__(self, wrapper: str) -> None:
        super().__init__()
        self._wrapper, self._paths = wrapper, [""]  # the path that wrappers make of the file's own

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = f"{self.path_of_module(m)}."
        self._paths.append(path.removeprefix(self._wrapper).removesuffix("."))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._paths.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[LAYER] = self._paths[-1]
        return node


def enclosing(path: str) -> Iterator[str]:
    """The layers that a path lies in, itself first: ``a.b``, ``a``."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def run_noting(graph: fx.GraphModule, x: Tensor) -> tuple[dict[fx.Node, Any], dict[fx.Node, int]]:
    """Run a graph on a batch; returns of each node what it gave (a tensor's shape, else the value), and its products.

    Products are multiplications in convolutions, linear layers and attention.
    """
    runner = _Noting(graph)
    # The counter takes a second and a half to import: where layers are all that multiplies, shapes say as much.
    counting = nullcontext() if _multiplies_in_layers(graph) else runner.count_all()
    with torch.no_grad(), frozen_eval(graph), full_precision(x.device), counting:
        runner.run(x)
    return runner.found, runner.cost


#: Parts of names of functions that multiply matrices.
_MULTIPLYING = ("matmul", "mm", "einsum", "attention", "linear", "conv")

#: Layers without products of matrices.
_CHEAP = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def _multiplies_in_layers(graph: fx.GraphModule) -> bool:
    """Whether convolutions and linear layers hold all products."""
    for node in graph.graph.nodes:
        if node.op in ("call_function", "call_method"):
            name = str(getattr(node.target, "__name__", node.target))
            if any(part in name for part in _MULTIPLYING):
                return False
        elif node.op == "call_module":
            layer = graph.get_submodule(str(node.target))
            if not isinstance(layer, (nn.Conv2d, nn.Linear, *_CHEAP)) and any(True for _ in layer.parameters()):
                return False
    return True


class _Noting(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._counter: Any = None
        self.found: dict[fx.Node, Any] = {}
        self.cost: dict[fx.Node, int] = {}

    def count_all(self) -> AbstractContextManager[object]:
        """Inside, the products of whatever operation are counted."""
        from torch.utils.flop_counter import FlopCounterMode

        self._counter = FlopCounterMode(display=False)
        return self._counter  # type: ignore[no-any-return]

    def run_node(self, n: fx.Node) -> Any:
        before = 0 if self._counter is None else self._counter.get_total_flops()
        result = super().run_node(n)
        if self._counter is not None:
            self.cost[n] = (self._counter.get_total_flops() - before) // 2  # it counts additions, too
        elif n.op == "call_module" and isinstance(layer := self.fetch_attr(str(n.target)), nn.Conv2d | nn.Linear):
            self.cost[n] = result.numel() * layer.weight[0].numel()
        self.found[n] = result.shape if isinstance(result, Tensor) else result
        return result

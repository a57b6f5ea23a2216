"""A traced network rewritten for a CPU: what follows a convolution done inside it, dense blocks in one buffer.

Works on the graph that torch.fx traces and knows nothing of architectures: it looks for convolutions followed by an
activation or by the addition of a shortcut, for batch norms before a convolution, and for chains of concatenations.
What it doesn't know is not changed.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.inference.acceleration.convolution import Activation, FusedConvolution, convertible
from imbalance_perturb.inference.acceleration.dense_blocks import DenseBlock, DenseLayer, ScaledReLU
from imbalance_perturb.inference.acceleration.low_precision import FullPrecision

_RELUS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)
_ADDS = (operator.add, operator.iadd, torch.add)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each tensor at its node."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = result.shape if isinstance(result, Tensor) else None
        return result


class Rewriter:
    """Rewrites one traced network in place.

    Args:
        graph: the traced network; on a CPU, in eval mode.
        x: a trial batch (N, C, H, W), from which the shapes inside are known.
        dtype: of the arithmetic inside convolutions.
    """

    def __init__(self, graph: fx.GraphModule, x: Tensor, dtype: torch.dtype) -> None:
        self._module, self._graph, self._dtype = graph, graph.graph, dtype
        self._modules: dict[str, nn.Module] = dict(graph.named_modules())
        with torch.no_grad():
            _Shapes(graph).run(x)

    def rewrite(self) -> dict[str, int]:
        """Rewrite the graph; returns how many layers of each kind were made, by their names in words."""
        done = {"fused convolutions": 0, "dense blocks": 0}
        order = [node for node in self._graph.nodes if self._is_convolution(node)]
        if order and self._is_head(order[-1]):
            order.pop()
        for node in order:
            self._fuse(node)
        done["fused convolutions"] = len(order)
        done["dense blocks"] = self._gather_dense_blocks()
        if self._dtype != torch.float32:
            self._keep_head_precise()
        self._graph.eliminate_dead_code()
        self._give_gradients_away()
        self._graph.lint()
        self._module.delete_all_unused_submodules()
        self._module.recompile()
        return {what: count for what, count in done.items() if count}

    def _is_convolution(self, node: fx.Node) -> bool:
        module = self._at(node)
        if module is None or not convertible(module):
            return False
        source = node.args[0] if node.args else None
        return isinstance(source, fx.Node) and _shape(source) is not None

    def _is_head(self, node: fx.Node) -> bool:
        """Whether a convolution gives the logits: such a head stays a layer with weights that can be read."""
        logits, own = _shape(self._result()), _shape(node)
        return logits is not None and own is not None and logits[1] == own[1]

    def _fuse(self, node: fx.Node) -> None:
        """Put a fused convolution in the place of a plain one and of what can run inside it."""
        conv = self._modules[str(node.target)]
        assert isinstance(conv, nn.Conv2d)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        scaled = self._scaled_relu(source)
        shortcut, last = None, node
        addition = _only_user(node)
        if addition is not None and (other := self._shortcut(addition, node)) is not None:
            shortcut, last = other, addition
        activation = Activation.NONE
        following = _only_user(last)
        if following is not None and (kind := self._activation(following)) is not None:
            activation, last = kind, following
        fused = FusedConvolution(
            conv,
            activation,
            sizes=(_known(_shape(source)), _known(_shape(node))),
            dtype=self._dtype,
            input_scale=None if scaled is None else scaled.scale,
            precise_input=source.op == "placeholder",
        )
        with self._graph.inserting_before(last):
            args = (source,) if shortcut is None else (source, shortcut)
            new = self._graph.call_module(self._add(f"{node.target}_fused", fused), args)
        new.meta = last.meta
        last.replace_all_uses_with(new)
        for old in (last, addition, node):
            if old is not None and old in self._graph.nodes and not old.users and old is not new:
                self._graph.erase_node(old)

    def _scaled_relu(self, node: fx.Node) -> ScaledReLU | None:
        """Merge the batch norm and activation that end in ``node``, where only one convolution reads them."""
        if self._activation(node) is not Activation.RELU or len(node.users) != 1:
            return None
        norm_node = node.args[0]
        if not isinstance(norm_node, fx.Node) or norm_node.op != "call_module" or len(norm_node.users) != 1:
            return None
        norm = self._modules[str(norm_node.target)]
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            return None
        scaled = ScaledReLU(norm, self._dtype)
        node.op, node.target = "call_module", self._add(f"{norm_node.target}_scaled", scaled)
        node.args, node.kwargs = (norm_node.args[0],), {}
        self._graph.erase_node(norm_node)
        return scaled

    def _activation(self, node: fx.Node) -> Activation | None:
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            if type(module) is nn.ReLU:
                return Activation.RELU
            clamps = isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0)
            return Activation.RELU6 if clamps else None
        if (node.op == "call_function" and node.target in _RELUS) or (
            node.op == "call_method" and node.target in ("relu", "relu_")
        ):
            return Activation.RELU
        return Activation.RELU6 if node.op == "call_function" and node.target is nn.functional.relu6 else None

    def _shortcut(self, addition: fx.Node, node: fx.Node) -> fx.Node | None:
        """Find the other summand of ``addition``: two tensors of one shape, of which it may write to ours only."""
        is_add = (addition.op == "call_function" and addition.target in _ADDS) or (
            addition.op == "call_method" and addition.target in ("add", "add_")
        )
        if not is_add or len(addition.args) != 2 or addition.kwargs:
            return None
        first, second = addition.args
        if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
            return None
        in_place = addition.target in (operator.iadd, "add_")
        if in_place and first is not node:
            return None
        other = second if first is node else first
        return other if _shape(other) is not None and _shape(other) == _shape(node) else None

    def _gather_dense_blocks(self) -> int:
        chains: dict[fx.Node, list[fx.Node]] = {}
        for node in self._graph.nodes:
            parts = _concatenated(node)
            if parts:
                chains.setdefault(parts[0], []).append(node)
        return sum(self._gather(start, cats) for start, cats in chains.items() if len(cats) > 1)

    def _gather(self, start: fx.Node, cats: list[fx.Node]) -> bool:
        """Replace these concatenations and what lies between them by one block, if they are one."""
        layers = []
        for cat, following in itertools.pairwise(cats):
            parts, more = _concatenated(cat), _concatenated(following)
            layer = self._dense_layer(cat)
            if layer is None or more[:-1] != parts or more[-1] is not layer[0]:
                return False
            layers.append(layer[1])
        with self._graph.inserting_before(cats[-1]):
            block = self._add("dense_block", DenseBlock(layers, self._dtype))
            new = self._graph.call_module(block, (start,))
        new.meta = cats[-1].meta
        cats[-1].replace_all_uses_with(new)
        return True

    def _dense_layer(self, cat: fx.Node) -> tuple[fx.Node, DenseLayer] | None:
        """Find the layer that reads ``cat`` and the node of its output, if it is norm, relu, conv, relu, conv."""
        found: list[Any] = []
        node: fx.Node | None = cat
        for kind in (ScaledReLU, FusedConvolution, FusedConvolution):
            node = None if node is None else _only_user(node)
            module = None if node is None else self._at(node)
            if not isinstance(module, kind):
                return None
            found.append(module)
        first, bottleneck, last = found
        assert node is not None
        suited = bottleneck.activation is Activation.RELU and last.activation is Activation.NONE
        return (node, DenseLayer(first, bottleneck, last)) if suited else None

    def _give_gradients_away(self) -> None:
        for node in self._graph.nodes:
            user = _only_user(node)
            if user is not None and isinstance(self._at(node), FusedConvolution):
                # A convolution makes a new gradient of its input; that of a shortcut or a sum is shared.
                alone = isinstance(self._at(user), FusedConvolution) and node not in user.args[1:]
                self._at(node).owns_gradient = alone  # type: ignore[union-attr]

    def _result(self) -> Any:
        return next(node for node in self._graph.nodes if node.op == "output").args[0]

    def _at(self, node: fx.Node) -> nn.Module | None:
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def _keep_head_precise(self) -> None:
        head = self._result()
        linear = self._at(head) if isinstance(head, fx.Node) else None
        if type(linear) is nn.Linear:
            head.target = self._add(f"{head.target}_precise", FullPrecision(linear))

    def _add(self, name: str, module: nn.Module) -> str:
        name = name.replace(".", "_")
        while name in self._modules or hasattr(self._module, name):
            name += "_"
        self._module.add_submodule(name, module)
        self._modules[name] = module
        return name


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _concatenated(node: fx.Node) -> list[fx.Node]:
    """List the tensors that ``node`` concatenates along the channels; none if it doesn't."""
    if node.op != "call_function" or node.target is not torch.cat or not isinstance(node.args[0], list | tuple):
        return []
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts = [part for part in node.args[0] if isinstance(part, fx.Node)]
    return parts if axis == 1 and len(parts) == len(node.args[0]) else []


def _known(size: torch.Size | None) -> torch.Size:
    assert size is not None, "shapes were propagated through the whole graph"
    return size


def _shape(node: Any) -> torch.Size | None:
    return node.meta.get("shape") if isinstance(node, fx.Node) else None

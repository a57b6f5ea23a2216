"""A TorchScript or exported classifier as a torch.fx graph of layers, so that it can be rewritten like any other.

Both formats hold a flat list of ATen operations once parameters are constants. Convolutions, batch norms, linear
layers and activations become the modules they were written as; every other operation is called unchanged. Control
flow, or an operation that writes into a tensor which is read again, ends the attempt: then the file runs unchanged.
"""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.inference.acceleration.aten_layers import build_layer
from imbalance_perturb.method.private_torch import find

#: Entry of a node's ``meta``: the path of the layer that the file says it belongs to.
LAYER = "layer"


class NotConvertible(Exception):
    """The program holds something that a flat graph of layers cannot."""


def convert(network: torch.jit.ScriptModule | fx.GraphModule) -> fx.GraphModule:
    """Convert a network to a graph of layers.

    Args:
        network: its parameters frozen, in eval mode; not changed.

    Raises:
        NotConvertible: where it cannot be one.
    """
    return _from_torchscript(network) if isinstance(network, torch.jit.ScriptModule) else _from_exported(network)


class _Builder:
    """Collects operations in order; values are graph nodes, tensors, or plain Python."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self._layers = 0

    def label(self, path: str) -> None:
        """Note of all that was added since the last call which layer of the file it belongs to."""
        for node in reversed(self.graph.nodes):
            if LAYER in node.meta:
                return
            node.meta[LAYER] = path

    def input(self, name: str) -> fx.Node:
        return self.graph.placeholder(name)

    def call(self, operation: str, overload: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Add one ATen operation and return its result; ``operation`` is its name without overload."""
        if operation.endswith("_") and not operation.endswith("__"):
            target = args[0]
            if not isinstance(target, fx.Node) or target.op == "placeholder" or operation not in _FUNCTIONAL:
                raise NotConvertible(operation)
            operation = operation[:-1]
            overload = getattr(torch.ops.aten, operation)
            target.meta["written to"] = True
        if any(isinstance(a, fx.Node) and a.meta.get("gone") for a in args):
            raise NotConvertible(f"{operation} reads a tensor that was written to")
        if operation in ("view", "_unsafe_view"):
            # The same where a view is possible, which depends on the layout in memory: channels-last may not be.
            overload = torch.reshape
        layer = build_layer(operation, args, kwargs)
        if layer is None:
            args = [self._constant(a) for a in args]
            made = self.graph.call_function(overload, tuple(args), kwargs)
        elif isinstance(layer, nn.Module):
            made = self.graph.call_module(self._add(layer), (args[0],))
        else:
            made = self.graph.call_function(layer, (args[0], args[1]) if operation == "add" else (args[0],))
        for argument in args:
            if isinstance(argument, fx.Node) and argument.meta.pop("written to", False):
                # Whoever reads the old name again would see the new value.
                argument.meta["gone"] = True
        return made

    def unpack(self, parts: Any, n: int) -> list[Any]:
        """Return the n members of a list, which exists now or only when the graph runs."""
        if not isinstance(parts, fx.Node):
            return list(parts)
        return [self.graph.call_function(operator.getitem, (parts, index)) for index in range(n)]

    def size(self, args: Sequence[Any]) -> Any:
        """Add the side of a tensor: a number when the graph runs."""
        return self.number(self.graph.call_method("size", tuple(args)))

    def number(self, node: Any) -> Any:
        if isinstance(node, fx.Node):
            node.meta["number"] = True
        return node

    def arithmetic(self, operation: str, args: Sequence[Any]) -> Any:
        """Add arithmetic on sides, which TorchScript does on tensors of no dimension; ``None`` if it is none."""
        function = ARITHMETIC.get(operation)
        if function is None or not any(isinstance(a, fx.Node) and a.meta.get("number") for a in args[:2]):
            return None
        return self.number(self.graph.call_function(function, tuple(args[:2])))

    def _constant(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._constant(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        name = f"constant{self._layers}"
        self._layers += 1
        self.root.register_buffer(name, value.detach())
        return self.graph.get_attr(name)

    def _add(self, layer: nn.Module) -> str:
        name = f"layer{self._layers}"
        self._layers += 1
        self.root.add_module(name, layer.eval().requires_grad_(False))
        return name

    def finish(self, result: Any) -> fx.GraphModule:
        self.graph.output(result)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)


#: Arithmetic on the sides of tensors. Arithmetic on tensors is called unchanged.
ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floor_divide": operator.floordiv,
    "floordiv": operator.floordiv,
}

#: What TorchScript puts between a number and a tensor of no dimension.
_NUMBERS = ("prim::NumToTensor", "aten::Int", "aten::IntImplicit", "aten::ScalarImplicit")

#: Operations that write into their first argument and have a counterpart that does not.
_FUNCTIONAL = {
    "relu_",
    "relu6_",
    "hardtanh_",
    "add_",
    "silu_",
    "hardswish_",
    "hardsigmoid_",
    "mul_",
    "sigmoid_",
    "dropout_",
}


#: How TorchScript writes where a node is, ``SELF(ResNet).layer1(Sequential).0(BasicBlock).relu(ReLU)``, and what of it
#: is no layer.
_HIERARCHY, _NO_LAYER = re.compile(r"([^.()]+)\([^()]*\)"), ("SELF", "UNKNOWN_INSTANCE")


def _from_torchscript(network: torch.jit.ScriptModule) -> fx.GraphModule:
    with warnings.catch_warnings():
        # torch calls TorchScript itself deprecated; the format is one that users have.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Parameters become constants; a copy, since freezing takes attributes away. A file may have been frozen before.
        frozen = copy.deepcopy(network)
        if hasattr(frozen, "training"):
            frozen = torch.jit.freeze(frozen, optimize_numerics=False)
    graph = frozen.graph
    _drop_checks(graph)
    inputs = list(graph.inputs())
    if len(inputs) != 2:
        raise NotConvertible("more than one input")
    builder = _Builder()
    values: dict[str, Any] = {inputs[1].debugName(): builder.input("x")}
    for node in graph.nodes():
        kind, results = node.kind(), [output.debugName() for output in node.outputs()]
        arguments = [values.get(value.debugName(), NotConvertible) for value in node.inputs()]
        if any(argument is NotConvertible for argument in arguments):
            raise NotConvertible(kind)
        if kind in ("prim::ListUnpack", "prim::TupleUnpack", "prim::ConstantChunk"):
            parts = arguments[0]
            if kind == "prim::ConstantChunk":
                parts = builder.graph.call_function(torch.chunk, (parts, node.i("chunks"), node.i("dim")))
            values |= dict(zip(results, builder.unpack(parts, len(results)), strict=True))
        elif len(results) != 1:
            raise NotConvertible(kind)
        elif kind == "prim::Constant":
            values[results[0]] = node.output().toIValue()
        elif kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            values[results[0]] = list(arguments)
        elif kind == "aten::size" and len(arguments) == 2:
            values[results[0]] = builder.size(arguments)
        elif kind in _NUMBERS:
            values[results[0]] = builder.number(arguments[0])
        elif kind.startswith("aten::") and not list(node.blocks()):
            name = kind.removeprefix("aten::")
            number = builder.arithmetic(name, arguments)
            values[results[0]] = (
                builder.call(name, *_resolve_call(node.schema(), arguments)) if number is None else number
            )
        else:
            raise NotConvertible(kind)
        builder.label(".".join(name for name in _HIERARCHY.findall(node.getModuleHierarchy()) if name not in _NO_LAYER))
    outputs = [values[value.debugName()] for value in graph.outputs()]
    if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise NotConvertible("its output is not one tensor")
    return builder.finish(outputs[0])


def _drop_checks(graph: Any) -> None:
    """Take out of a TorchScript graph what only raises an error for an input that does not fit, as scripts have it."""
    for node in list(graph.nodes()):
        inside = [inner.kind() for block in node.blocks() for inner in block.nodes()]
        if node.kind() == "prim::If" and not list(node.outputs()) and set(inside) <= _RAISING:
            node.destroy()
    find("torch._C._jit_pass_dce")(graph)


#: What stands where a script raises an error.
_RAISING = {"prim::RaiseException", "prim::Constant", "aten::format"}


def _resolve_call(schema: str, arguments: list[Any]) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """Find the operation of a TorchScript node, and split its row of arguments into positional and keyword ones."""
    parsed = find("torch._C.parse_schema")(schema)
    packet = getattr(torch.ops.aten, parsed.name.removeprefix("aten::"), None)
    overload = getattr(packet, parsed.overload_name or "default", None)
    if overload is None:
        raise NotConvertible(schema)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if len(arguments) != len(parsed.arguments):
        raise NotConvertible(schema)
    for value, argument in zip(arguments, parsed.arguments, strict=True):
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return overload, args, kwargs


def _from_exported(program: fx.GraphModule) -> fx.GraphModule:
    builder = _Builder()
    values: dict[fx.Node, Any] = {}

    def known(argument: Any) -> Any:
        return fx.map_arg(argument, lambda node: values[node])

    for node in program.graph.nodes:
        if node.op == "placeholder":
            if values and any(v.op == "placeholder" for v in values.values() if isinstance(v, fx.Node)):
                raise NotConvertible("more than one input")
            values[node] = builder.input("x")
        elif node.op == "get_attr":
            values[node] = _attribute(program, str(node.target))
        elif node.op == "call_module" and "guards" in str(node.target):
            continue  # what the program demands of its input is checked where it is called
        elif node.op == "call_function" and isinstance(node.target, find("torch._ops.OpOverload")):
            if node.target.namespace != "aten":
                raise NotConvertible(str(node.target))
            args, kwargs = list(known(tuple(node.args))), dict(known(node.kwargs))
            name = node.target._opname
            values[node] = builder.call(name, node.target, args, kwargs)
        elif node.op == "call_function" and node.target in (operator.getitem, *ARITHMETIC.values()):
            values[node] = builder.graph.call_function(node.target, known(tuple(node.args)))
        elif node.op == "output":
            (result,) = node.args
            result = result[0] if isinstance(result, list | tuple) and len(result) == 1 else result
            if not isinstance(result, fx.Node):
                raise NotConvertible("its output is not one tensor")
            return builder.finish(values[result])
        else:
            raise NotConvertible(str(node.target))
        scopes = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
        builder.label(scopes[-1][0])
    raise NotConvertible("it has no output")


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found

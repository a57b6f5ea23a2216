"""A TorchScript or exported classifier as a torch.fx graph of layers, so that it can be rewritten like any other.

Both formats hold a flat list of ATen operations once parameters are constants. Convolutions, batch norms, linear
layers and activations become the modules they were written as; every other operation is called as it is. Control
flow, or an operation that writes into a tensor which is read again, ends the attempt: then the file runs as it is.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear, nn.BatchNorm2d)


class NotConvertible(Exception):
    """The program holds something that has no place in a flat graph of layers."""


def convert(network: nn.Module) -> fx.GraphModule | None:
    """The network as a graph of layers, or ``None`` where it is not one.

    Args:
        network: frozen, in eval mode; left as it is.
    """
    try:
        if isinstance(network, torch.jit.ScriptModule):
            return _from_torchscript(network)
        if isinstance(network, fx.GraphModule):
            return _from_exported(network)
    except NotConvertible:
        return None
    return None


class _Builder:
    """Collects operations in order; values are graph nodes, tensors, or plain Python."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self._layers = 0

    def input(self, name: str) -> fx.Node:
        return self.graph.placeholder(name)

    def call(self, operation: str, overload: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of one ATen operation, ``operation`` its name without overload."""
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
            # The same where a view is possible, which depends on how the tensor lies; channels-last it may not be.
            overload = torch.reshape
        layer = _layer(operation, args, kwargs)
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
        """The n members of a list, which is one when the graph runs or now."""
        if not isinstance(parts, fx.Node):
            return list(parts)
        return [self.graph.call_function(operator.getitem, (parts, index)) for index in range(n)]

    def size(self, args: Sequence[Any]) -> Any:
        """A side of a tensor: a number when the graph runs."""
        return self.number(self.graph.call_method("size", tuple(args)))

    def number(self, node: Any) -> Any:
        if isinstance(node, fx.Node):
            node.meta["number"] = True
        return node

    def arithmetic(self, operation: str, args: Sequence[Any]) -> Any:
        """Arithmetic on sides, which TorchScript does on tensors of no dimension; ``None`` if it is none."""
        function = _ARITHMETIC.get(operation)
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


#: Arithmetic on the sides of tensors. Where it is on tensors, it is called as it is.
_ARITHMETIC = {
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


def _layer(operation: str, args: Sequence[Any], kwargs: dict[str, Any]) -> nn.Module | Callable[..., Any] | None:
    """The module or function that says the same, or ``None`` where the operation is to be called as it is."""
    if operation in ("conv2d", "_convolution", "convolution"):
        return _convolution(operation, args)
    if operation == "batch_norm":
        return _batch_norm(args)
    if operation == "linear" and isinstance(args[1], Tensor):
        weight, bias = args[1], args[2] if len(args) > 2 else kwargs.get("bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        return _filled(linear, weight, bias)
    if operation == "relu":
        return torch.relu
    if operation == "relu6" or (operation == "hardtanh" and tuple(map(float, args[1:3])) == (0.0, 6.0)):
        return nn.functional.relu6
    if operation == "add" and len(args) == 2 + (len(args) > 2) and all(isinstance(a, fx.Node) for a in args[:2]):
        alpha = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
        return torch.add if alpha == 1 else None
    if operation == "dropout" and args[2] is False:
        return nn.Identity()
    return None


def _convolution(operation: str, args: Sequence[Any]) -> nn.Conv2d | None:
    weight, bias = args[1], args[2] if len(args) > 2 else None
    if not isinstance(weight, Tensor) or weight.ndim != 4 or not isinstance(bias, Tensor | None):
        return None
    if operation == "conv2d":
        defaults: tuple[Any, ...] = ([1], [0], [1], 1)
        stride, padding, dilation, groups = (*args[3:], *defaults[len(args[3:]) :])
        transposed, output_padding = False, [0]
    else:
        stride, padding, dilation, transposed, output_padding, groups = args[3:9]
    if transposed or any(output_padding) or isinstance(padding, str):
        return None
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        _pair(weight.shape[2:]),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
        bias is not None,
        device="meta",
    )
    return _filled(conv, weight, bias)


def _batch_norm(args: Sequence[Any]) -> nn.BatchNorm2d | None:
    weight, bias, mean, variance, training, _, eps = args[1:8]
    if training or not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    norm = nn.BatchNorm2d(mean.shape[0], eps, affine=weight is not None, device="meta")
    norm.running_mean, norm.running_var = mean.detach(), variance.detach()
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return norm if weight is None else _filled(norm, weight, bias)


def _filled(layer: _Layer, weight: Tensor, bias: Tensor | None) -> _Layer:
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _pair(value: Sequence[int]) -> tuple[int, int]:
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)


def _from_torchscript(network: torch.jit.ScriptModule) -> fx.GraphModule:
    with warnings.catch_warnings():
        # torch calls TorchScript itself deprecated; the format is one that users have.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            # Parameters become constants; a copy, since freezing takes attributes away.
            frozen = torch.jit.freeze(copy.deepcopy(network), optimize_numerics=False)
        except RuntimeError as error:
            raise NotConvertible(str(error)) from error
    graph = frozen.graph
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
            values[results[0]] = builder.call(name, *_called(node.schema(), arguments)) if number is None else number
        else:
            raise NotConvertible(kind)
    outputs = [values[value.debugName()] for value in graph.outputs()]
    if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise NotConvertible("its output is not one tensor")
    return builder.finish(outputs[0])


def _called(schema: str, arguments: list[Any]) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """The operation of a TorchScript node, and its arguments as Python calls it: TorchScript has them all in a row."""
    parsed = torch._C.parse_schema(schema)
    packet = getattr(torch.ops.aten, parsed.name.removeprefix("aten::"), None)
    overload = getattr(packet, parsed.overload_name or "default", None)
    if overload is None:
        raise NotConvertible(schema)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
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
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target.namespace != "aten":
                raise NotConvertible(str(node.target))
            args, kwargs = list(known(tuple(node.args))), dict(known(node.kwargs))
            name = node.target._opname
            values[node] = builder.call(name, node.target, args, kwargs)
        elif node.op == "call_function" and node.target in (operator.getitem, *_ARITHMETIC.values()):
            values[node] = builder.graph.call_function(node.target, known(tuple(node.args)))
        elif node.op == "output":
            (result,) = node.args
            result = result[0] if isinstance(result, list | tuple) and len(result) == 1 else result
            if not isinstance(result, fx.Node):
                raise NotConvertible("its output is not one tensor")
            return builder.finish(values[result])
        else:
            raise NotConvertible(str(node.target))
    raise NotConvertible("it has no output")


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found

"""ATen operations as the layers they were written as: convolutions, batch norms, linear layers and activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def build_layer(operation: str, args: Sequence[Any], kwargs: dict[str, Any]) -> nn.Module | Callable[..., Any] | None:
    """Build the module, or find the function, that computes the same; ``None`` where there is neither.

    Args:
        operation: the ATen operation's name without overload.
        args: what it is called with: graph nodes, tensors, plain Python.
        kwargs: the same, by name.
    """
    if operation in ("conv2d", "_convolution", "convolution"):
        return _build_convolution(operation, args)
    if operation == "batch_norm":
        return _build_batch_norm(args)
    if operation == "linear" and isinstance(args[1], Tensor):
        weight, bias = args[1], args[2] if len(args) > 2 else kwargs.get("bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        return _fill(linear, weight, bias)
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


def _build_convolution(operation: str, args: Sequence[Any]) -> nn.Conv2d | None:
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
    return _fill(conv, weight, bias)


def _build_batch_norm(args: Sequence[Any]) -> nn.BatchNorm2d | None:
    weight, bias, mean, variance, training, _, eps = args[1:8]
    if training or not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    norm = nn.BatchNorm2d(mean.shape[0], eps, affine=weight is not None, device="meta")
    norm.running_mean, norm.running_var = mean.detach(), variance.detach()
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return norm if weight is None else _fill(norm, weight, bias)


def _fill(layer: _Layer, weight: Tensor, bias: Tensor | None) -> _Layer:
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _pair(value: Sequence[int]) -> tuple[int, int]:
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)

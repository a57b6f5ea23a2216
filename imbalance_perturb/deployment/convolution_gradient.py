"""The gradient at a convolution's input, by convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbalance_perturb.errors import ModelGradientError

aten = torch.ops.aten


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient at the input of a convolution: a convolution with the weights flipped, or a transposed one."""
    if not output_mask[0]:
        return None, None, None
    if any(output_mask[1:]):
        raise ModelGradientError("a gradient of parameters is asked for; they must be frozen")
    if transposed:
        # The other way round, it is the plain convolution with the same weights.
        return (
            aten.convolution(grad, weight, None, stride, padding, dilation, False, [0] * len(stride), groups),
            None,
            None,
        )
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(s == 1 for s in stride) and all(r >= p for r, p in zip(reach, padding, strict=True)):
        around = [r - p for r, p in zip(reach, padding, strict=True)]
        flipped = _flipped(weight, groups)
        return (
            aten.convolution(grad, flipped, None, stride, around, dilation, False, [0] * len(stride), groups),
            None,
            None,
        )
    return _transposed_convolution(grad, weight, x.shape[2:], stride, padding, dilation, groups), None, None


def _flipped(weight: Tensor, groups: int) -> Tensor:
    """Weights (O, I/groups, ...) turned round, with inputs and outputs of each group exchanged."""
    outputs, inputs, *kernel = weight.shape
    grouped = weight if groups == 1 else weight.reshape(groups, outputs // groups, inputs, *kernel)
    swapped = (
        grouped.transpose(0, 1) if groups == 1 else grouped.transpose(1, 2).reshape(-1, outputs // groups, *kernel)
    )
    turned = [2 + axis for axis, size in enumerate(kernel) if size > 1]
    return swapped.flip(turned) if turned else swapped


def _transposed_convolution(
    values: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The transposed convolution whose result has the given height and width."""
    # The most that a stride can have left over at the end; what is too much of it is cut off.
    rest = [
        want - ((n - 1) * s - 2 * p + d * (k - 1) + 1)
        for want, n, s, p, d, k in zip(size, values.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    known = all(isinstance(r, int) and 0 <= r < max(s, d) for r, s, d in zip(rest, stride, dilation, strict=True))
    over = rest if known else [s - 1 for s in stride]
    made: Tensor = aten.convolution(values, weight, None, stride, padding, dilation, True, over, groups)
    return made if known else cut(made, size)


def cut(values: Tensor, size: Sequence[int]) -> Tensor:
    """The first places of values (N, C, H, W), as many as ``size`` (height, width) has."""
    for axis, length in enumerate(size):
        values = values.narrow(2 + axis, 0, length)
    return values

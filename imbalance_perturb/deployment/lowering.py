"""What autograd's own operators become in a graph of forward operators: functions of tensors, one for each.

The gradient of a convolution is a convolution, that of pooling a spreading of values, that of everything else
arithmetic, for which torch has decompositions. Runtimes such as ONNX Runtime and OpenVINO compute all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from imbalance_perturb.errors import ModelGradientError

aten = torch.ops.aten

Table = dict[Any, Callable[..., Any]]


def lowering_table() -> Table:
    """Build the table of operators that are replaced while a graph is traced, with what replaces them."""
    torchs = {op: function for op, function in dict(core_aten_decompositions()).items() if "backward" in str(op)}
    return torchs | {
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.avg_pool2d_backward.default: avg_pool_backward,
        aten._adaptive_avg_pool2d.default: adaptive_avg_pool,
        aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool_backward,
        aten.native_batch_norm.default: batch_norm,
        aten.native_batch_norm_backward.default: batch_norm_backward,
        aten._native_batch_norm_legit_no_training.default: batch_norm_in_eval,
        aten._softmax_backward_data.default: softmax_backward,
    }


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
    return _transposed(grad, weight, x.shape[2:], stride, padding, dilation, groups), None, None


def _flipped(weight: Tensor, groups: int) -> Tensor:
    """Weights (O, I/groups, ...) turned round, with inputs and outputs of each group exchanged."""
    outputs, inputs, *kernel = weight.shape
    grouped = weight if groups == 1 else weight.reshape(groups, outputs // groups, inputs, *kernel)
    swapped = (
        grouped.transpose(0, 1) if groups == 1 else grouped.transpose(1, 2).reshape(-1, outputs // groups, *kernel)
    )
    turned = [2 + axis for axis, size in enumerate(kernel) if size > 1]
    return swapped.flip(turned) if turned else swapped


def _transposed(
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
    return made if known else _cut(made, size)


def _cut(values: Tensor, size: Sequence[int], start: Sequence[int] = (0, 0)) -> Tensor:
    for axis, (first, length) in enumerate(zip(start, size, strict=True)):
        values = values.narrow(2 + axis, first, length)
    return values


def _pair(value: Sequence[int]) -> tuple[int, int]:
    first, second = (value[0], value[-1])
    return first, second


def max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """The gradient at the input of max pooling: each window's goes to its first maximum, as torch has it."""
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride) if len(stride) else kernel
    size = grad.shape[2:]
    padded = _padded(x, size, kernel, stride, padding, dilation, -math.inf)
    shifted = [
        _cut(padded[:, :, down * dilation[0] :: stride[0], right * dilation[1] :: stride[1]], size)
        for down in range(kernel[0])
        for right in range(kernel[1])
    ]
    largest = shifted[0]
    for values in shifted[1:]:
        largest = torch.maximum(largest, values)
    parts, open_ = [], torch.ones_like(grad)
    for values in shifted:
        first = torch.where(values == largest, open_, 0.0)
        parts.append(first * grad)
        open_ = open_ - first
    return _spread(parts, x, kernel, stride, padding, dilation)


def _padded(
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    value: float,
) -> Tensor:
    """x with so much around it that all of ``size`` windows lie within."""
    after = []
    for want, have, k, s, p, d in zip(size, x.shape[2:], kernel, stride, padding, dilation, strict=True):
        rest = (want - 1) * s + d * (k - 1) + 1 - have - p
        after.append(max(0, rest) if isinstance(rest, int) else p + s - 1)
    padded: Tensor = aten.constant_pad_nd(x, [padding[1], after[1], padding[0], after[0]], value)
    return padded


def _spread(
    parts: Sequence[Tensor],
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Add up values (N, C, h, w) at the places of their windows: one for each place, or a single one for all."""
    height, width = parts[0].shape[2:]
    if len(parts) == 1:
        weight = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    else:
        places = kernel[0] * kernel[1]
        weight = torch.eye(places, dtype=x.dtype, device=x.device).reshape(places, 1, *kernel)
    stacked = torch.stack(list(parts), 2).reshape(-1, len(parts), height, width)
    return _transposed(stacked, weight, x.shape[2:], stride, padding, dilation, 1).reshape(x.shape)


def avg_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """The gradient at the input of average pooling: each window's share to all of its places."""
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if len(stride) else kernel
    if divisor_override is not None:
        share = grad / divisor_override
    elif not ceil_mode and (count_include_pad or not any(padding)):
        share = grad / (kernel[0] * kernel[1])
    else:
        share = grad / _window_sizes(x, grad.shape[2:], kernel, stride, padding, count_include_pad)
    return _spread([share], x, kernel, stride, padding, (1, 1))


def _window_sizes(
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool,
) -> Tensor:
    """How many places of the image, or of it with its padding, each window has: (1, 1, h, w)."""
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        ones = aten.constant_pad_nd(ones, [padding[1], padding[1], padding[0], padding[0]], 1.0)
        padding = (0, 0)
    padded = _padded(ones, size, kernel, stride, padding, (1, 1), 0.0)
    weight = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    counted: Tensor = aten.convolution(padded, weight, None, stride, (0, 0), (1, 1), False, (0, 0), 1)
    return _cut(counted, size)


def adaptive_avg_pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """Average pooling to a size: the mean, or a product with a matrix along each axis."""
    if all(side == 1 for side in size):
        return x.mean((-2, -1), keepdim=True)
    return _pooling(x, 2, size[0]) @ x @ _pooling(x, 3, size[1]).transpose(0, 1)


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of :func:`adaptive_avg_pool`: the products with the same matrices, transposed."""
    return _pooling(x, 2, grad.shape[2]).transpose(0, 1) @ grad @ _pooling(x, 3, grad.shape[3])


def _pooling(x: Tensor, axis: int, size: int) -> Tensor:
    """(size, n) matrix that averages an axis of n places as ``adaptive_avg_pool2d`` does."""
    n = int(x.shape[axis])
    rows = []
    for index in range(size):
        first, last = index * n // size, -(-(index + 1) * n // size)
        rows.append([1 / (last - first) if first <= place < last else 0.0 for place in range(n)])
    return torch.tensor(rows, dtype=x.dtype, device=x.device)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with the statistics of training: a fixed scale and shift of each channel."""
    if training or mean is None or variance is None:
        raise ModelGradientError("batch norm takes its statistics from the batch, so images would mix")
    scale = _scale(weight, variance, eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [1, -1] + [1] * (x.ndim - 2)
    return x * scale.reshape(shape) + shift.reshape(shape), mean.new_empty(0), mean.new_empty(0)


def batch_norm_in_eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same under the name that it has in eval mode."""
    return batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    saved_mean: Tensor | None,
    saved_scale: Tensor | None,
    training: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of :func:`batch_norm`: its scale."""
    if training or variance is None:
        raise ModelGradientError("batch norm takes its statistics from the batch, so images would mix")
    return grad * _scale(weight, variance, eps).reshape([1, -1] + [1] * (x.ndim - 2)), None, None


def _scale(weight: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    scale = torch.rsqrt(variance + eps)
    return scale if weight is None else weight * scale


def softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The gradient of softmax."""
    weighted = grad * output
    return weighted - output * weighted.sum(dim, keepdim=True)

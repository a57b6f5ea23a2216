"""Pooling and the gradients at its input, without scatter: equalities, shifted sums and products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imbalance_perturb.deployment.convolution_gradient import cut

aten = torch.ops.aten


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
        cut(padded[:, :, down * dilation[0] :: stride[0], right * dilation[1] :: stride[1]], size)
        for down in range(kernel[0])
        for right in range(kernel[1])
    ]
    largest = shifted[0]
    for values in shifted[1:]:
        largest = torch.maximum(largest, values)
    parts, open_ = [], torch.ones_like(grad)
    for values in shifted:
        first = open_ * (values == largest)
        parts.append(first * grad)
        open_ = open_ - first
    rows = [
        _spread(3, parts[first : first + kernel[1]], x.shape[3], stride[1], padding[1], dilation[1])
        for first in range(0, len(parts), kernel[1])
    ]
    return _spread(2, rows, x.shape[2], stride[0], padding[0], dilation[0])


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


def _spread(axis: int, parts: Sequence[Tensor], size: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Add up values (N, C, h, w), one for each place of a window along an axis, at those places.

    What falls on each remainder of the stride is added up first, then these are interleaved.
    """
    most = dilation * (len(parts) - 1) // stride
    sums: list[Tensor | None] = [None] * stride
    for place, part in enumerate(parts):
        shift, phase = divmod(place * dilation, stride)
        moved = _with_zeros(part, axis, shift, most - shift)
        before = sums[phase]
        sums[phase] = moved if before is None else before + moved
    given = next(one for one in sums if one is not None)
    filled = [torch.zeros_like(given) if one is None else one for one in sums]
    shape = list(given.shape)
    shape[axis] *= stride
    spread = filled[0] if stride == 1 else torch.stack(filled, axis + 1).reshape(shape)
    # Places after the last window have no value of their own.
    short = padding + size - shape[axis]
    more = max(0, short) if isinstance(short, int) else stride - 1
    return _with_zeros(spread, axis, 0, more).narrow(axis, padding, size)


def _with_zeros(values: Tensor, axis: int, before: int, after: int) -> Tensor:
    if not before and not after:
        return values
    around = [before, after] if axis == 3 else [0, 0, before, after]
    padded: Tensor = aten.constant_pad_nd(values, around, 0.0)
    return padded


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
    row = _spread(3, [share] * kernel[1], x.shape[3], stride[1], padding[1], 1)
    return _spread(2, [row] * kernel[0], x.shape[2], stride[0], padding[0], 1)


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
    return cut(counted, size)


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

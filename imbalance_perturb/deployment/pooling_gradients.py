"""Pooling and the gradients at its input, without scatter: equalities, convolutions and products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imbalance_perturb.deployment.convolution_gradient import cut, transposed_convolution

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
    return transposed_convolution(stacked, weight, x.shape[2:], stride, padding, dilation, 1).reshape(x.shape)


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

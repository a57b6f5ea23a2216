"""What autograd's own operators become in a graph of forward operators: functions of tensors, one for each.

The gradient of a convolution is a convolution, that of pooling a spreading of values, that of everything else
arithmetic, for which torch has decompositions. Runtimes such as ONNX Runtime and OpenVINO compute all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from imbalance_perturb.deployment.convolution_gradient import convolution_backward
from imbalance_perturb.deployment.pooling_gradients import (
    adaptive_avg_pool,
    adaptive_avg_pool_backward,
    avg_pool_backward,
    max_pool_backward,
)
from imbalance_perturb.errors import ModelGradientError
from imbalance_perturb.method.private_torch import find

aten = torch.ops.aten

Table = dict[Any, Callable[..., Any]]


def lowering_table() -> Table:
    """Build the table of operators that are replaced while a graph is traced, with what replaces them."""
    torchs = {
        op: function
        for op, function in dict(find("torch._decomp.core_aten_decompositions")()).items()
        if "backward" in str(op)
    }
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
        aten.threshold_backward.default: threshold_backward,
        aten.hardtanh_backward.default: hardtanh_backward,
    }


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


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """The gradient of ReLU: a product, which torch computes in a third of the time of a choice by ``where``."""
    return grad * (x > threshold)


def hardtanh_backward(grad: Tensor, x: Tensor, lowest: float, highest: float) -> Tensor:
    """The gradient of a clamped activation, such as ReLU6."""
    return grad * ((x > lowest) & (x < highest))

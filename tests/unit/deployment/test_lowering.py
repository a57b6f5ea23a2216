"""What stands in the place of autograd's operators gives autograd's values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_perturb.deployment import convolution_gradient, lowering, pooling_gradients
from imbalance_perturb.errors import ModelGradientError

MASK = [True, False, False]


def by_autograd(function: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, a gradient at the output, and what autograd makes of that at the input."""
    leaf = x.clone().requires_grad_(True)
    y = function(leaf)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, leaf, grad)
    return y.detach(), grad, expected


@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((1, 1), (1, 1), (0, 0), (1, 1), 1),
        ((3, 2), (1, 1), (0, 1), (1, 2), 2),
        ((3, 3), (1, 1), (3, 3), (1, 1), 4),  # more padding than the kernel reaches
        ((3, 3), (2, 2), (1, 1), (1, 1), 1),
        ((5, 3), (3, 2), (2, 1), (1, 2), 2),
        ((1, 1), (2, 2), (0, 0), (1, 1), 4),
    ],
)
def test_a_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    size: tuple[int, int],
) -> None:
    """The gradient at a convolution's input, for every stride, padding, dilation and number of groups."""
    x, weight = torch.randn(2, 4, *size), torch.randn(8, 4 // groups, *kernel)
    _, grad, expected = by_autograd(lambda x: F.conv2d(x, weight, None, stride, padding, dilation, groups), x)
    found, *rest = convolution_gradient.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, MASK
    )
    torch.testing.assert_close(found, expected)
    assert rest == [None, None]


def test_a_transposed_convolution() -> None:
    """Its gradient is the plain convolution with the same weights."""
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(4, 3, 3, 3)
    _, grad, expected = by_autograd(lambda x: F.conv_transpose2d(x, weight, None, 2, 1, 1), x)
    found, *_ = convolution_gradient.convolution_backward(
        grad, x, weight, None, (2, 2), (1, 1), (1, 1), True, (1, 1), 1, MASK
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 3), (2, 3), (0, 1), (1, 1)), ((2, 2), (1, 2), (1, 0), (2, 1))],
)
def test_max_pooling(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> None:
    """Each window's gradient goes to its first maximum, ties included, as torch has it."""
    x = torch.randint(0, 3, (2, 3, 9, 10)).float()  # full of ties
    _, grad, expected = by_autograd(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode), x)
    found = pooling_gradients.max_pool_backward(grad, x, kernel, stride, padding, dilation, ceil_mode, grad)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_average_pooling(
    kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool, divisor: int | None
) -> None:
    """Each window's gradient is shared by its places, counted as torch counts them."""
    x, arguments = torch.randn(2, 3, 8, 9), (kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    _, grad, expected = by_autograd(lambda x: F.avg_pool2d(x, *arguments), x)
    pairs = [[value] for value in arguments[:3]]
    found = pooling_gradients.avg_pool_backward(grad, x, *pairs, *arguments[3:])  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5), (6, 9)])
def test_adaptive_average_pooling(size: tuple[int, int]) -> None:
    """Values and gradient, to smaller and to larger sizes."""
    x = torch.randn(2, 3, 7, 9)
    y, grad, expected = by_autograd(lambda x: F.adaptive_avg_pool2d(x, size), x)
    torch.testing.assert_close(pooling_gradients.adaptive_avg_pool(x, size), y)
    torch.testing.assert_close(pooling_gradients.adaptive_avg_pool_backward(grad, x), expected)


def test_batch_norm_and_softmax() -> None:
    """Both with the statistics of training; with those of the batch batch norm is refused."""
    norm = nn.BatchNorm2d(3).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4)
    y, grad, expected = by_autograd(norm, x)
    state = (norm.weight, norm.running_mean, norm.running_var)
    torch.testing.assert_close(lowering.batch_norm_in_eval(x, norm.weight, norm.bias, *state[1:], 0.1, norm.eps)[0], y)
    found = lowering.batch_norm_backward(grad, x, *state, None, None, False, norm.eps, MASK)[0]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ModelGradientError, match="statistics from the batch"):
        lowering.batch_norm(x, norm.weight, norm.bias, *state[1:], True, 0.1, norm.eps)
    y, grad, expected = by_autograd(lambda x: torch.softmax(x, 1), x)
    torch.testing.assert_close(lowering.softmax_backward(grad, y, 1, torch.float32), expected)

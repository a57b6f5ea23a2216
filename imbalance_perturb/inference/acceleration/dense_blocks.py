"""DenseNet's blocks (Huang et al. 2017) in one buffer: every layer reads what all earlier ones wrote beside each other.

Layer by layer, as networks are written, each layer copies all earlier features to concatenate them, and the gradient
of each feature is the sum of as many tensors as layers read it. Here the features of a block lie in one tensor from
the start, and so do their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imbalance_perturb.inference.acceleration.convolution import Activation, FusedConvolution


class ScaledReLU(nn.Module):
    """relu(scale * x + shift) for each channel: a batch norm in eval mode and the activation behind it.

    Its gradient leaves ``scale`` out: the convolutions that read it have it in theirs (``input_scale``), which
    saves a pass over the tensor.
    """

    def __init__(self, norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale, shift = affine(norm)
        self._factor, self._shift = (v.to(dtype).view(-1, 1, 1) for v in (self.scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Recorded.apply(x, self)  # type: ignore[no-any-return]
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Run the forward pass, not recorded."""
        return torch.addcmul(self._shift, x.to(self._shift.dtype), self._factor).relu_()


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: ScaledReLU) -> Tensor:
        y = module.run(x)
        ctx.save_for_backward(y)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return Activation.RELU.backward(gradient, y).to(ctx.dtype), None


class DenseLayer(nn.Module):
    """norm, relu, 1 x 1 convolution, (norm,) relu, 3 x 3 convolution."""

    def __init__(self, first: ScaledReLU, bottleneck: FusedConvolution, last: FusedConvolution) -> None:
        super().__init__()
        self.first, self.bottleneck, self.last = first, bottleneck, last


class DenseBlock(nn.Module):
    """All features of a block, (N, C_0 + L * growth, H, W), from those it starts with, (N, C_0, H, W)."""

    def __init__(self, layers: list[DenseLayer], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.growth = [layer.last.out_channels for layer in layers]
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's features."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _RecordedBlock.apply(x, self)  # type: ignore[no-any-return]
        return self.run(x, None)

    def run(self, x: Tensor, kept: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Run the forward pass; ``kept`` takes the two activations of each layer, which the backward pass needs."""
        n, channels, *size = x.shape
        features = torch.empty(
            (n, channels + sum(self.growth), *size), dtype=self.dtype, memory_format=torch.channels_last
        )
        features[:, :channels] = x
        for layer, growth in zip(self.layers, self.growth, strict=True):
            assert isinstance(layer, DenseLayer)
            first = layer.first.run(features[:, :channels])
            second = layer.bottleneck.run(first)
            features[:, channels : channels + growth] = layer.last.run(second)
            channels += growth
            if kept is not None:
                kept.append((first, second))
        return features

    def run_backward(self, gradient: Tensor, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Compute the gradient of the features the block starts with, from that of all its features."""
        total = gradient.to(self.dtype).clone(memory_format=torch.channels_last)
        channels = total.shape[1]
        for layer, growth, (first, second) in zip(
            reversed(list(self.layers)), reversed(self.growth), reversed(kept), strict=True
        ):
            assert isinstance(layer, DenseLayer)
            channels -= growth
            found = layer.last.run_backward(total[:, channels : channels + growth], second.shape)
            found = layer.bottleneck.activation.backward(found, second, in_place=True)
            found = layer.bottleneck.run_backward(found, first.shape)
            total[:, :channels] += Activation.RELU.backward(found, first, in_place=True)
        return total[:, :channels]


class _RecordedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: DenseBlock) -> Tensor:
        ctx.kept, ctx.block, ctx.dtype = [], block, x.dtype
        return block.run(x, ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.block.run_backward(gradient, ctx.kept).to(ctx.dtype), None


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Compute the scale and shift, (C,) each, that a batch norm applies in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale.float(), shift.float()

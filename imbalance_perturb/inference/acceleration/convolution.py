"""A frozen convolution with its activation, forward and backward, as oneDNN runs it fastest on a CPU.

What `torch.nn.Conv2d` followed by an activation computes, for parameters that never change again: weights are
packed once (also transposed, for the backward pass, which then is a convolution like any other), the activation
and the addition of a shortcut are done while the output is still in the cache, and only the gradient of the input
is ever computed.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imbalance_perturb.inference.acceleration.input_gradients import (
    Geometry,
    build_input_gradient,
    channels_last,
    convolve,
    pack_weight,
)
from imbalance_perturb.method.private_torch import find, has

_aten = torch.ops.aten


class Activation(Enum):
    """Activations that can run inside a convolution and whose derivative can be read off their output."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "hardtanh"

    @property
    def scalars(self) -> list[float]:
        """The activation's own parameters."""
        return [0.0, 6.0] if self is Activation.RELU6 else []

    def apply_(self, x: Tensor) -> Tensor:
        """Apply the activation in place."""
        if self is Activation.RELU:
            return x.relu_()
        return nn.functional.hardtanh_(x, 0.0, 6.0) if self is Activation.RELU6 else x

    def backward(self, gradient: Tensor, output: Tensor, *, in_place: bool = False) -> Tensor:
        """Compute the gradient before the activation from the one behind it and the activation's output."""
        into = gradient if in_place else torch.empty_like(gradient)
        if self is Activation.RELU:
            return _aten.threshold_backward.grad_input(gradient, output, 0, grad_input=into)  # type: ignore[no-any-return]
        if self is Activation.RELU6:
            return _aten.hardtanh_backward.grad_input(gradient, output, 0.0, 6.0, grad_input=into)  # type: ignore[no-any-return]
        return gradient


def available(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this CPU, has the oneDNN operations that this module calls."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and has("torch.ops.mkldnn._convolution_pointwise")
        and has("torch._C._nn.mkldnn_reorder_conv2d_weight")
        and (dtype != torch.bfloat16 or _computes_bfloat16())
    )


def _computes_bfloat16() -> bool:
    # Without AVX-512 or AVX-NE-CONVERT each of these operations raises.
    asked = "torch.ops.mkldnn._is_mkldnn_bf16_supported"
    return has(asked) and bool(find(asked)())


def convertible(conv: nn.Module) -> bool:
    """Whether a module is a convolution that :class:`FusedConvolution` can replace."""
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
    )


class FusedConvolution(nn.Module):
    """activation(conv(x) + shortcut) for frozen parameters on a CPU, channels-last.

    Args:
        conv: the convolution (:func:`convertible`), float32.
        activation: what follows it.
        sizes: of a typical input and of its output, for which weights are packed; others work, slower.
        dtype: of the arithmetic and of the output: float32 or bfloat16.
        input_scale: optional (C_in,) factors that the *gradient* of the input is multiplied with.
        precise_input: whether the forward pass keeps float32 arithmetic and only its output is rounded, for the
            first layer, where a step of 0.001 would be rounded away.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        activation: Activation = Activation.NONE,
        *,
        sizes: tuple[torch.Size, torch.Size],
        dtype: torch.dtype = torch.float32,
        input_scale: Tensor | None = None,
        precise_input: bool = False,
    ) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.activation = activation
        #: Whether nobody but this module gets the gradient of its output, which then may be overwritten.
        self.owns_gradient = False
        self.dtype = dtype
        self.forward_dtype = torch.float32 if precise_input else dtype
        self.out_channels = conv.out_channels
        self._geometry = Geometry(list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach()
        self._weight = pack_weight(weight.to(self.forward_dtype), self._geometry, sizes[0])
        # The bias stays float32: oneDNN adds it to a float32 sum.
        self._bias = None if conv.bias is None else conv.bias.detach().float()
        # Together with a shortcut it takes one of the tensors' own type only.
        self._rounded_bias = None if self._bias is None else self._bias.to(self.forward_dtype)
        scaled = weight if input_scale is None else weight * _by_input(input_scale, conv)
        self._input_gradient = build_input_gradient(scaled.to(dtype), self._geometry, sizes)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H', W'); ``shortcut`` has the shape of the output."""
        if torch.is_grad_enabled() and (x.requires_grad or (shortcut is not None and shortcut.requires_grad)):
            return _Recorded.apply(x, shortcut, self)  # type: ignore[no-any-return]
        return self.run(x, shortcut)

    def run(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Run the forward pass, not recorded."""
        x = channels_last(x.to(self.forward_dtype))
        kind = self.activation
        if shortcut is None:
            y = convolve(x, self._weight, self._bias, *self._geometry, kind.value, kind.scalars, "")
            return y.to(self.dtype)  # type: ignore[no-any-return]
        shortcut = channels_last(shortcut.to(self.forward_dtype))
        # Behind a sum the operation knows this one activation, and with groups not even it in bfloat16.
        inside = kind is Activation.RELU and self._geometry.groups == 1
        attribute = "relu" if inside else None
        y = convolve.binary(
            x, shortcut, self._weight, self._rounded_bias, *self._geometry, "add", 1.0, attribute, [], ""
        )
        if not inside:
            y = kind.apply_(y)
        return y.to(self.dtype)  # type: ignore[no-any-return]

    def run_backward(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Compute the gradient of the input, of shape ``size``, from that of the sum before the activation."""
        return self._input_gradient(channels_last(gradient), size)

    def extra_repr(self) -> str:
        """Describe the module for ``print(module)``."""
        return f"activation={self.activation.value}, dtype={self.dtype}, {self._geometry}"


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor | None, module: FusedConvolution) -> Tensor:
        y = module.run(x, shortcut)
        ctx.module, ctx.size, ctx.dtype = module, x.shape, x.dtype
        ctx.shortcut_dtype = None if shortcut is None else shortcut.dtype
        if module.activation is not Activation.NONE:
            ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        module: FusedConvolution = ctx.module
        if module.activation is not Activation.NONE:
            (y,) = ctx.saved_tensors
            gradient = module.activation.backward(channels_last(gradient), y, in_place=module.owns_gradient)
        to_input = to_shortcut = None
        if ctx.needs_input_grad[0]:
            to_input = module.run_backward(gradient, ctx.size).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_shortcut = gradient.to(ctx.shortcut_dtype)
        return to_input, to_shortcut, None


def _by_input(scale: Tensor, conv: nn.Conv2d) -> Tensor:
    """Lay (C_in,) out to multiply a weight of shape (C_out, C_in / groups, k, k)."""
    per_group = scale.view(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1)
    return per_group.reshape(conv.out_channels, -1, 1, 1)

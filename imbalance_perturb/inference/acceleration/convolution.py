"""A frozen convolution with its activation, forward and backward, as oneDNN runs it fastest on a CPU.

What `torch.nn.Conv2d` followed by an activation computes, for parameters that never change again: weights are
packed once (also transposed, for the backward pass, which then is a convolution like any other), the activation
and the addition of a shortcut are done while the output is still in the cache, and only the gradient of the input
is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_mkldnn = torch.ops.mkldnn
_aten = torch.ops.aten

#: Convolutions with at most so many input channels leave too little work for oneDNN's strided backward pass.
_FEW_CHANNELS = 4


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
        """The activation, in place."""
        if self is Activation.RELU:
            return x.relu_()
        return nn.functional.hardtanh_(x, 0.0, 6.0) if self is Activation.RELU6 else x

    def backward(self, gradient: Tensor, output: Tensor, *, in_place: bool = False) -> Tensor:
        """The gradient before the activation from the one behind it and the activation's output."""
        into = gradient if in_place else torch.empty_like(gradient)
        if self is Activation.RELU:
            return _aten.threshold_backward.grad_input(gradient, output, 0, grad_input=into)  # type: ignore[no-any-return]
        if self is Activation.RELU6:
            return _aten.hardtanh_backward.grad_input(gradient, output, 0.0, 6.0, grad_input=into)  # type: ignore[no-any-return]
        return gradient


class _Geometry(NamedTuple):
    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


def available() -> bool:
    """Whether this build of torch has the oneDNN operations that the module stands on."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(_mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    )


def convertible(conv: nn.Module) -> bool:
    """Whether a module is a convolution that :class:`FusedConvolution` can stand in for."""
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
        self._geometry = _Geometry(list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach()
        self._weight = _packed(weight.to(self.forward_dtype), self._geometry, sizes[0])
        # The bias stays float32: oneDNN adds it to a float32 sum.
        self._bias = None if conv.bias is None else conv.bias.detach().float()
        # Together with a shortcut it takes one of the tensors' own type only.
        self._rounded_bias = None if self._bias is None else self._bias.to(self.forward_dtype)
        scaled = weight if input_scale is None else weight * _by_input(input_scale, conv)
        self._input_gradient = _input_gradient(scaled.to(dtype), self._geometry, sizes)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(N, C_out, H', W') of (N, C_in, H, W); ``shortcut`` has the shape of the output."""
        if torch.is_grad_enabled() and (x.requires_grad or (shortcut is not None and shortcut.requires_grad)):
            return _Recorded.apply(x, shortcut, self)  # type: ignore[no-any-return]
        return self.run(x, shortcut)

    def run(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The forward pass, not recorded."""
        x = _channels_last(x.to(self.forward_dtype))
        kind = self.activation
        if shortcut is None:
            y = _mkldnn._convolution_pointwise(
                x, self._weight, self._bias, *self._geometry, kind.value, kind.scalars, ""
            )
            return y.to(self.dtype)  # type: ignore[no-any-return]
        shortcut = _channels_last(shortcut.to(self.forward_dtype))
        # Behind a sum the operation knows this one activation, and with groups not even it in bfloat16.
        inside = kind is Activation.RELU and self._geometry.groups == 1
        attribute = "relu" if inside else None
        y = _mkldnn._convolution_pointwise.binary(
            x, shortcut, self._weight, self._rounded_bias, *self._geometry, "add", 1.0, attribute, [], ""
        )
        if not inside:
            y = kind.apply_(y)
        return y.to(self.dtype)  # type: ignore[no-any-return]

    def run_backward(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """The gradient of the input, of shape ``size``, from that of the sum before the activation."""
        return self._input_gradient(_channels_last(gradient), size)

    def extra_repr(self) -> str:
        """What it does, for ``print(module)``."""
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
            gradient = module.activation.backward(_channels_last(gradient), y, in_place=module.owns_gradient)
        to_input = to_shortcut = None
        if ctx.needs_input_grad[0]:
            to_input = module.run_backward(gradient, ctx.size).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_shortcut = gradient.to(ctx.shortcut_dtype)
        return to_input, to_shortcut, None


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _by_input(scale: Tensor, conv: nn.Conv2d) -> Tensor:
    """(C_in,) laid out to multiply a weight of shape (C_out, C_in / groups, k, k)."""
    per_group = scale.view(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1)
    return per_group.reshape(conv.out_channels, -1, 1, 1)


def _packed(weight: Tensor, geometry: _Geometry, size: torch.Size) -> Tensor:
    # Without a size oneDNN packs for one that it makes up, and every call packs anew.
    weight = _channels_last(weight)
    try:
        return torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *geometry, list(size))  # type: ignore[call-arg]
    except RuntimeError:
        # For a few geometries oneDNN's choice of layout has no name it could be packed to; plain weights work too.
        return weight


def _input_gradient(
    weight: Tensor, geometry: _Geometry, sizes: tuple[torch.Size, torch.Size]
) -> Callable[[Tensor, torch.Size], Tensor]:
    """The function (gradient of the output, size of the input) -> gradient of the input."""
    padding, stride, dilation, groups = geometry
    kernel, in_channels = list(weight.shape[2:]), sizes[0][1]
    enough = all(p <= d * (k - 1) for p, d, k in zip(padding, dilation, kernel, strict=True))
    if stride == [1, 1] and enough:
        return _TransposedAsConvolution(weight, geometry, sizes[1])
    square = stride[0] == stride[1] and dilation == [1, 1] and enough
    if square and groups == 1 and in_channels <= _FEW_CHANNELS:
        return _ByPhases(weight, geometry, sizes[1])
    if square and groups == in_channels == weight.shape[0] and weight.dtype == torch.bfloat16:
        return _Dilated(weight, geometry, sizes[0])
    weight = _channels_last(weight)

    def native(gradient: Tensor, size: torch.Size) -> Tensor:
        # Only its shape is read, yet oneDNN would copy it if it lay in another way.
        x = torch.empty(size, dtype=gradient.dtype, memory_format=torch.channels_last)
        found = _aten.convolution_backward(
            gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return found[0]  # type: ignore[no-any-return]

    return native


def _flipped(weight: Tensor, groups: int) -> Tensor:
    """The kernel whose convolution is the transpose of this one's: channels swapped in each group, taps reversed."""
    out, per_group, *kernel = weight.shape
    grouped = weight.view(groups, out // groups, per_group, *kernel).transpose(1, 2)
    return grouped.reshape(groups * per_group, out // groups, *kernel).flip(2, 3)


class _TransposedAsConvolution:
    """Stride 1: the transpose of a convolution is a convolution with the reversed kernel."""

    def __init__(self, weight: Tensor, geometry: _Geometry, size: torch.Size) -> None:
        padding, _, dilation, groups = geometry
        padding = [d * (k - 1) - p for p, d, k in zip(padding, dilation, weight.shape[2:], strict=True)]
        self._geometry = _Geometry(padding, [1, 1], dilation, groups)
        self._weight = _packed(_flipped(weight, groups), self._geometry, size)
        self._dtype = weight.dtype

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        return _mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            gradient.to(self._dtype), self._weight, None, *self._geometry, "none", [], ""
        )


class _ByPhases:
    """Stride s and few input channels (a stem): the s x s phases of the input as channels of one convolution.

    An input position h = s m + r meets the taps k with k = r + p (mod s) only, at output positions
    m + (r + p - k) / s: for each phase r a convolution of stride 1, and all phases together one, with s^2 times
    the input channels, whose output is interleaved. oneDNN's own strided backward pass with 3 channels reaches a
    fifth of the machine's rate.
    """

    def __init__(self, weight: Tensor, geometry: _Geometry, size: torch.Size) -> None:
        self._stride, self._dtype = geometry.stride[0], weight.dtype
        out_channels, in_channels, *kernel = weight.shape
        s = self._stride
        taps = [_phase_taps(s, p, k) for p, k in zip(geometry.padding, kernel, strict=True)]
        self._before = [max(-offset for phase in axis for _, offset in phase) for axis in taps]
        lengths = [
            before + 1 + max(offset for phase in axis for _, offset in phase)
            for before, axis in zip(self._before, taps, strict=True)
        ]
        # In the order in which the interleaved input lies in memory: row phase, column phase, channel.
        phases = weight.new_zeros(s, s, in_channels, out_channels, *lengths)
        for r0, vertical in enumerate(taps[0]):
            for r1, horizontal in enumerate(taps[1]):
                for k0, o0 in vertical:
                    for k1, o1 in horizontal:
                        at = (o0 + self._before[0], o1 + self._before[1])
                        phases[r0, r1, :, :, at[0], at[1]] = weight[:, :, k0, k1].T
        # Padding is the same on both sides in oneDNN: enough for the longer side, the surplus is cut off.
        self._padding = [max(before, length - 1) for before, length in zip(self._before, lengths, strict=True)]
        self._geometry = _Geometry(self._padding, [1, 1], [1, 1], 1)
        self._weight = _packed(phases.flatten(0, 2), self._geometry, size)

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        y: Tensor = _mkldnn._convolution_pointwise(
            gradient.to(self._dtype), self._weight, None, *self._geometry, "none", [], ""
        )
        rows, columns = (-(-side // self._stride) for side in size[2:])
        top, left = (pad - before for pad, before in zip(self._padding, self._before, strict=True))
        y = y[:, :, top : top + rows, left : left + columns]
        missing = (rows - y.shape[2], columns - y.shape[3])
        if any(missing):  # the last input rows lie beyond every window
            y = nn.functional.pad(y, (0, missing[1], 0, missing[0]))
        n, s = y.shape[0], self._stride
        y = y.permute(0, 2, 3, 1).reshape(n, rows, columns, s, -1).transpose(2, 3)  # (N, rows, s, columns, s C)
        y = y.reshape(n, rows * s, columns * s, -1)
        return y.permute(0, 3, 1, 2)[:, :, : size[2], : size[3]]


def _phase_taps(stride: int, padding: int, kernel: int) -> list[list[tuple[int, int]]]:
    """For each phase r of the input: the taps k that meet it and, from m, where in the output."""
    return [
        [(k, (r + padding - k) // stride) for k in range(kernel) if (r + padding - k) % stride == 0]
        for r in range(stride)
    ]


class _Dilated:
    """Depthwise with a stride, in bfloat16: zeros between the gradients, then stride 1.

    Four times the multiplications, yet some ten times faster than oneDNN's fallback for this case.
    """

    def __init__(self, weight: Tensor, geometry: _Geometry, size: torch.Size) -> None:
        self._stride = geometry.stride[0]
        self._padding = geometry.padding
        plain = _Geometry(geometry.padding, [1, 1], [1, 1], geometry.groups)
        self._transposed = _TransposedAsConvolution(weight, plain, size)
        self._kernel = list(weight.shape[2:])

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        # A stride of 1 would have had an output of this many rows and columns.
        sides = [h + 2 * p - k + 1 for h, p, k in zip(size[2:], self._padding, self._kernel, strict=True)]
        spread = torch.empty(
            (*gradient.shape[:2], *sides), dtype=torch.bfloat16, memory_format=torch.channels_last
        ).zero_()
        spread[:, :, :: self._stride, :: self._stride] = gradient
        return self._transposed(spread, size)

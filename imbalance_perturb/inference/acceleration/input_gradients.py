"""The gradient of a frozen convolution's input, the way that oneDNN computes it fastest for its geometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.method.private_torch import find

convolve = find("torch.ops.mkldnn._convolution_pointwise")
_pack = find("torch._C._nn.mkldnn_reorder_conv2d_weight")
_aten = torch.ops.aten

#: Convolutions with at most so many input channels leave too little work for oneDNN's strided backward pass.
_FEW_CHANNELS = 4


class Geometry(NamedTuple):
    """How a convolution's kernel moves over its input: two numbers an axis, and the number of groups."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


def channels_last(x: Tensor) -> Tensor:
    """Lay (N, C, H, W) values out with the channels of a pixel side by side; copies only where they are not."""
    return x.contiguous(memory_format=torch.channels_last)


def pack_weight(weight: Tensor, geometry: Geometry, size: torch.Size) -> Tensor:
    """Lay the weight (C_out, C_in / groups, k, k) out as oneDNN wants it for inputs of this size."""
    # Without a size oneDNN packs for one that it makes up, and every call packs once more.
    weight = channels_last(weight)
    try:
        packed: Tensor = _pack(weight.to_mkldnn(), *geometry, list(size))
        return packed
    except RuntimeError:
        # For a few geometries oneDNN's choice of layout has no name it could be packed to; plain weights work too.
        return weight


def build_input_gradient(
    weight: Tensor, geometry: Geometry, sizes: tuple[torch.Size, torch.Size]
) -> Callable[[Tensor, torch.Size], Tensor]:
    """Choose the fastest function (gradient of the output, size of the input) -> gradient of the input.

    Args:
        weight: (C_out, C_in / groups, k, k), in the type of the arithmetic.
        geometry: of the convolution.
        sizes: of a typical input and of its output, for which weights are packed.
    """
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
    weight = channels_last(weight)

    def native(gradient: Tensor, size: torch.Size) -> Tensor:
        # Only its shape is read, yet oneDNN would copy it if it lay in another way.
        x = torch.empty(size, dtype=gradient.dtype, memory_format=torch.channels_last)
        found = _aten.convolution_backward(
            gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return found[0]  # type: ignore[no-any-return]

    return native


def _flip(weight: Tensor, groups: int) -> Tensor:
    """Build the kernel of the transposed convolution: channels swapped in each group, taps reversed."""
    out, per_group, *kernel = weight.shape
    grouped = weight.view(groups, out // groups, per_group, *kernel).transpose(1, 2)
    return grouped.reshape(groups * per_group, out // groups, *kernel).flip(2, 3)


class _TransposedAsConvolution:
    """Stride 1: the transpose of a convolution is a convolution with the reversed kernel."""

    def __init__(self, weight: Tensor, geometry: Geometry, size: torch.Size) -> None:
        padding, _, dilation, groups = geometry
        padding = [d * (k - 1) - p for p, d, k in zip(padding, dilation, weight.shape[2:], strict=True)]
        self._geometry = Geometry(padding, [1, 1], dilation, groups)
        self._weight = pack_weight(_flip(weight, groups), self._geometry, size)
        self._dtype = weight.dtype

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        return convolve(  # type: ignore[no-any-return]
            gradient.to(self._dtype), self._weight, None, *self._geometry, "none", [], ""
        )


class _ByPhases:
    """Stride s and few input channels (a stem): the s x s phases of the input as channels of one convolution.

    An input position h = s m + r meets the taps k with k = r + p (mod s) only, at output positions
    m + (r + p - k) / s: for each phase r a convolution of stride 1, and all phases together one, with s^2 times
    the input channels, whose output is interleaved. oneDNN's own strided backward pass with 3 channels reaches a
    fifth of the machine's rate.
    """

    def __init__(self, weight: Tensor, geometry: Geometry, size: torch.Size) -> None:
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
        self._geometry = Geometry(self._padding, [1, 1], [1, 1], 1)
        self._weight = pack_weight(phases.flatten(0, 2), self._geometry, size)

    def __call__(self, gradient: Tensor, size: torch.Size) -> Tensor:
        y: Tensor = convolve(gradient.to(self._dtype), self._weight, None, *self._geometry, "none", [], "")
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
    """List for each phase r of the input the taps k that meet it and, from m, where in the output."""
    return [
        [(k, (r + padding - k) // stride) for k in range(kernel) if (r + padding - k) % stride == 0]
        for r in range(stride)
    ]


class _Dilated:
    """Depthwise with a stride, in bfloat16: zeros between the gradients, then stride 1.

    Four times the multiplications, yet some ten times faster than oneDNN's fallback for this case.
    """

    def __init__(self, weight: Tensor, geometry: Geometry, size: torch.Size) -> None:
        self._stride = geometry.stride[0]
        self._padding = geometry.padding
        plain = Geometry(geometry.padding, [1, 1], [1, 1], geometry.groups)
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

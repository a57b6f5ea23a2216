"""Run a network of unknown make on a few random images: what it returns, how many at once, or why it fails."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelOutputError, first_line
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.models.classifier import FORWARD_ERRORS, in_batches
from imbalance_perturb.models.outputs import LogitsOf, find_logits, follow

#: How far a row of probabilities may be from summing to one: half-precision rounding of many classes.
SUM_TOLERANCE = 1e-2
#: Images that are tried, and batches that a trace may have as constants.
_IMAGES, _BAKED = 4, (1, 2, 8, 16, 32, 64)


class Look(NamedTuple):
    """What a trial showed.

    ``network`` returns one tensor; ``batch_range``: smallest and largest batch it takes; ``outputs``: ``logits`` or
    ``probabilities``; ``num_classes``: C.
    """

    network: nn.Module
    batch_range: tuple[int, int | None]
    outputs: str
    num_classes: int
    notes: tuple[str, ...]


def look_at_output(
    network: nn.Module,
    shape: tuple[int, ...],
    outputs: str,
    batch_range: tuple[int, int | None],
    name: str,
    *,
    num_classes: int | None = None,
    fixed_size: tuple[int, int] | None = None,
) -> Look:
    """Run the network on a few random images.

    Args:
        network: returns logits, alone or among other values.
        shape: of one input.
        outputs: what the user says, or ``auto``.
        batch_range: smallest and largest batch that the file says it takes.
        name: of the model, for messages.
        num_classes: C where it is known; it tells which of several outputs are the logits.
        fixed_size: the only (height, width) that it takes, where that is known.

    Raises:
        ModelOutputError: if it fails on the input, or returns something else.
    """
    # Bright and dark images far out of range, too: small logits of a network may lie in [0, 1] by chance.
    x = torch.randn(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    x[2], x[3] = 30 * (x[2] + 1), 30 * (x[3] - 1)
    notes: list[str] = []
    try:
        try:
            found, rows = _run(network, x, batch_range, num_classes, notes)
        except FORWARD_ERRORS as error:
            pass_on_device_errors(error)
            traced = isinstance(network, torch.jit.ScriptModule) and batch_range == (1, None)
            baked = _baked_batch(network, x, num_classes) if traced else None
            if baked is None:
                raise
            batch_range = (baked, baked)
            found, rows = _run(network, x, batch_range, num_classes, notes)
            notes.append(
                f"a batch of {baked} is a constant in it, as in a trace of {baked}, so images go through {baked} at a"
                " time; trace or export it with a batch of any size to have more at once"
            )
    except ModelOutputError as error:
        raise ModelOutputError(f"{name}: {error}") from error
    except FORWARD_ERRORS as error:
        pass_on_device_errors(error)
        failing = failing_forward(x, error, network=network, fixed_size=fixed_size)
        raise ModelOutputError(f"{name}: {failing}") from error
    kind, more = _kind_of(rows, outputs, name)
    return Look(found, batch_range, kind, rows.shape[1], (*notes, *more))


def _run(
    network: nn.Module, x: Tensor, batch_range: tuple[int, int | None], num_classes: int | None, notes: list[str]
) -> tuple[nn.Module, Tensor]:
    """Find the logits; returns the network that returns them alone, and its (N, C) rows."""
    path: tuple[object, ...] | None = None

    def run(batch: Tensor) -> Tensor:
        nonlocal path
        output = network(batch)
        if path is None:
            path, note = find_logits(output, len(batch), num_classes)
            notes.extend([note] if note else [])
        return follow(output, path)

    with torch.no_grad():
        rows = in_batches(run, x, batch_range)
    return LogitsOf(network, path) if path else network, rows


def _baked_batch(network: nn.Module, x: Tensor, num_classes: int | None) -> int | None:
    """The one batch size that a network takes which fails on the trial's."""
    for size in _BAKED:
        try:
            _run(network, x, (size, size), num_classes, [])
        except FORWARD_ERRORS as error:
            pass_on_device_errors(error)
            continue
        return size
    return None


def _kind_of(rows: Tensor, outputs: str, name: str) -> tuple[str, tuple[str, ...]]:
    """Whether rows are logits or probabilities, and a note on it."""
    within = bool(((rows >= 0) & (rows <= 1 + SUM_TOLERANCE)).all())
    sums = bool(((rows.float().sum(1) - 1).abs() <= SUM_TOLERANCE).all())
    percent = bool((rows >= 0).all() and ((rows.float().sum(1) / 100 - 1).abs() <= SUM_TOLERANCE).all())
    if outputs == "probabilities" and percent:
        return outputs, ("its output is percentages (rows that sum to 100); their logarithms serve as logits",)
    if outputs == "probabilities" and not (within and sums):
        raise ModelOutputError(
            f"{name}: --outputs probabilities, but on a test input its values run from {rows.min():.3g} to"
            f" {rows.max():.3g} and its rows do not all sum to 1: use --outputs logits"
        )
    if outputs != "auto":
        return outputs, ()
    if within and sums:
        note = "its output is probabilities (rows in [0, 1] that sum to 1); their logarithms serve as logits"
        return "probabilities", (note,)
    if percent:
        raise ModelOutputError(
            f"{name}: its rows are not negative and sum to 100, like percentages (softmax x 100); say --outputs"
            " probabilities if that is what they are, --outputs logits if not"
        )
    if within and rows.any():  # a head of zeros, as some networks start with, gives no scores
        raise ModelOutputError(
            f"{name}: its rows are in [0, 1] but do not sum to 1, like sigmoid scores of independent labels, which"
            " this method does not cover; if they are logits after all, say --outputs logits"
        )
    if bool((rows <= 0).all() and (rows.float().logsumexp(1).abs() <= SUM_TOLERANCE).all()):
        return "logits", ("its output is logarithms of probabilities (log_softmax), which serve as logits as they are",)
    return "logits", ()


#: What torch says of tensors that are not where others are, or of a GPU that is not there.
_NO_GPU = re.compile(r"NVIDIA|CUDA|cuda(:\d+)?\b|\bHIP\b|\bmps\b|same device|two devices")
_OTHER_DEVICE = re.compile(r"same device|two devices")
#: Number formats other than float32, which meet it.
_FORMATS = re.compile(r"\b(Half|BFloat16|Double|float16|bfloat16|float64)\b")
#: What it says where layers for something other than images meet images.
_NO_IMAGES = re.compile(
    r"\b(LSTM|GRU|RNN)\b|2D or 3D|must have 3 dimensions|to conv1d|(?:to|for) conv3d|'indices'|embedding"
    r"|weight of size \[\d+, \d+, \d+, \d+, \d+\]|weight of size \[\d+, \d+, \d+\]"
)
_CHANNELS = re.compile(r"to have (\d+) channels")
_MORE_INPUTS = re.compile(r"missing value for argument|missing \d+ required positional|takes \d+ positional argument")


def failing_forward(
    x: Tensor, error: BaseException, *, network: nn.Module, fixed_size: tuple[int, int] | None = None
) -> ModelOutputError:
    """The error for a network that fails on an input of this shape: one message for each kind of reason.

    Args:
        x: what it was given.
        error: what it raised.
        network: itself, to be tried on the same images in another layout.
        fixed_size: the only (height, width) that it takes, where that is known.
    """
    reason = first_line(error).removeprefix("RuntimeError: ").removeprefix("builtins.")
    fails = f"the model fails on images of shape {tuple(x.shape[1:])}: {reason}"
    if (_NO_GPU if x.device.type == "cpu" else _OTHER_DEVICE).search(reason):
        return ModelOutputError(_tied(x.device, reason))
    if _MORE_INPUTS.search(reason):
        return ModelOutputError(f"{fails}; it takes more than a batch of images: wrap it so that it takes that alone")
    if _FORMATS.search(reason):
        return ModelOutputError(
            f"{fails}; it turns its input into another number format inside (.half() or the like), as in its code or"
            " its trace; make it in float32: model.float(), and no .half() in forward() or in the example input"
        )
    if fixed_size is not None and tuple(x.shape[2:]) != fixed_size:
        height, width = fixed_size
        return ModelOutputError(
            f"{fails}; it takes images of {height} x {width} alone: --resize {height},{width} --crop none"
        )
    if _NO_IMAGES.search(reason):
        return ModelOutputError(
            f"{fails}; it is made for something other than a batch of images (N, channels, height, width), such as"
            " sequences, tokens or volumes, which are not covered"
        )
    if _takes_channels_last(network, x):
        return ModelOutputError(
            f"{fails}; it takes images with their channels last, (N, height, width, channels): wrap it in a module"
            " that calls it with x.permute(0, 2, 3, 1)"
        )
    if (channels := _CHANNELS.search(reason)) and channels[1] in ("1", "3"):
        color = "gray" if channels[1] == "1" else "rgb"
        return ModelOutputError(f"{fails}; it takes images of {channels[1]} channels: --color {color}")
    return ModelOutputError(
        f"{fails}; give it the image size and channels it was trained with (--resize, --crop, --color)"
    )


def _tied(device: torch.device, reason: str) -> str:
    if device.type != "cpu":
        return (
            f"the model is tied to a device other than {device}: a tensor or a device is a constant in its code"
            f" ({reason}); use --device cpu, or trace, script or export it where it is to run"
        )
    return (
        f"the model is tied to a GPU: a device such as cuda:0 is a constant in its code ({reason}); trace, script or"
        " export it on the CPU (model.cpu(), with an example input there), or let forward() take devices from its"
        " input (x.device)"
    )


def _takes_channels_last(network: nn.Module, x: Tensor) -> bool:
    if x.ndim != 4:
        return False
    try:
        with torch.no_grad():
            network(x.permute(0, 2, 3, 1).contiguous())
    except FORWARD_ERRORS as error:
        pass_on_device_errors(error)
        return False
    return True

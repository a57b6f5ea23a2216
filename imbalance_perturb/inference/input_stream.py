"""Image files to a model's inputs, in order, on the device: a group of images at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.inference.decoding.workers import DecodedBatch, in_slices, iter_decoded
from imbalance_perturb.inference.execution import Execution
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.deep_images import DeepImages


class InputGroup(NamedTuple):
    """Images of one batch that have the same size: ``positions`` in the batch and their tensor (n, C, H, W)."""

    positions: list[int]
    x: Tensor


class InputBatch(NamedTuple):
    """Consecutive images: ``names``, for each the reason why it cannot be used or ``None``, and the usable ones.

    Every position without an error is in exactly one group.
    """

    names: list[str]
    errors: list[str | None]
    groups: list[InputGroup]

    def names_of(self, positions: Sequence[int]) -> list[str]:
        """The names at some positions."""
        return [self.names[position] for position in positions]


def iter_inputs(
    images: ImageList,
    preprocessing: Preprocessing,
    execution: Execution,
    stopwatch: Stopwatch | None = None,
    deep: DeepImages | None = None,
) -> Iterator[InputBatch]:
    """Decode in worker processes and yield model inputs in the order of ``images.names``, a group at a time.

    A group is several batches (``execution.group_size`` images): what is given to a model is cut to size there.

    Every name comes exactly once, usable or with its error; tensors are float32 on the execution's device. ``deep``
    gets the images of more than 8 bits.
    """
    decoded = decode(images, in_slices(images.names, execution.group_size), preprocessing, execution)
    return iter_normalised(decoded, preprocessing, execution, stopwatch or Stopwatch(), deep or DeepImages())


def decode(
    images: ImageList, slices: Iterator[list[str]], preprocessing: Preprocessing, execution: Execution
) -> Generator[DecodedBatch]:
    """Decode in worker processes, a batch for each slice of names, in order."""
    return iter_decoded(
        images.root,
        slices,
        preprocessing,
        execution.workers,
        takes_turns=execution.takes_turns,
        image_timeout=execution.image_timeout,
        pinned=execution.device.type == "cuda",
    )


def iter_normalised(
    batches: Iterator[DecodedBatch],
    preprocessing: Preprocessing,
    execution: Execution,
    stopwatch: Stopwatch,
    deep: DeepImages,
) -> Iterator[InputBatch]:
    """Make model inputs of what is decoded; arguments as for :func:`iter_inputs`."""
    while True:
        with stopwatch.timing("wait for images"):
            decoded = next(batches, None)
        if decoded is None:
            return
        stopwatch.add("decode", decoded.seconds)
        for peak in decoded.peaks:
            deep.add(*peak)
        with stopwatch.timing("normalise", execution.device):
            groups = [
                # A copy that is waited for would keep a GPU from its other work: it is made from pinned memory.
                InputGroup(positions, preprocessing.normalise(pixels.to(execution.device, non_blocking=True)))
                for positions, pixels in decoded.groups
            ]
        yield InputBatch(decoded.names, decoded.errors, groups)

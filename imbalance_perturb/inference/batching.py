"""How many images go through the model at once: measured at the start, halved where memory does not suffice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from imbalance_perturb.errors import DeviceError

Row = TypeVar("Row")

#: Batch sizes that are tried, by kind of device. On a CPU small batches keep activations in the cache; and in programs
#: that leave glibc as it is (see ``allocator.py``) blocks above 32 MB cost more than the arithmetic on them.
TRIED = {"cpu": (4, 8, 16, 32), "cuda": (32, 64, 128, 256, 512)}

#: A larger batch has to be faster by so much: less memory, and a first row sooner, are worth something too.
_GAIN = 0.03


#: Images of 224 x 224 pixels that make a good batch; smaller ones make larger batches.
_USUAL = {"cpu": 8, "cuda": 128}


def usual_batch_size(kind: str, shape: tuple[int, int, int] = (3, 224, 224)) -> int:
    """A batch size that suits a kind of device (``cpu`` or ``cuda``) and images of ``shape`` (C, H, W)."""
    size = _USUAL[kind] * (224 * 224) / (shape[1] * shape[2])
    return max(_USUAL[kind] // 4, min(8 * _USUAL[kind], int(2 ** round(math.log2(size)))))


#: Batches are filled up to a multiple of this: the kernels of a CPU then round an image alike whoever is beside it
#: (seen on five networks, float32 and bfloat16, in batches of 4 to 32; those of 1 to 3 and 7 differed in last digits).
MULTIPLE = 4


def filled(x: Tensor, multiple: int) -> Tensor:
    """A batch (n, ...), n at least 1, with copies of its last image up to a multiple of ``multiple``."""
    missing = -len(x) % multiple
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


class BatchLimit:
    """The largest number of images that go through at once: ``most`` at the start, less once memory has run out.

    ``None`` is no limit yet.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most

    def run(self, compute: Callable[[slice], Sequence[Row]], n: int) -> list[Row]:
        """The results of n images, of all at once or in parts as small as memory demands.

        Args:
            compute: gives one result for each image of a slice; if memory runs out, it is called again for less.
            n: number of images.

        Raises:
            DeviceError: if memory does not suffice for one image.
        """
        rows: list[Row] = []
        while len(rows) < n:
            part = slice(len(rows), min(n, len(rows) + (self.most or n)))
            size = part.stop - part.start
            try:
                rows += compute(part)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise DeviceError(
                        "memory does not suffice for a single image; use another --device or smaller images"
                        " (--resize, --crop)"
                    ) from error
            # Outside of the handler: while the error is alive, so are the tensors of the frames it came through.
            self.most = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return rows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or in the machine."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def measure_batch_size(
    predict: Callable[[Tensor], object], make_batch: Callable[[int], Tensor], sizes: Sequence[int]
) -> int:
    """The batch size that takes the least time an image, the smallest where others gain little.

    Args:
        predict: what is to be done with a batch.
        make_batch: gives a batch (n, ...) of n images on the device.
        sizes: tried in this order, ascending, until one runs out of memory.
    """
    best, least = sizes[0], float("inf")
    predict(make_batch(sizes[0]))  # the first call of all pays for what later ones find done
    for size in sizes:
        try:
            seconds = _seconds(predict, make_batch(size)) / size
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == sizes[0]:
                raise
            break
        if seconds < least * (1 - _GAIN):
            best, least = size, seconds
    return best


def _seconds(predict: Callable[[Tensor], object], x: Tensor) -> float:
    start = time.perf_counter()
    predict(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start

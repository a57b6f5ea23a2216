"""How many images go through the model at once: measured at the start, halved where memory does not suffice."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from imbalance_perturb.errors import DeviceError, ModelGradientError, first_line
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.device_errors import is_out_of_memory

Row = TypeVar("Row")

#: Batch sizes that are tried, by kind of device. On a CPU small batches keep activations in the cache; and with
#: glibc's own settings (see ``inference/allocator.py``) blocks above 32 MB cost more than the arithmetic on them.
TRIED = {"cpu": (4, 8, 16, 32), "cuda": (32, 64, 128, 256, 512)}

#: So often a batch is timed: a pass on a CPU is long, and the same each time.
_TIMED = {"cpu": 1, "cuda": 3}

_NOT_ONE = "memory does not suffice for a single image; use another --device or smaller images (--resize, --crop)"

#: A larger batch has to be faster by this share: less memory, and a first row sooner, count too.
_GAIN = 0.03


#: Images of 224 x 224 pixels that make a good batch; smaller ones make larger batches.
_USUAL = {"cpu": 8, "cuda": 128}


def usual_batch_size(kind: str, shape: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Choose a batch size that suits a kind of device (``cpu`` or ``cuda``) and images of ``shape`` (C, H, W)."""
    size = _USUAL[kind] * (224 * 224) / (shape[1] * shape[2])
    return max(_USUAL[kind] // 4, min(8 * _USUAL[kind], int(2 ** round(math.log2(size)))))


#: Batches are filled up to a multiple of this: the kernels of a CPU then round an image alike whoever is beside it
#: (seen on five networks, float32 and bfloat16, in batches of 4 to 32; those of 1 to 3 and 7 differed in last digits).
MULTIPLE = 4


def fill_up(x: Tensor, multiple: int) -> Tensor:
    """Fill a batch (n, ...), n at least 1, with copies of its last image up to a multiple of ``multiple``."""
    missing = -len(x) % multiple
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


class BatchLimit:
    """The largest number of images that go through at once: ``most`` at the start, less once memory has run out.

    ``None`` is no limit yet.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most

    def run(self, compute: Callable[[slice], Sequence[Row]], n: int) -> list[Row]:
        """Compute the results of n images, of all at once or in parts as small as memory demands.

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
                    raise DeviceError(f"{_NOT_ONE} ({first_line(error)})") from error
            # Outside of the handler: while the error is alive, so are the tensors of the frames it came through.
            self.most = size // 2
            _empty_cache()
        return rows


def measure_batch_size(
    predict: Callable[[Tensor], object], make_batch: Callable[[int], Tensor], sizes: Sequence[int]
) -> int:
    """Measure which batch size takes the least time an image, the smallest where others gain little.

    Args:
        predict: what is to be done with a batch.
        make_batch: gives a batch (n, ...) of n images on the device.
        sizes: tried in this order, ascending, until one runs out of memory.
    """
    best, least = None, float("inf")
    for size in sizes:
        seconds = _time_batch(predict, make_batch, size, first=size == sizes[0])
        if seconds is None:
            break
        if seconds / size < least * (1 - _GAIN):
            best, least = size, seconds / size
    smaller = sizes[0]
    while best is None:
        smaller //= 2
        if not smaller:
            raise DeviceError(_NOT_ONE)
        if _time_batch(predict, make_batch, smaller) is not None:
            best = smaller
    return best


def _time_batch(
    predict: Callable[[Tensor], object], make_batch: Callable[[int], Tensor], size: int, *, first: bool = False
) -> float | None:
    """Median seconds of a batch of ``size``; ``None`` where memory does not suffice for it."""
    try:
        x = make_batch(size)
        # The first call of all pays for what later ones find done; on a GPU the first of each size does, for seconds.
        if first or x.device.type == "cuda":
            predict(x)
        return statistics.median(_seconds(predict, x) for _ in range(_TIMED[x.device.type]))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    _empty_cache()
    return None


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _seconds(predict: Callable[[Tensor], object], x: Tensor) -> float:
    start = time.perf_counter()
    predict(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


class Passes:
    """Runs networks on batches cut to size.

    Args:
        most: images that go through at once, halved where memory runs out; ``None`` takes batches as they come.
        alike: whether batches of a multiple of four are filled up to one, so that an image's last digits do not
            depend on its batch.
    """

    def __init__(self, most: int | None, *, alike: bool) -> None:
        self.limit = BatchLimit(most)
        self._alike = alike

    def run_in_parts(self, compute: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
        """Call ``compute`` on parts of a batch (N, ...); returns its tensors, one row for each image."""
        parts: list[tuple[Tensor, ...]] = []

        def rows(part: slice) -> Sequence[int]:
            found = compute(fill_up(x[part], self._multiple))
            parts.append(tuple(logits[: part.stop - part.start] for logits in found))
            return range(part.start, part.stop)

        self.limit.run(rows, len(x))
        return tuple(torch.cat(logits) for logits in zip(*parts, strict=True))

    def predict_both(self, network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Predict base and corrected logits of a batch (N, ...).

        Raises:
            ModelGradientError: if there is no usable gradient for an image.
        """
        base, logits = self.run_in_parts(lambda part: _predict_both(network, part, stopwatch), x)
        return base, logits

    def attempt_both(self, network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Predict base and corrected logits of a batch (N, ...); NaN for images that have no usable gradient."""
        base, logits = self.run_in_parts(lambda part: self._attempt(network, part, stopwatch), x)
        return base, logits

    @property
    def _multiple(self) -> int:
        # A batch size that is no multiple of it was asked for, or is all that memory allows: 1 above all.
        return MULTIPLE if self._alike and (self.limit.most or MULTIPLE) % MULTIPLE == 0 else 1

    def _attempt(self, network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        try:
            return _predict_both(network, x, stopwatch)
        except ModelGradientError:
            found = [self._attempt_alone(network, image, stopwatch) for image in torch.split(x, 1)]
        return torch.cat([base for base, _ in found]), torch.cat([logits for _, logits in found])

    def _attempt_alone(
        self, network: PerturbedClassifier, image: Tensor, stopwatch: Stopwatch
    ) -> tuple[Tensor, Tensor]:
        try:
            base, logits = _predict_both(network, fill_up(image, self._multiple), stopwatch)
        except ModelGradientError:
            nothing = image.new_full((1, len(network.counts)), torch.nan)
            return nothing, nothing
        return base[:1], logits[:1]


def _predict_both(network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
    if not network.active:
        with stopwatch.timing("final pass", x.device):
            return network.predict_both(x)
    with stopwatch.timing("gradient pass", x.device):
        base, moved = network.perturb_input(x)
    with stopwatch.timing("final pass", x.device):
        return base, network.predict_perturbed(moved)

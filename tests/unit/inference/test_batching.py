from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from imbalance_perturb.errors import DeviceError
from imbalance_perturb.inference.batching import BatchLimit, measure_batch_size, usual_batch_size
from imbalance_perturb.method.device_errors import is_out_of_memory


class SmallMemory:
    """Computes slices of at most ``room`` images and remembers the sizes it was asked for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []

    def __call__(self, part: slice) -> list[int]:
        size = part.stop - part.start
        self.asked.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return list(range(part.start, part.stop))


@pytest.mark.parametrize(("room", "sizes"), [(99, [10]), (5, [10, 5, 5]), (3, [10, 5, 2, 2, 2, 2, 2]), (1, [10, 5, 2])])
def test_out_of_memory_halves_the_batch_and_loses_nothing(room: int, sizes: list[int]) -> None:
    """Every image has its result once, in order, and what was computed before is kept."""
    memory, limit = SmallMemory(room), BatchLimit()
    assert limit.run(memory, 10) == list(range(10))
    assert memory.asked[: len(sizes)] == sizes


def test_the_ceiling_is_remembered() -> None:
    """After one halving no later batch asks for more."""
    memory, limit = SmallMemory(4), BatchLimit()
    limit.run(memory, 8)
    assert limit.most == 4
    memory.asked.clear()
    assert limit.run(memory, 10) == list(range(10))
    assert memory.asked == [4, 4, 2]


def test_memory_for_not_even_one_image_is_said() -> None:
    """A single image that doesn't fit ends the run with one line."""
    with pytest.raises(DeviceError, match="single image"):
        BatchLimit().run(SmallMemory(0), 3)


def test_other_errors_pass_through() -> None:
    """Only running out of memory is answered by a smaller batch."""

    def broken(part: slice) -> list[int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        BatchLimit().run(broken, 3)


def test_the_machines_memory_counts_too() -> None:
    """torch's message for the machine's own memory is told from other runtime errors."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("something else"))


def test_the_fastest_size_an_image_is_taken() -> None:
    """A fixed cost for each call favours large batches, until memory or a slower size ends it."""

    def make(size: int) -> Tensor:
        if size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.empty(size, 1)

    assert measure_batch_size(lambda x: time.sleep(0.02 + 0.0002 * len(x)), make, (2, 8, 16, 32)) == 16
    assert measure_batch_size(lambda x: time.sleep(0.004 * len(x) ** 1.5), make, (2, 8, 16)) == 2


def test_a_card_with_room_for_less_than_the_smallest_is_measured_too() -> None:
    """Below the sizes that are tried it is halved, as in the run, down to one image."""

    def run(room: int) -> int:
        def predict(x: Tensor) -> None:
            if len(x) > room:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

        return measure_batch_size(predict, lambda n: torch.empty(n, 1), (32, 64))

    assert [run(room) for room in (31, 7, 1)] == [16, 4, 1]
    with pytest.raises(DeviceError, match="memory does not suffice for a single image"):
        run(0)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measure_batch_size(lambda x: torch.empty(2, 3) @ x, lambda n: torch.empty(n, 1), (32, 64))


def test_equal_sizes_leave_the_smallest() -> None:
    """Where larger batches gain nothing, the smallest is taken."""
    assert measure_batch_size(lambda x: time.sleep(0.01 * len(x)), lambda n: torch.empty(n, 1), (2, 4, 8)) == 2


def test_the_usual_batch_suits_the_size_of_the_images() -> None:
    """Smaller images make larger batches, within limits, in powers of two."""
    sides = (32, 64, 112, 224, 384, 1024)
    assert [usual_batch_size("cpu", (3, side, side)) for side in sides] == [64, 64, 32, 8, 2, 2]
    assert usual_batch_size("cuda") == 128

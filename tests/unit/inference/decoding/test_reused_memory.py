"""Memory that is used again holds what somebody still has for as long."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imbalance_perturb.inference.decoding import reused_memory
from imbalance_perturb.inference.decoding.reused_memory import ReusedMemory


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reused_memory, "_LARGE", 1)


def arrays(number: int, level: int) -> list[np.ndarray]:
    return [np.full((3, 2, 2), level + index, np.uint8) for index in range(number)]


def test_memory_comes_again_when_nobody_has_it() -> None:
    """The second lies where the first was, of another number and type too; the third beside what is still held."""
    memory = ReusedMemory()
    first = memory.stack(arrays(4, 1))
    where = first.data_ptr()
    assert torch.equal(first, torch.from_numpy(np.stack(arrays(4, 1))))
    del first
    second = memory.stack(arrays(3, 7))
    assert second.data_ptr() == where
    third = memory.stack(arrays(4, 20))
    assert third.data_ptr() != where
    assert torch.equal(second, torch.from_numpy(np.stack(arrays(3, 7))))
    del second
    floats = memory.stack([one.astype(np.float32) / 3 for one in arrays(1, 5)])
    assert floats.data_ptr() == where
    assert floats.dtype == torch.float32


def test_a_part_of_a_tensor_keeps_it() -> None:
    """Slices, and arrays made of them, are what somebody still has."""
    memory = ReusedMemory()
    part = memory.stack(arrays(4, 1))[1:2].numpy()[0, 0]
    for level in range(50, 60):
        memory.stack(arrays(4, level))
    assert (part == 2).all()


def test_small_ones_are_left_to_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which keeps them itself; and no more blocks are kept than are used."""
    memory = ReusedMemory()
    held = [memory.stack(arrays(2, level)) for level in range(10)]
    held.clear()
    assert len(memory._free) == reused_memory._KEPT
    monkeypatch.setattr(reused_memory, "_LARGE", 1 << 20)
    memory.stack(arrays(2, 1))
    assert len(memory._free) == reused_memory._KEPT

"""Memory that workers write pixels into and the run reads them from, so that none goes through a pipe."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Most bytes of a slot: what waits is to be bounded, however large the images are.
_MOST_BYTES = 8 << 20


class PixelSlots:
    """Room for the pixels of some tasks, shared with the processes that are forked from this one.

    It is nobody's file: it is gone with the last of the processes, however they end.

    Args:
        shape: (C, H, W) of an image, uint8; others go another way.
        most_images: of a task; fewer where these would be too many bytes.
        number: of slots. One that was never used takes no memory.
    """

    def __init__(self, shape: tuple[int, int, int], most_images: int, number: int) -> None:
        image = math.prod(shape)
        self.images = max(1, min(most_images, _MOST_BYTES // image))
        memory = mmap.mmap(-1, number * self.images * image)
        self._pixels = np.frombuffer(memory, np.uint8).reshape(number, self.images, *shape)
        self._free = list(range(number))

    def take(self) -> int | None:
        """A slot that is nobody's, for one task; ``None`` where there is none."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int | None) -> None:
        """Nobody writes there or reads from there any more."""
        if slot is not None:
            assert slot not in self._free, "a slot has one owner"
            self._free.append(slot)

    def put(self, slot: int, index: int, pixels: Array) -> bool:
        """Write an image's pixels, in a worker; whether they are such as fit."""
        place = self._pixels[slot, index]
        if pixels.dtype != place.dtype or pixels.shape != place.shape:
            return False
        place[...] = pixels
        return True

    def get(self, slot: int, index: int) -> Array:
        """The pixels of an image, (C, H, W), where they lie: to be read before the slot is given back."""
        pixels: Array = self._pixels[slot, index]
        return pixels

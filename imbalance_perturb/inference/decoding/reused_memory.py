"""Large arrays whose memory is used again: fresh pages of the system take longer to come than images to be copied."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

#: From here on glibc gives memory back to the system at once, whatever it is told (`inference/allocator.py`).
_LARGE = 32 << 20

#: Blocks that are kept for others to come.
_KEPT = 3


class ReusedMemory:
    """Stacks arrays into tensors, in memory that nobody uses any more.

    Args:
        pinned: whether it is memory that a GPU reads by itself, which torch uses again once that is done.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: list[Array] = []

    def stack(self, arrays: Sequence[Array]) -> Tensor:
        """Copy n arrays of one shape and type into a tensor (n, ...).

        Large ones' memory is used again once nobody has the tensor, or a part of it, any more.
        """
        size, shape = len(arrays) * arrays[0].nbytes, (len(arrays), *arrays[0].shape)
        # By numpy, whose one thread takes no core from the workers.
        if self._pinned:
            found = torch.empty(shape, dtype=torch.from_numpy(arrays[0]).dtype, pin_memory=True)
            np.stack(arrays, out=found.numpy())
            return found
        if size < _LARGE:
            return torch.from_numpy(np.stack(arrays))
        block = next((block for block in self._free if size <= block.nbytes <= 2 * size), None)
        if block is None:
            block = np.empty(size, np.uint8)
        else:
            self._free = [other for other in self._free if other is not block]
        # Tensors hold this object, and not the block; a part of an array would hold the block alone.
        lent = block[:size].view(arrays[0].dtype).reshape(shape)
        weakref.finalize(lent, self._give_back, block)
        return torch.from_numpy(np.stack(arrays, out=lent))

    def _give_back(self, block: Array) -> None:
        self._free = [*self._free, block][-_KEPT:]

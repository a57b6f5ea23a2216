"""Which images of a run are computed both ways, to compare the labels: a random choice by position in the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

#: One image in so many is sampled; more often at the start, so that a short run has a sample too.
SAMPLED, SAMPLED_AT_START, START = 64, 16, 256


def sample(seed: int, positions: Iterable[int]) -> Tensor:
    """Choose the sampled ones of the images at n positions: (n,) bool, whatever batches and slices they come in."""
    return torch.tensor([_is_sampled(seed, position) for position in positions], dtype=torch.bool)


def _is_sampled(seed: int, position: int) -> bool:
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % (SAMPLED_AT_START if position < START else SAMPLED) == 0

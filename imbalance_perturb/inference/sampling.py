"""Which images of a run are computed both ways, to compare the labels: a random choice by position in the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

#: One image in so many is sampled; at the start of a run more often, where no image has been compared before it.
SAMPLED, SAMPLED_AT_START, START = 64, 16, 256


def sample(seed: int, positions: Iterable[int], *, often: bool) -> Tensor:
    """Choose the sampled ones of the images at n positions: (n,) bool, whatever batches and slices they come in.

    ``often``: more of them at the start of the run.
    """
    return torch.tensor([_is_sampled(seed, position, often) for position in positions], dtype=torch.bool)


def _is_sampled(seed: int, position: int, often: bool) -> bool:
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % (SAMPLED_AT_START if often and position < START else SAMPLED) == 0

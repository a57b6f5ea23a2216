"""What a predictor gives of a batch, and what is put together of computed and of known images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Predicted(NamedTuple):
    """The logits of a batch, and how they were computed.

    All on the CPU. ``base``, ``logits``: (N, C), plain and corrected; ``refined``: (N,) bool, whether both were
    recomputed by the full computation; ``corrected``: (N,) bool, whether the correction was run (else ``logits`` are
    those of the plain model, with the classifier's tau). Of one image, without N, where its row is kept.
    """

    base: Tensor
    logits: Tensor
    refined: Tensor
    corrected: Tensor


def put_together(found: Predicted, kept: Sequence[Predicted | None]) -> Predicted:
    """Put what was computed of n images and what was kept of the others in the order of all N."""
    if not any(kept):
        return found
    left = torch.tensor([one is None for one in kept])
    whole = Predicted(*(part.new_empty(len(kept), *part.shape[1:]) for part in found))
    for every, part in zip(whole, found, strict=True):
        every[left] = part
    for index, one in enumerate(kept):
        if one is not None:
            for every, value in zip(whole, one, strict=True):
                every[index] = value
    return whole

"""A small network for ``--factory`` that takes its time, and can be told to end its process over a white image."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

#: The variables that say how long a pass takes, and the file that, where it is there, makes white images deadly.
SECONDS, DEADLY = "IMBPERTURB_TEST_SECONDS", "IMBPERTURB_TEST_DEADLY"


class SlowNetwork(nn.Module):
    """Colours and contrasts of a 32 x 32 image through two layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, stride=8)
        self.last = nn.Linear(8 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, 32, 32)."""
        time.sleep(float(os.environ.get(SECONDS, "0")))
        even = (x.amax((2, 3)) == x.amin((2, 3))).all(1) & (x.mean((1, 2, 3)) > 2)
        if even.any() and Path(os.environ.get(DEADLY, "/nowhere")).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = self.last(torch.tanh(self.first(x)).flatten(1))
        return logits


def build(num_classes: int) -> SlowNetwork:
    """The network of a checkpoint."""
    return SlowNetwork(num_classes)

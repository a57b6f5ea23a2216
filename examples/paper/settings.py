"""What an experiment is of, and how it is computed: the two are apart, since only the first may change a result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Schedule:
    """Optimiser and schedule of Section 3.1; lengths in epochs, fractions allowed.

    defer: when DRS and LDAM begin their second stage, as a share of all epochs (0.8: 160 of 200 in Cao et al. 2019).
    """

    epochs: int = 200
    batch_size: int = 32
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 1.0
    decay: float = 0.1
    decay_every: float = 50.0
    defer: float = 0.8
    seed: int = 0

    def rate(self, epoch: float) -> float:
        """Learning rate when so many epochs are done: linear warm-up, then `decay` after every `decay_every`."""
        warm = min(1.0, epoch / self.warmup) if self.warmup else 1.0
        return self.learning_rate * warm * self.decay ** math.floor(epoch / self.decay_every + 1e-9)

    def late(self, epoch: int) -> bool:
        """Whether this epoch (from 0) is of the deferred stage."""
        return epoch >= self.defer * self.epochs - 1e-9


@dataclass(frozen=True)
class Settings:
    """What a folder of results is of, whatever machine makes it.

    precision: of the training, fp32 or bf16 (autocast). freeze: so many first blocks of the backbone stay as they are
    pre-trained, their batch statistics with them.
    """

    data: str
    backbone: str
    training: str
    fold: int
    folds: str
    size: int
    pretrained: str
    freeze: int
    validation_parts: int
    limit: int | None
    precision: str
    methods: str
    schedule: Schedule

    def folder(self, out: Path) -> Path:
        """Where it lies: data set / backbone / training / fold."""
        return out / self.data / self.backbone / self.training / f"fold-{self.fold}"


@dataclass(frozen=True)
class Machine:
    """Where and how fast it is computed.

    workers: processes that read images; with none, each is read once and kept in memory as it is after the resize.
    """

    device: str = "cpu"
    channels_last: bool = False
    workers: int = 0

    @property
    def layout(self) -> torch.memory_format:
        """Of the network and of what it is given."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

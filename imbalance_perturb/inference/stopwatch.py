"""Where a run's time goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class Stopwatch:
    """Seconds spent in each stage of a run; ``decode`` is summed over the workers, the rest is wall clock."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the time inside to a stage; on CUDA the queue is waited for, or the time would be another stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if device is not None and device.type == "cuda":
                import torch

                torch.cuda.synchronize(device)
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

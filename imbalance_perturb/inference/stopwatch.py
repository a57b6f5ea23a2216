"""Where a run's time goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Stopwatch:
    """Seconds spent in each stage of a run; ``decode`` is summed over the workers, the rest is wall clock.

    On CUDA it is the time that the GPU takes, told by events that are looked at when somebody asks.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage; on CUDA all that was begun is waited for."""
        for stage, start, end in self._running:
            end.synchronize()
            self.add(stage, start.elapsed_time(end) / 1000)
        self._running.clear()
        return self._seconds

    @contextmanager
    def timing(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the time inside to a stage: the clock's, or that of a CUDA device."""
        if device is not None and device.type == "cuda":
            with self._timing_events(stage, device):
                yield
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    @contextmanager
    def _timing_events(self, stage: str, device: torch.device) -> Iterator[None]:
        import torch

        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            try:
                yield
            finally:
                end.record()
                self._running.append((stage, start, end))

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

"""Which image each worker process has in hand, and since when it is waited for."""

from __future__ import annotations

import os
import time
from multiprocessing.context import BaseContext
from typing import NamedTuple

#: Bits of a place that are the position in a task; the rest is the task's number.
_POSITION_BITS = 24

#: Seconds between two looks at what is waited for, at most.
_INTERVAL = 0.5


class Overdue(NamedTuple):
    """A worker that has had one image for too long: its process, the task's number and the position in it."""

    pid: int
    task: int
    position: int


class InHand:
    """Memory that workers share with the run: for each its process and the image that it has in hand.

    Made before the workers and handed to each, which calls :meth:`join` first. No lock is held while an image is
    decoded, so that a worker may die at any time.
    """

    def __init__(self, context: BaseContext, workers: int) -> None:
        self._pids = context.RawArray("q", workers)
        self._places = context.RawArray("q", workers)
        self._joined = context.Value("i", 0)
        self._slot = -1

    def join(self) -> None:
        """Take a slot for this process."""
        with self._joined.get_lock():
            self._slot = self._joined.value
            self._joined.value += 1
        self._pids[self._slot] = os.getpid()

    def take(self, task: int, position: int) -> None:
        """Note that this process works on the image at ``position`` of the task."""
        self._places[self._slot] = (task << _POSITION_BITS | position) + 1

    def leave(self) -> None:
        """Note that this process works on no image."""
        self._places[self._slot] = 0

    def places(self) -> list[tuple[int, int]]:
        """List process and place of each worker that has an image; equal places are the same image."""
        return [(pid, place) for pid, place in zip(self._pids, self._places, strict=True) if pid and place]


class Watch:
    """For how long each image in hand has been waited for.

    Counted is the time in which the run waits: while it computes, or is stopped by Ctrl-Z, no image is late.
    """

    def __init__(self, in_hand: InHand, limit: float) -> None:
        self.limit = limit
        self._in_hand = in_hand
        self._waited: dict[tuple[int, int], float] = {}
        self._last = 0.0

    @property
    def interval(self) -> float:
        """Seconds to wait between two looks."""
        return min(_INTERVAL, self.limit / 10)

    def start(self) -> None:
        """Start to count the time that the run waits."""
        self._last = time.monotonic()

    def find_overdue(self) -> list[Overdue]:
        """Find the workers whose image has been waited for longer than the limit."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, 2 * self.interval), now
        self._waited = {place: self._waited.get(place, 0.0) + passed for place in self._in_hand.places()}
        return [
            Overdue(pid, (place - 1) >> _POSITION_BITS, (place - 1) & ((1 << _POSITION_BITS) - 1))
            for (pid, place), seconds in self._waited.items()
            if seconds >= self.limit
        ]

"""How a list is cut into slices for workers: whole groups of the engine, each some half a minute of work."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

#: Seconds of work that a slice is to be: far above the milliseconds that handing it over costs, and no more than one
#: wants to lose with a worker.
SECONDS = 30.0

#: The most of one slice: images, and bytes of the text of its rows, which is held in memory.
_MOST_IMAGES, _MOST_BYTES = 16_384, 4 << 20

#: Slices for each worker that go out before one that ended its worker does again.
_BETWEEN = 3


class Slice(NamedTuple):
    """The images from position ``start`` up to ``stop`` of the run's list."""

    start: int
    stop: int

    @property
    def images(self) -> int:
        """Number of its images."""
        return self.stop - self.start


class SliceCutter:
    """Cuts what is left of a list.

    Every slice begins at a whole number of groups from the start of the list and, but for the last, ends at one: an
    image then has the batch mates that it has where one machine goes through the list. A first slice is one group; once
    it is known how fast workers are, slices take :data:`SECONDS`, less towards the end, so that all end together.

    Args:
        total: images of the list.
        group: images of a group.
        start: where to begin, a whole number of groups.
        done: images of each slice that is done already, by its first image.
        workers: how many share the work.
    """

    def __init__(self, total: int, group: int, start: int, done: Mapping[int, int], workers: int) -> None:
        self._total, self._group, self._workers = total, group, workers
        self._next = start
        self._done = sorted((first, first + images) for first, images in done.items())
        self._back: list[Slice] = []
        self._suspects: deque[tuple[int, Slice]] = deque()
        self._handed_out = 0
        self._most = group

    def cut(self) -> Slice | None:
        """Cut the next slice, ``None`` where nothing is left to hand out."""
        one = self._cut()
        self._handed_out += one is not None
        return one

    def _cut(self) -> Slice | None:
        if self._back:
            return heapq.heappop(self._back)
        if self._suspects and self._suspects[0][0] <= self._handed_out:
            return self._suspects.popleft()[1]
        while self._done and self._done[0][0] <= self._next:
            self._next = max(self._next, self._done.pop(0)[1])
        if self._next >= self._total:
            return self._suspects.popleft()[1] if self._suspects else None
        gap = (self._done[0][0] if self._done else self._total) - self._next
        fair = (self._total - self._next) // (2 * self._workers)
        size = max(1, min(self._most, fair) // self._group) * self._group
        one = Slice(self._next, self._next + min(size, gap))
        self._next = one.stop
        return one

    def take_back(self, lost: Slice, *, suspect: bool = False) -> None:
        """Take a slice back that a worker was lost with; it goes out again before any other.

        One that is ``suspect`` of having ended the worker waits until some others have gone out, so that the workers
        that it may end, one after the other, get something done in between.
        """
        if suspect:
            self._suspects.append((self._handed_out + _BETWEEN * self._workers, lost))
        else:
            heapq.heappush(self._back, lost)

    def learn(self, images: int, seconds: float, size: int) -> None:
        """Learn from a slice how long one may be: so many images took so many seconds and bytes of text."""
        by_time = images * SECONDS / max(seconds, 1e-3)
        by_size = images * _MOST_BYTES / max(size, 1)
        self._most = max(self._group, int(min(by_time, by_size, _MOST_IMAGES)))

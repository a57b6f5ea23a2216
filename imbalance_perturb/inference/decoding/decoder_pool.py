"""Worker processes that images are decoded in: one that dies or takes too long costs no image but its own."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from imbalance_perturb.inference.allocator import release_freed_memory
from imbalance_perturb.inference.decoding.overdue import InHand, Overdue, Watch
from imbalance_perturb.inference.decoding.pixel_slots import PixelSlots
from imbalance_perturb.inference.decoding.worker_process import (
    Decoded,
    Decoder,
    Sent,
    decode_in_worker,
    read_in_worker,
    start_worker,
)

T = TypeVar("T")

#: Images of a task: a slice of hundreds is decoded by all workers, not by one while the others go on to later slices.
_TASK = 32

#: Slots for each worker and for whoever waits: of tasks that are decoded, that wait, and that are read.
_SLOTS = 12

#: Tasks that are started for each worker, one that it decodes and one that waits; and slices, at least.
_AHEAD = 2

#: Parts of a slice for each worker, where workers decode it together: the last of them all are to end together.
_PARTS = 2

#: Files that a worker reads for the system's cache at a time.
_READ_TOGETHER = 4

#: So often an image may end the process that decodes it, before it is given up: the first time may be chance.
_TRIES = 2

#: Seconds that a worker may continue with its image when nobody waits for it any more.
_GRACE = 2.0


def in_slices(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """Split names, in their order, into slices of ``size``."""
    return (list(names[start : start + size]) for start in range(0, len(names), size))


class _Task(NamedTuple):
    """A slice that was started: ``late`` are those of its names that are not decoded again.

    ``slot``: where its pixels go, which is the task's until it has been read or its workers have ended.
    """

    names: list[str]
    late: frozenset[str]
    future: Future[list[Sent]]
    slot: int | None


class DecoderPool:
    """Worker processes, replaced when one of them dies or takes too long.

    Args:
        make_decoder: called in each worker.
        workers: how many.
        timeout: seconds that a worker may take for one image, while it is waited for.
        start_method: how processes are started; ``None`` forks them where that is safe.
        shape: (C, H, W) of an image, where all have one: forked workers then write pixels where they are read.
    """

    def __init__(
        self,
        make_decoder: Callable[[], Decoder],
        workers: int,
        timeout: float,
        start_method: str | None = None,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        self._make_decoder, self._workers, self._timeout = make_decoder, workers, timeout
        # Forked where that is safe: a fresh interpreter in each worker has to import torch again.
        self._context = multiprocessing.get_context(start_method or ("fork" if sys.platform == "linux" else "spawn"))
        if start_method == "forkserver":
            self._context.set_forkserver_preload(["imbalance_perturb.inference.decoding.workers"])
        self._numbers = itertools.count()
        self._under_way: dict[int, tuple[list[str], Future[Any]]] = {}
        # Images that took too long: those of them that come again are not waited for again.
        self._late: dict[str, Decoded] = {}
        self._slots: PixelSlots | None = None
        if shape is not None and self._context.get_start_method() == "fork":
            with suppress(OSError, ValueError):  # no such memory here: then pixels go through pipes
                self._slots = PixelSlots(shape, _TASK, _SLOTS * (1 + workers))
        self._task = _TASK if self._slots is None else self._slots.images
        self._held: list[int | None] = []
        # A forked worker finds the libraries that decoding takes loaded here; else each would take a second for it.
        make_decoder()
        self._pool = self._open()

    def decode_ahead(self, slices: Iterator[list[str]]) -> Iterator[tuple[list[str], list[Decoded]]]:
        """Yield each slice with its images decoded, in order; some are decoded ahead, in tasks of :data:`_TASK`.

        Pixels are to be read before the next slice is asked for.
        """
        whole: deque[list[str]] = deque()
        most = _AHEAD * self._workers

        def cut() -> Iterator[list[str]]:
            nonlocal most
            for names in slices:
                whole.append(names)
                most = max(most, _AHEAD * math.ceil(len(names) / self._task))
                yield from in_slices(names, self._task)

        decoded: list[Decoded] = []
        for _, part in self._decode_in_order(cut(), lambda: most):
            decoded += part
            if len(decoded) == len(whole[0]):
                yield whole.popleft(), decoded
                decoded = []
                self._give_back()

    def decode_in_turn(self, slices: Iterator[list[str]]) -> Iterator[tuple[list[str], list[Decoded]]]:
        """Yield each slice with its images decoded, in order, by all workers at once when it is asked for.

        While they would be idle the files of the next slice are read into the system's cache.
        """
        names = next(slices, None)
        while names is not None:
            parts = list(in_slices(names, min(self._task, math.ceil(len(names) / (_PARTS * self._workers)))))
            decoded = [one for _, part in self._decode_in_order(iter(parts), partial(len, parts)) for one in part]
            following = next(slices, None)
            for part in in_slices([name for name in following or [] if name not in self._late], _READ_TOGETHER):
                self._submit(read_in_worker, part)
            yield names, decoded
            self._give_back()
            names = following

    def _decode_in_order(
        self, slices: Iterator[list[str]], most: Callable[[], int]
    ) -> Iterator[tuple[list[str], list[Decoded]]]:
        """Yield each slice with its images decoded, in order; ``most()`` slices are started at a time."""
        waiting: deque[_Task] = deque()
        while True:
            while len(waiting) < most() and (names := next(slices, None)) is not None:
                waiting.append(self._start(names))
            if not waiting:
                return
            task = waiting.popleft()
            try:
                decoded = self._finish(task)
            except BrokenProcessPool:
                # Which image broke it may not be known: all started slices start again, the first of them on its own.
                self._reopen()
                self._drop(task, *waiting)
                decoded = self._decode_apart(task.names)
                waiting = deque(self._start(other.names) for other in waiting)
            yield task.names, decoded

    def close(self) -> None:
        """End the workers after their current image; one that does not finish it is killed."""
        self._watch.limit = min(self._timeout, _GRACE)
        futures = [future for _, future in list(self._under_way.values())]
        for future in [future for future in futures if not future.cancel()]:
            with suppress(BrokenProcessPool):
                self._wait(future)
        self._pool.shutdown(wait=True)

    def _decode_apart(self, names: list[str]) -> list[Decoded]:
        """Decode images whose slice was lost with a worker: together once more, and then one by one."""
        while True:
            late, task = len(self._late), self._start(names)
            try:
                return self._finish(task)
            except BrokenProcessPool:
                self._reopen()
                self._drop(task)
            if len(self._late) == late:  # else it is known which image broke it
                return [self._decode_alone(name) for name in names]

    def _decode_alone(self, name: str) -> Decoded:
        for _ in range(_TRIES):
            task = self._start([name])
            try:
                return self._finish(task)[0]
            except BrokenProcessPool:
                self._reopen()
                self._drop(task)
        if name in self._late:
            return self._late[name]
        return Decoded(f"decoding it ended its process {_TRIES} times (killed by the system, or out of memory)", 0.0)

    def _start(self, names: list[str]) -> _Task:
        late = frozenset(self._late.keys() & set(names))
        slot = None if self._slots is None else self._slots.take()
        work = partial(decode_in_worker, slot)
        return _Task(names, late, self._submit(work, [name for name in names if name not in late]), slot)

    def _finish(self, task: _Task) -> list[Decoded]:
        found = self._wait(task.future)
        self._held.append(task.slot)
        decoded = iter([self._fetch(one, task.slot) for one in found])
        return [self._late[name] if name in task.late else next(decoded) for name in task.names]

    def _fetch(self, sent: Sent, slot: int | None) -> Decoded:
        if sent.place is None:
            return sent.decoded
        assert self._slots is not None
        assert slot is not None
        return sent.decoded._replace(found=self._slots.get(slot, sent.place))

    def _give_back(self) -> None:
        """The slots of what was yielded and has been read."""
        if self._slots is not None:
            for slot in self._held:
                self._slots.give_back(slot)
        self._held = []

    def _drop(self, *tasks: _Task) -> None:
        """The slots of tasks that are not finished: only after all workers have ended."""
        self._held += [task.slot for task in tasks]

    def _submit(self, work: Callable[[int, list[str]], T], names: list[str]) -> Future[T]:
        number = next(self._numbers)
        try:
            future = self._pool.submit(work, number, names)
        except BrokenProcessPool:  # a worker died while nothing was waited for
            self._reopen()
            future = self._pool.submit(work, number, names)
        self._under_way[number] = names, future
        future.add_done_callback(lambda _: self._under_way.pop(number, None))
        return future

    def _wait(self, future: Future[T]) -> T:
        self._watch.start()
        while True:
            try:
                return future.result(timeout=self._watch.interval)
            except TimeoutError:
                for overdue in self._watch.find_overdue():
                    self._give_up(overdue)

    def _give_up(self, overdue: Overdue) -> None:
        """Kill a worker that takes too long for one image; that breaks the pool, and whoever waits starts again."""
        if (task := self._under_way.get(overdue.task)) is None:
            return
        name = task[0][overdue.position]
        reason = f"not read within {self._timeout:g} s (--image-timeout SECONDS gives it more)"
        self._late[name] = Decoded(reason, self._timeout)
        with suppress(ProcessLookupError):
            os.kill(overdue.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def _reopen(self) -> None:
        self.close()
        self._pool = self._open()

    def _open(self) -> ProcessPoolExecutor:
        release_freed_memory()
        in_hand = InHand(self._context, self._workers)
        self._watch = Watch(in_hand, self._timeout)
        return ProcessPoolExecutor(
            self._workers,
            mp_context=self._context,
            initializer=start_worker,
            initargs=(self._make_decoder, in_hand, self._slots),
        )

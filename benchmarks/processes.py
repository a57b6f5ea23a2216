"""Contenders in processes of their own that live through the whole measurement and are asked one at a time.

What a forward pass costs depends on what its process has done before: glibc's allocator learns from the blocks that
were freed, so plain eager can take three times as long in a process that has only ever predicted as in one that has
run other libraries. Here each contender has the history that it would have for its user, and no other.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch
from measuring import Measured, progress

T = TypeVar("T")


@dataclass(frozen=True)
class Ready(Generic[T]):
    """What a process has built: ``run`` answers request number i; ``notes`` are what the reader should know."""

    run: Callable[[int], T]
    notes: list[str] = field(default_factory=list)


@dataclass
class Worker(Generic[T]):
    """One process seen from outside; ``idle`` and ``waited`` are its seconds of CPU, and of clock, between requests."""

    process: Any
    pipe: Connection
    notes: list[str]
    idle: float = 0.0
    waited: float = 0.0

    def ask(self, index: int) -> tuple[float, T]:
        """Seconds of request ``index``, as the process itself measured them, and its answer."""
        self.pipe.send(index)
        seconds, found, idle, waited = self._receive()
        self.idle += idle
        self.waited += waited
        return seconds, found

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(f"{self.process.name} ended with {self.process.exitcode}") from None


class Team(AbstractContextManager["Team[T]"], Generic[T]):
    """Workers by name, each in a process that is started, with all it has to load, before the next one is.

    Args:
        build: run in each process, with its name and ``args``; a function of a module, so that it can be sent there.
        names: of the workers.
        args: further arguments, which can be pickled.
        threads: of torch in each process.
    """

    def __init__(self, build: Callable[..., Ready[T]], names: list[str], *args: object, threads: int) -> None:
        self.workers: dict[str, Worker[T]] = {}
        context = multiprocessing.get_context("spawn")
        try:
            for name in names:
                progress(f"{name}: starting")
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, threads, build, name, *args), name=name, daemon=True
                )
                process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
                worker: Worker[T] = Worker(process, ours, [])
                self.workers[name] = worker
                worker.notes += worker._receive()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for worker in self.workers.values():
            worker.pipe.close()
        for worker in self.workers.values():
            worker.process.join()

    def take_turns(self, rounds: int, seed: int = 0) -> dict[str, Measured[T]]:
        """Request number r of every worker in round r, in an order that is drawn anew: a slow minute hits all alike."""
        return take_turns({name: worker.ask for name, worker in self.workers.items()}, rounds, seed)

    @property
    def idle_share(self) -> float:
        """Of one core, what all waiting processes together used."""
        waited = max(worker.waited for worker in self.workers.values())
        return sum(worker.idle for worker in self.workers.values()) / max(waited, 1e-9)


def take_turns(
    ask: Mapping[str, Callable[[int], tuple[float, T]]], rounds: int, seed: int = 0
) -> dict[str, Measured[T]]:
    """See :meth:`Team.take_turns`."""
    order, shuffle = list(ask), random.Random(seed)
    measured: dict[str, Measured[T]] = {name: Measured() for name in ask}
    for index in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            seconds, found = ask[name](index)
            measured[name].seconds.append(seconds)
            measured[name].found.append(found)
    return measured


def _serve(pipe: Connection, threads: int, build: Callable[..., Ready[T]], name: str, *args: object) -> None:
    """What a worker's process does: build, then answer until the pipe is closed. Between requests it is blocked."""
    torch.set_num_threads(threads)
    ready = build(name, *args)
    pipe.send(ready.notes)
    used, since = time.process_time(), time.perf_counter()
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        idle, start = time.process_time() - used, time.perf_counter()
        found = ready.run(index)
        seconds = time.perf_counter() - start
        pipe.send((seconds, found, idle, start - since))
        used, since = time.process_time(), time.perf_counter()

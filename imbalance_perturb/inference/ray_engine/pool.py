"""The workers of a run: given slices, asked for what is done, replaced when one is lost.

Ray keeps the processes and says when one is gone. Which slice goes where, and how often one may end its process, is
decided here: Ray's own retries would try such a slice for ever, and could do one twice.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from imbalance_perturb.errors import ClusterError, ImbperturbError
from imbalance_perturb.inference.ray_engine.actor import Worker
from imbalance_perturb.inference.ray_engine.cluster import Share
from imbalance_perturb.inference.ray_engine.slices import Slice
from imbalance_perturb.inference.ray_engine.task import FinishedSlice, Scouted, Task

#: Slices that a worker has: the one it computes, and the next, so that it never waits.
_IN_HAND = 2

#: Seconds after which it is said that no worker has started yet.
_LONG = 30.0

#: So often workers may end in a row before any has the model loaded; and so long may nothing at all come from them.
_TRIES_TO_LOAD, SILENCE = 3, 1800.0


class Lost(NamedTuple):
    """A slice that did not come back; ``node`` is the machine whose worker ended over it, ``None``: it only waited."""

    slice: Slice
    node: str | None


class Finished(NamedTuple):
    """A slice that came back."""

    slice: Slice
    result: FinishedSlice


@dataclass(eq=False)
class _Member:
    """One worker: what Ray calls it by, what it was asked to load, and the slices that it has, in order."""

    actor: Any
    joining: Any
    node: str = ""
    ready: bool = False
    in_hand: deque[tuple[Slice, Any]] = field(default_factory=deque)


class WorkerPool:
    """Workers on a cluster.

    Args:
        ray: the module, connected to the cluster.
        share: of the cluster, for each worker.
        task: what the first of them is told.
    """

    def __init__(self, ray: Any, share: Share, task: Task) -> None:
        self._ray, self._share = ray, share
        # A worker that ends is replaced here, where it is known what it had in hand.
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_task_retries": 0}
        self._make = ray.remote(**options)(Worker).remote
        self._members: list[_Member] = []
        self._ended_loading: list[str] = []
        self._heard = time.monotonic()
        self._arguments: tuple[Any, ...] = (ray.put(task),)
        self._members.append(self._member())

    @property
    def at_work(self) -> int:
        """Number of workers that have the model loaded."""
        return sum(member.ready for member in self._members)

    @property
    def nodes(self) -> frozenset[str]:
        """The machines of those."""
        return frozenset(member.node for member in self._members if member.ready)

    def scout(self, tell_waiting: Callable[[], None]) -> Scouted:
        """What the first worker has found out; ``tell_waiting`` is called where that takes long.

        Raises:
            ClusterError: if its process ends three times.
            ImbperturbError: what is wrong with the run, as its worker found it.
        """
        while True:
            (member,) = self._members
            while not self._ray.wait([member.joining], timeout=_LONG)[0]:
                tell_waiting()
            scouted = self._joined(member)
            if isinstance(scouted, Scouted):
                member.ready, member.node = True, scouted.node
                return scouted

    def grow(self, workers: int, task: Task, scouted: Scouted) -> None:
        """Ask for workers until there are so many, and tell them and their successors what the first found out."""
        self._arguments = (self._ray.put(task), self._ray.put(scouted))
        while len(self._members) < workers:
            self._members.append(self._member())

    def give(self, cut: Callable[[], Slice | None], submit: Callable[[Any, Slice], Any]) -> None:
        """Give slices to workers that have room, one to each before any gets its next.

        Args:
            cut: gives the next slice.
            submit: calls an actor to predict it.
        """
        for most in range(1, _IN_HAND + 1):
            for member in self._members:
                if member.ready and len(member.in_hand) < most:
                    if (one := cut()) is None:
                        return
                    member.in_hand.append((one, submit(member.actor, one)))

    def take(self, seconds: float) -> Iterator[Finished | Lost]:
        """Wait for at most so many seconds, and yield what has become of slices.

        Raises:
            ClusterError: if nothing has come for half an hour, or workers end again and again while they load.
            ImbperturbError: what a worker raised.
        """
        waited = {ref: member for member in self._members for ref in self._references(member)}
        found, _ = self._ray.wait(list(waited), num_returns=1, timeout=seconds)
        if not found:
            if time.monotonic() - self._heard > SILENCE:
                raise ClusterError(
                    f"no worker has come back with anything for {SILENCE / 60:.0f} minutes; look at the cluster (ray"
                    " status), and go on with --resume"
                )
            return
        self._heard = time.monotonic()
        found, _ = self._ray.wait(list(waited), num_returns=len(waited), timeout=0)
        for member in dict.fromkeys(waited[ref] for ref in found):
            if not member.ready:
                joined = self._joined(member)
                if joined is not None:
                    member.ready, member.node = True, str(joined)
                continue
            yield from self._take_of(member)

    def ask(self, call: Callable[[Any], Any]) -> Any:
        """What ``call`` of one of the workers comes to, ``None`` where there is none or it is lost meanwhile."""
        member = next((member for member in self._members if member.ready), None)
        if member is None:
            return None
        try:
            return self._ray.get(call(member.actor))
        except self._ray.exceptions.RayError:
            return None

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()

    def _references(self, member: _Member) -> list[Any]:
        return [ref for _, ref in member.in_hand] if member.ready else [member.joining]

    def _member(self) -> _Member:
        actor = self._make()
        joining = (actor.scout if len(self._arguments) == 1 else actor.join).remote(*self._arguments)
        return _Member(actor, joining)

    def _joined(self, member: _Member) -> Any:
        """What a worker answers that was to load the model; ``None`` where it is lost, and another comes for it."""
        try:
            answer = self._get(member.joining)
        except _Gone as gone:
            self._ended_loading.append(gone.node)
            if len(self._ended_loading) >= _TRIES_TO_LOAD:
                raise ClusterError(
                    f"the process of a worker ended {_TRIES_TO_LOAD} times while it loaded the model, on"
                    f" {_places(self._ended_loading)} ({gone.reason}); give it more memory, or --ray-workers fewer"
                ) from None
            self._replace(member)
            return None
        self._ended_loading.clear()
        return answer

    def _take_of(self, member: _Member) -> Iterator[Finished | Lost]:
        """What a worker has done, in order; where it is lost, the slice that it had begun and those that waited."""
        while member.in_hand:
            one, ref = member.in_hand[0]
            if not self._ray.wait([ref], timeout=0)[0]:
                return
            try:
                result = self._get(ref)
            except _Gone:
                self._replace(member)
                for index, (lost, _) in enumerate(member.in_hand):
                    yield Lost(lost, member.node if index == 0 else None)
                return
            member.in_hand.popleft()
            yield Finished(one, result)

    def _get(self, ref: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            raise error.cause from (None if isinstance(error.cause, ImbperturbError) else error)
        except errors.RayError as error:
            raise _Gone(error) from None

    def _replace(self, member: _Member) -> None:
        """Put a new worker in the place of one that is lost, which may still do what nobody takes any more."""
        self._ray.kill(member.actor)
        self._members[self._members.index(member)] = self._member()


class _Gone(Exception):
    """A worker is lost: on which machine, and why, as far as Ray's many lines say that."""

    def __init__(self, error: Exception) -> None:
        text = str(error)
        super().__init__(text)
        found = re.search(r"\bip: ([\d.]+)", text)
        self.node = found[1] if found else "a machine of the cluster"
        # Where the package is not installed there, the last line says what is missing.
        self.reason = text.strip().splitlines()[-1] if "creation task" in text else "out of memory?"


def _places(nodes: list[str]) -> str:
    return ", ".join(dict.fromkeys(nodes))

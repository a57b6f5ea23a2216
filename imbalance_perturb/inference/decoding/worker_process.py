"""What runs in a process that decodes images, and what it sends back."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from imbalance_perturb.data.pixels import Peak
from imbalance_perturb.inference.decoding.overdue import InHand
from imbalance_perturb.inference.decoding.pixel_slots import PixelSlots

T = TypeVar("T")


class Decoded(NamedTuple):
    """One image: its pixels, as an array, since tensors would be sent through shared memory, or why there are none."""

    found: np.ndarray[Any, Any] | str
    seconds: float
    peak: Peak | None = None


class Sent(NamedTuple):
    """An image on its way from a worker: where its pixels lie in the task's slot, ``None`` where they come along."""

    decoded: Decoded
    place: int | None


class Decoder(Protocol):
    """What a worker does with one image."""

    def decode(self, name: str) -> Decoded:
        """Decode an image: its pixels, or the reason why it cannot be used."""
        ...

    def read(self, name: str) -> None:
        """Read its file into the system's cache."""
        ...


class _Worker(NamedTuple):
    decoder: Decoder
    in_hand: InHand
    slots: PixelSlots | None

    def each(self, number: int, names: Sequence[str], work: Callable[[str], T]) -> list[T]:
        """Do the work for each image of a task, and let the run see which one that is."""
        done = []
        for position, name in enumerate(names):
            self.in_hand.take(number, position)
            done.append(work(name))
        self.in_hand.leave()
        return done


_worker: _Worker | None = None


def start_worker(make_decoder: Callable[[], Decoder], in_hand: InHand, slots: PixelSlots | None) -> None:
    """Make this process ready for tasks."""
    global _worker
    # Ctrl-C reaches every process of a terminal; the run decides what is still to be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    in_hand.join()
    _worker = _Worker(make_decoder(), in_hand, slots)


def _end_with_parent() -> None:
    # A pool's workers would wait for ever for the next task of a run that was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def decode_in_worker(slot: int | None, number: int, names: list[str]) -> list[Sent]:
    """Decode the images of a task, and write their pixels into its slot where it has one that they fit."""
    assert _worker is not None, "the worker was started"
    decoder, slots, places = _worker.decoder, _worker.slots, itertools.count()

    def decode(name: str) -> Sent:
        one, index = decoder.decode(name), next(places)
        if slots is None or slot is None or isinstance(one.found, str) or not slots.put(slot, index, one.found):
            return Sent(one, None)
        return Sent(one._replace(found=""), index)

    return _worker.each(number, names, decode)


def read_in_worker(number: int, names: list[str]) -> None:
    """Read the files of a task into the system's cache."""
    assert _worker is not None, "the worker was started"
    _worker.each(number, names, _worker.decoder.read)

"""Image files to pixels in worker processes, in order; a worker that dies costs no image but the one that killed it."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from imbalance_perturb.allocator import release_freed_memory
from imbalance_perturb.errors import ImageError
from imbalance_perturb.images import decode_image, open_regular
from imbalance_perturb.pixels import Pixels
from imbalance_perturb.preprocessing import Preprocessing, make_geometry

T = TypeVar("T")

#: Slices that are under way for each worker: one in its hands and one waiting for it.
_AHEAD = 2

#: Parts of a slice for each worker, where workers decode it together: the last of them all are to end together.
_PARTS = 2

#: Of files read for the system's cache: so many by a worker at a time, no more of each than so many bytes, in pieces.
_READ_TOGETHER, _READ_BYTES, _PIECE_BYTES = 4, 64 << 20, 1 << 20

#: So often an image may end the process that decodes it, before it is given up: the first time may be chance.
_TRIES = 2


def load_pixels(path: Path, preprocessing: Preprocessing, geometry: Callable[[Pixels], Tensor]) -> Tensor:
    """Pixels (C, H, W) of an image file, decoded and resized as ``preprocessing`` says.

    ``geometry`` is what :func:`make_geometry` made of it, once for all images.

    Raises:
        ImageError: if the file cannot be used.
    """
    return geometry(
        decode_image(
            path,
            preprocessing.color,
            max_value=preprocessing.max_value,
            exif_orientation=preprocessing.exif_orientation,
            draft_size=preprocessing.draft_size,
        )
    )


class DecodedBatch(NamedTuple):
    """Consecutive images: ``names``, for each the reason why it cannot be used or ``None``, and the usable ones.

    ``groups``: positions in the batch and pixels (n, C, H, W) of the images of one size and type each.
    """

    names: list[str]
    errors: list[str | None]
    groups: list[tuple[list[int], Tensor]]
    seconds: float


class _Decoded(NamedTuple):
    """One image as it comes from a worker; as an array, since tensors would be sent through shared memory."""

    found: np.ndarray[Any, Any] | str
    seconds: float


class _Decoder:
    """What a worker process does: names in, pixels out. It holds no list of the images."""

    def __init__(self, root: Path, preprocessing: Preprocessing) -> None:
        self._root = root
        self._preprocessing = preprocessing
        self._geometry = make_geometry(preprocessing)

    def __call__(self, names: Sequence[str]) -> list[_Decoded]:
        return [self._decode(name) for name in names]

    def read(self, names: Sequence[str]) -> None:
        """Read files for the system's cache to hold them; whatever is wrong with one is said when it is decoded."""
        for name in names:
            with suppress(OSError, ImageError), open_regular(self._root / name) as stream:
                left = _READ_BYTES
                while left > 0 and (piece := stream.read(min(left, _PIECE_BYTES))):
                    left -= len(piece)

    def _decode(self, name: str) -> _Decoded:
        start = time.perf_counter()
        found: np.ndarray[Any, Any] | str
        try:
            found = load_pixels(self._root / name, self._preprocessing, self._geometry).numpy()
        except ImageError as error:
            found = str(error)
        return _Decoded(found, time.perf_counter() - start)


def in_slices(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """Names in their order, ``size`` of them at a time."""
    return (list(names[start : start + size]) for start in range(0, len(names), size))


def iter_decoded(
    root: Path, slices: Iterator[list[str]], preprocessing: Preprocessing, workers: int, *, takes_turns: bool = False
) -> Iterator[DecodedBatch]:
    """Decode images, a batch for each slice, in order.

    Every name comes as often as it is in the slices, usable or with its error.

    Args:
        root: what the names are relative to.
        slices: names, of the images that are handed on together; taken a little ahead of what is asked for.
        preprocessing: says how to decode and resize.
        workers: processes; 0 decodes in this one.
        takes_turns: whether workers decode a slice together while it is waited for, and only read files in between;
            else they decode ahead, each its own slice.
    """
    if workers == 0:
        decode = _Decoder(root, preprocessing)
        for names in slices:
            yield _collate(names, decode(names))
        return
    workshop = _Workshop(root, preprocessing, workers)
    try:
        for names, decoded in (workshop.decode_in_turn if takes_turns else workshop.decode_ahead)(slices):
            yield _collate(names, decoded)
    finally:
        workshop.close()


class _Workshop:
    """Worker processes, replaced when one of them dies."""

    def __init__(self, root: Path, preprocessing: Preprocessing, workers: int) -> None:
        self._root, self._preprocessing, self._workers = root, preprocessing, workers
        # A forked worker finds the libraries that decoding takes loaded here; else each would take a second for it.
        make_geometry(preprocessing)
        importlib.import_module("imbalance_perturb.raster")
        self._pool = self._open()

    def decode_ahead(self, slices: Iterator[list[str]]) -> Iterator[tuple[list[str], list[_Decoded]]]:
        """Each slice with its images decoded, in order, some slices ahead of who asks."""
        return self._decode_in_order(slices, _AHEAD * self._workers)

    def decode_in_turn(self, slices: Iterator[list[str]]) -> Iterator[tuple[list[str], list[_Decoded]]]:
        """Each slice with its images decoded, in order, by all workers at once when it is asked for.

        While they would be idle the files of the next slice are read, so that the system has them at hand.
        """
        names = next(slices, None)
        while names is not None:
            parts = list(in_slices(names, math.ceil(len(names) / (_PARTS * self._workers))))
            decoded = [one for _, part in self._decode_in_order(iter(parts), len(parts)) for one in part]
            following = next(slices, None)
            for part in in_slices(following or [], _READ_TOGETHER):
                self._submit(_read_in_worker, part)
            yield names, decoded
            names = following

    def _decode_in_order(self, slices: Iterator[list[str]], most: int) -> Iterator[tuple[list[str], list[_Decoded]]]:
        """Each slice with its images decoded, in order; ``most`` slices are under way at a time."""
        waiting: deque[tuple[list[str], Future[list[_Decoded]]]] = deque()
        while True:
            while len(waiting) < most and (names := next(slices, None)) is not None:
                waiting.append((names, self._submit(_decode_in_worker, names)))
            if not waiting:
                return
            names, future = waiting.popleft()
            try:
                decoded = future.result()
            except BrokenProcessPool:
                # Whose fault it was is not known: all that was under way begins anew, the first of it on its own.
                self._reopen()
                decoded = self._decode_apart(names)
                waiting = deque((others, self._submit(_decode_in_worker, others)) for others, _ in waiting)
            yield names, decoded

    def close(self) -> None:
        """End the workers, after what they are at."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _decode_apart(self, names: list[str]) -> list[_Decoded]:
        """Images whose slice was lost with a worker: together once more, and then one by one."""
        try:
            return self._submit(_decode_in_worker, names).result()
        except BrokenProcessPool:
            self._reopen()
        return [self._decode_alone(name) for name in names]

    def _decode_alone(self, name: str) -> _Decoded:
        for _ in range(_TRIES):
            try:
                return self._submit(_decode_in_worker, [name]).result()[0]
            except BrokenProcessPool:
                self._reopen()
        return _Decoded(f"decoding it ended its process {_TRIES} times (killed by the system, or out of memory)", 0.0)

    def _submit(self, task: Callable[[list[str]], T], names: list[str]) -> Future[T]:
        try:
            return self._pool.submit(task, names)
        except BrokenProcessPool:  # a worker died while nothing was waited for
            self._reopen()
            return self._pool.submit(task, names)

    def _reopen(self) -> None:
        self.close()
        self._pool = self._open()

    def _open(self) -> ProcessPoolExecutor:
        release_freed_memory()
        # Forked where that is safe: a fresh interpreter in each worker has to import torch anew.
        method = "fork" if sys.platform == "linux" else "spawn"
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context(method),
            initializer=_start_worker,
            initargs=(self._root, self._preprocessing),
        )


_decoder: _Decoder | None = None


def _start_worker(root: Path, preprocessing: Preprocessing) -> None:
    global _decoder
    # Ctrl-C reaches every process of a terminal; the run decides what is still to be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _decoder = _Decoder(root, preprocessing)


def _end_with_parent() -> None:
    # A pool's workers would wait for ever for the next task of a run that was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_in_worker(names: list[str]) -> list[_Decoded]:
    assert _decoder is not None, "the worker was started"
    return _decoder(names)


def _read_in_worker(names: list[str]) -> None:
    assert _decoder is not None, "the worker was started"
    _decoder.read(names)


def _collate(names: list[str], decoded: Sequence[_Decoded]) -> DecodedBatch:
    # Each image keeps its position beside its pixels, so that no failure can shift a prediction to a neighbour.
    assert len(names) == len(decoded)
    errors = [found if isinstance(found, str) else None for found, _ in decoded]
    alike: dict[tuple[tuple[int, ...], np.dtype[Any]], list[int]] = {}
    for position, (found, _) in enumerate(decoded):
        if not isinstance(found, str):
            alike.setdefault((found.shape, found.dtype), []).append(position)
    groups = [
        (positions, torch.from_numpy(np.stack([decoded[position].found for position in positions])))
        for positions in alike.values()
    ]
    return DecodedBatch(names, errors, groups, sum(seconds for _, seconds in decoded))

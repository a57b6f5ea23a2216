"""Image files to pixels, in order, in worker processes; every image has its pixels or its reason."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from imbalance_perturb.config.machine_settings import IMAGE_TIMEOUT
from imbalance_perturb.data.image_decoding import decode_image, open_regular
from imbalance_perturb.data.pixels import Peak, Pixels, find_peak
from imbalance_perturb.data.preprocessing import Preprocessing, make_geometry
from imbalance_perturb.data.remote_files import RemotePath
from imbalance_perturb.errors import ImageError
from imbalance_perturb.inference.decoding.decoder_pool import DecoderPool, in_slices
from imbalance_perturb.inference.decoding.reused_memory import ReusedMemory
from imbalance_perturb.inference.decoding.worker_process import Decoded

__all__ = ["DecodedBatch", "Decoders", "in_slices", "iter_decoded"]

#: Of a file read for the system's cache no more than so many bytes, in pieces.
_READ_BYTES, _PIECE_BYTES = 64 << 20, 1 << 20


#: How processes are started beside threads: one that holds a lock at a fork would hold it in the child for ever.
BESIDE_THREADS = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class DecodedBatch(NamedTuple):
    """Consecutive images: ``names``, for each the reason why it cannot be used or ``None``, and the usable ones.

    ``groups``: positions in the batch and pixels (n, C, H, W) of the images of one size and type each. ``peaks``: of
    the images of more than 8 bits whose white was taken for the highest of the type.
    """

    names: list[str]
    errors: list[str | None]
    groups: list[tuple[list[int], Tensor]]
    seconds: float
    peaks: tuple[Peak, ...] = ()


class _Decoder:
    """What a worker process does: names in, pixels out. It holds no list of the images."""

    def __init__(self, root: Path | RemotePath, preprocessing: Preprocessing) -> None:
        importlib.import_module("imbalance_perturb.data.raster")
        self._root = root
        self._preprocessing = preprocessing
        self._geometry = make_geometry(preprocessing)

    def decode(self, name: str) -> Decoded:
        """Decode and resize an image: its pixels, or the reason why it cannot be used."""
        start, peak = time.perf_counter(), None
        found: np.ndarray[Any, Any] | str
        try:
            pixels = self._load(self._root / name)
            peak, found = find_peak(pixels), self._geometry(pixels).numpy()
        except ImageError as error:
            found = str(error)
        return Decoded(found, time.perf_counter() - start, peak)

    def _load(self, path: Path | RemotePath) -> Pixels:
        p = self._preprocessing
        return decode_image(
            path,
            p.color,
            max_value=p.max_value,
            exif_orientation=p.exif_orientation,
            draft_size=p.draft_size,
        )

    def read(self, name: str) -> None:
        """Read a file into the system's cache; whatever is wrong with it is reported when it is decoded."""
        if isinstance(self._root, RemotePath):  # what it reads is kept nowhere
            return
        with suppress(OSError, ImageError), open_regular(self._root / name) as stream:
            left = _READ_BYTES
            while left > 0 and (piece := stream.read(min(left, _PIECE_BYTES))):
                left -= len(piece)


class Decoders:
    """Decodes one list of images after the other, in processes that stay ready between them.

    Args:
        root: what the names are relative to.
        preprocessing: says how to decode and resize.
        workers: processes; 0 decodes in this one, which an image may end or hold up.
        takes_turns: whether workers decode a slice together while it is waited for, and only read files in between;
            else they decode ahead, each its own slice.
        image_timeout: seconds that a worker may take for one image, while it is waited for; then it is replaced, and
            the image has an error.
        start_method: of the processes, as ``multiprocessing`` names it; ``None`` for the fastest that is safe in a
            process of one's own.
        pinned: whether pixels are for a GPU, which reads them from memory of this kind while it does other work.
    """

    def __init__(
        self,
        root: Path | RemotePath,
        preprocessing: Preprocessing,
        workers: int,
        *,
        takes_turns: bool = False,
        image_timeout: float = IMAGE_TIMEOUT,
        start_method: str | None = None,
        pinned: bool = False,
    ) -> None:
        make_decoder = partial(_Decoder, root, preprocessing)
        if isinstance(root, RemotePath):
            # A store's client has threads; and waiting for it takes no core.
            start_method, takes_turns = BESIDE_THREADS, False
        self._decoder = None if workers else make_decoder()
        size = preprocessing.size
        shape = None if size is None else (preprocessing.channels, *size)
        self._pool = DecoderPool(make_decoder, workers, image_timeout, start_method, shape) if workers else None
        self._takes_turns, self._memory = takes_turns, ReusedMemory(pinned=pinned)

    def iter_decoded(self, slices: Iterator[list[str]]) -> Iterator[DecodedBatch]:
        """Decode images, a batch for each slice, in order.

        Every name of the slices is in the batches, as often as there, usable or with its error.

        Args:
            slices: names of the images that make a batch together; taken a little ahead of what is asked for.
        """
        if self._decoder is not None:
            for names in slices:
                yield _collate(names, [self._decoder.decode(name) for name in names], self._memory)
        if self._pool is not None:
            for names, decoded in (self._pool.decode_in_turn if self._takes_turns else self._pool.decode_ahead)(slices):
                yield _collate(names, decoded, self._memory)

    def close(self) -> None:
        """End the processes after their current image; one that does not finish it is killed."""
        if self._pool is not None:
            self._pool.close()


def iter_decoded(
    root: Path | RemotePath,
    slices: Iterator[list[str]],
    preprocessing: Preprocessing,
    workers: int,
    *,
    takes_turns: bool = False,
    image_timeout: float = IMAGE_TIMEOUT,
    pinned: bool = False,
) -> Generator[DecodedBatch]:
    """Decode one list of images, a batch for each slice, in order; arguments as for :class:`Decoders`."""
    decoders = Decoders(
        root, preprocessing, workers, takes_turns=takes_turns, image_timeout=image_timeout, pinned=pinned
    )
    try:
        yield from decoders.iter_decoded(slices)
    finally:
        decoders.close()


def _collate(names: list[str], decoded: Sequence[Decoded], memory: ReusedMemory) -> DecodedBatch:
    # Each image keeps its position beside its pixels, so that no failure can shift a prediction to a neighbour.
    assert len(names) == len(decoded)
    errors = [one.found if isinstance(one.found, str) else None for one in decoded]
    pixels: dict[int, np.ndarray[Any, Any]] = {}
    alike: dict[tuple[tuple[int, ...], np.dtype[Any]], list[int]] = {}
    for position, one in enumerate(decoded):
        if not isinstance(one.found, str):
            pixels[position] = one.found
            alike.setdefault((one.found.shape, one.found.dtype), []).append(position)
    groups = [(positions, memory.stack([pixels[position] for position in positions])) for positions in alike.values()]
    peaks = tuple(one.peak for one in decoded if one.peak is not None)
    return DecodedBatch(names, errors, groups, sum(one.seconds for one in decoded), peaks)

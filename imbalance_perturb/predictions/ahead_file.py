"""Slices that were done before their turn, kept beside the rows of an unfinished run until their turn comes.

Rows are written in the order of the images. Where several machines compute, ``predictions.csv.ahead`` has what is done
and still waits for slices before it: for each a line with its first image, number of images, bytes and CRC-32, then the
slice itself as JSON. So a run that is cut off loses what was in hand, no more.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.files.writing import open_own
from imbalance_perturb.predictions.progress_file import ahead_path, rows_path


class _Place(NamedTuple):
    images: int
    offset: int
    size: int


class AheadFile:
    """Slices by their first image; what is not needed any more goes when none is left.

    Args:
        path: the predictions file to be; ``None`` keeps them for this process alone.
        resume: whether slices that are there count; else they are dropped.

    Every method raises OutputFileError where writing fails.
    """

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self._path, self._end = path, 0
        self._places: dict[int, _Place] = {}
        if path is None:
            self._file: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed by close()
            return
        self._file = open_own(ahead_path(path), create=True)
        if resume:
            self._read()
        self._file.truncate(self._end)

    @property
    def waiting(self) -> Mapping[int, int]:
        """Number of images of each slice by its first image."""
        return {start: place.images for start, place in self._places.items()}

    def drop_before(self, start: int) -> None:
        """Drop the slices that begin before image ``start``: their rows are written."""
        for first in [first for first in self._places if first < start]:
            del self._places[first]
        self._empty()

    def put(self, start: int, images: int, record: Mapping[str, Any]) -> None:
        """Keep a slice of so many images."""
        assert start not in self._places, "a slice comes once"
        data = json.dumps(record).encode()
        head = json.dumps({"start": start, "images": images, "bytes": len(data), "crc": zlib.crc32(data)}).encode()
        with _writing(self._path):
            self._file.seek(self._end)
            self._file.write(head + b"\n" + data + b"\n")
            self._file.flush()
        self._places[start] = _Place(images, self._end + len(head) + 1, len(data))
        self._end += len(head) + len(data) + 2

    def take(self, start: int) -> dict[str, Any] | None:
        """Take the slice that begins at image ``start``, ``None`` where there is none."""
        place = self._places.pop(start, None)
        if place is None:
            return None
        with _writing(self._path):
            self._file.seek(place.offset)
            record: dict[str, Any] = json.loads(self._file.read(place.size))
        self._empty()
        return record

    def close(self) -> None:
        """Close the file, which stays while a run is unfinished."""
        with suppress(OSError):  # on a full disk
            self._file.close()

    def _empty(self) -> None:
        if not self._places and self._end:
            with _writing(self._path):
                self._file.truncate(0)
            self._end = 0

    def _read(self) -> None:
        """Find the slices that are whole; what follows a damaged one does not count."""
        while line := self._file.readline():
            try:
                head = json.loads(line)
                start, images, size, crc = (head[key] for key in ("start", "images", "bytes", "crc"))
            except (ValueError, KeyError, TypeError):
                return
            data = self._file.read(size + 1)
            if len(data) != size + 1 or zlib.crc32(data[:-1]) != crc:
                return
            self._places[start] = _Place(images, self._end + len(line), size)
            self._end += len(line) + size + 1


@contextmanager
def _writing(path: Path | None) -> Iterator[None]:
    """Inside: what the system refuses names the file, and how to go on."""
    try:
        yield
    except OSError as error:
        where = "a temporary file" if path is None else ahead_path(path)
        rows = "" if path is None else f"; the rows so far are in {rows_path(path).name}"
        raise OutputFileError(
            f"{where}: writing stopped ({error.strerror or error}){rows}: put that right and go on with --resume"
        ) from None

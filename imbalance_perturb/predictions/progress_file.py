"""What an unfinished run has left beside its predictions file: its rows so far, and marks that prove them whole.

Beside the file to be, ``predictions.csv``, lie two others until it is whole. ``predictions.csv.partial`` has its rows
so far (those of Parquet, which cannot be read before it is whole: JSON Lines, ``predictions.parquet.partial.jsonl``).
``predictions.csv.progress`` begins with a line that says what the rows are made by; every further line is a mark: up
to this byte, with this checksum, the rows are whole, and this was the run's state. After a power cut the marks may be
ahead of the rows or damaged themselves, so a mark counts only where the bytes before it have its checksum.

A resumed run has to find these names, so others can foresee them, too: they are opened by :func:`open_own` only.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from imbalance_perturb.errors import OutputFileError, ResumeError
from imbalance_perturb.files.writing import open_own

#: Version of the layout of a progress file.
PROGRESS_SCHEMA = 2

_CHUNK = 1 << 20


class Mark(NamedTuple):
    """Up to here rows are whole: their number, bytes and CRC-32, and the state that the run was in."""

    rows: int
    size: int
    crc: int
    state: Mapping[str, Any]


class Unfinished(NamedTuple):
    """What a run that did not end has left: what it was made by, and its last mark that holds."""

    made_by: Mapping[str, Any]
    mark: Mark


def rows_path(path: Path) -> Path:
    """Name the file that rows are written to until the predictions file is whole."""
    return path.with_name(path.name + (".partial.jsonl" if is_parquet(path) else ".partial"))


def progress_path(path: Path) -> Path:
    """Name the file of the marks, which say up to which byte the rows are whole."""
    return path.with_name(path.name + ".progress")


def ahead_path(path: Path) -> Path:
    """Name the file of slices that were done before their turn (see ``ahead_file.py``)."""
    return path.with_name(path.name + ".ahead")


def read_unfinished(path: Path) -> Unfinished | None:
    """Read what an earlier run has left of a predictions file; ``None`` where there is nothing of use.

    Raises:
        ResumeError: if it is of another version of this package's files, or cannot be read.
        OutputFileError: if its files are links, or another user's.
    """
    try:
        with open_own(progress_path(path), write=False) as stream:
            return read_marks(path, stream)[0]
    except FileNotFoundError:
        return None
    except OutputFileError:
        raise
    except OSError as error:
        raise ResumeError(f"{progress_path(path)}: cannot be read ({error.strerror})") from None


def read_marks(path: Path, stream: IO[bytes]) -> tuple[Unfinished | None, int]:
    """Read an open progress file up to its last mark that agrees with the rows.

    Returns:
        What the run has left, ``None`` where no mark holds, and the number of bytes of the file up to that mark.

    Raises:
        ResumeError: if it is of another version of this package's files.
    """
    first = stream.readline()
    head = _parse(first)
    if head is None or "made_by" not in head:
        return None, 0
    if head.get("schema") != PROGRESS_SCHEMA:
        raise ResumeError(
            f"{progress_path(path)}: is of another version of imbalance-perturb; finish that run with it, or start anew"
            " with --no-resume"
        )
    found: tuple[Unfinished | None, int] = (None, 0)
    end, size, crc = len(first), 0, 0
    try:
        # Once a run has put its file under its name, the rows are there and no longer in the partial file.
        data = open_own(path if _is_in_place(path) else rows_path(path), write=False)
    except FileNotFoundError:
        return found
    with data:
        for line in stream:
            mark = _parse_mark(line)
            if mark is None or mark.size < size:
                break
            while size < mark.size and (chunk := data.read(min(_CHUNK, mark.size - size))):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            if (size, crc) != (mark.size, mark.crc):
                break
            end += len(line)
            found = Unfinished(head["made_by"], mark), end
    return found


def _is_in_place(path: Path) -> bool:
    """Whether the whole file is there, and no rows beside it; no run puts a link there."""
    return path.is_file() and not path.is_symlink() and not os.path.lexists(rows_path(path))


def is_parquet(path: Path) -> bool:
    """Whether a predictions file is to be Parquet, by its suffix."""
    return path.suffix.lower() == ".parquet"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None  # cut off, or never written: a power cut
    return record if isinstance(record, dict) else None


def _parse_mark(line: bytes) -> Mark | None:
    record = _parse(line)
    try:
        return None if record is None else Mark(record["rows"], record["bytes"], record["crc"], record["state"])
    except KeyError:
        return None

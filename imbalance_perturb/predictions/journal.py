"""Rows on disk while a run goes on, so that a run cut off by anything can go on from what it had done.

Beside the file to be, ``predictions.csv``, lie two others until it is whole. ``predictions.csv.partial`` has its rows
so far (those of Parquet, which cannot be read before it is whole: JSON Lines, ``predictions.parquet.partial.jsonl``).
``predictions.csv.progress`` begins with a line that says what the rows are made by; every further line is a mark: up
to this byte, with this checksum, the rows are whole, and the run stood so. After a power cut the marks may be ahead of
the rows or damaged themselves, so a mark counts only where the bytes before it have its checksum.

A run that goes on has to find these names, so others can foresee them, too: they are opened by :func:`open_own` only.
Every file is closed before it is renamed or removed, since Windows refuses that for one that is open.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from imbalance_perturb.errors import OutputFileError, ResumeError
from imbalance_perturb.files.writing import (
    check_output,
    check_writable,
    keep_permissions,
    move_into_place,
    open_own,
    refusing,
    sync_folder,
)
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_file import run_path
from imbalance_perturb.predictions.writing import open_parquet_records, text_rows

#: Version of the layout of a progress file.
PROGRESS_SCHEMA = 2

#: A power cut costs at most the rows of so many seconds; waiting for the disk at every batch would cost more.
_SECONDS_BETWEEN_SYNCS = 5.0

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
    """Where rows are written until the file is whole."""
    return path.with_name(path.name + (".partial.jsonl" if _is_parquet(path) else ".partial"))


def progress_path(path: Path) -> Path:
    """Where it stands up to which the rows are whole."""
    return path.with_name(path.name + ".progress")


def check_place(path: Path) -> None:
    """Refuse a predictions file that a run could not write, with all that stands beside it, before any work is done.

    Raises:
        OutputFileError: naming the file and the reason.
    """
    check_output(path)
    check_writable(run_path(path))
    for beside in (rows_path(path), progress_path(path)):
        with refusing(beside), suppress(FileNotFoundError):
            open_own(beside).close()


def read_unfinished(path: Path) -> Unfinished | None:
    """What an earlier run has left of a predictions file, ``None`` where there is nothing of use.

    Raises:
        ResumeError: if it is of another version of this package's files, or cannot be read.
        OutputFileError: if its files are links, or another user's.
    """
    try:
        with open_own(progress_path(path), write=False) as stream:
            return _read(path, stream)[0]
    except FileNotFoundError:
        return None
    except OutputFileError:
        raise
    except OSError as error:
        raise ResumeError(f"{progress_path(path)}: cannot be read ({error.strerror})") from None


class Journal:
    """Writes rows and marks; made by :func:`open_journal`. Every method raises OutputFileError where writing fails."""

    def __init__(
        self, path: Path, layout: RowLayout, progress: IO[bytes], made_by: Mapping[str, Any], mark: Mark | None
    ) -> None:
        self._path, self._layout, self._progress = path, layout, progress
        self._text = text_rows(path.suffix, layout)
        if mark and not rows_path(path).exists():
            path.replace(rows_path(path))  # cut off between the file's last mark and its run file
        self._rows = open_own(rows_path(path), create=True)
        self._rows.truncate(mark.size if mark else 0)
        sync_folder(path.parent)
        self._synced = time.monotonic()
        self.count, self._size, self._crc = (mark.rows, mark.size, mark.crc) if mark else (0, 0, 0)
        if mark:
            self._rows.seek(mark.size)
        else:
            self._append(self._text.header)
            self._write_line({"schema": PROGRESS_SCHEMA, "made_by": made_by})

    def write(self, rows: Sequence[PredictionRow]) -> None:
        """Append rows; they count from the next :meth:`commit` on."""
        with _writing(self._path):
            self._append("".join(map(self._text.line, rows)))
        self.count += len(rows)

    def commit(self, state: Mapping[str, Any]) -> None:
        """Put a mark: the rows so far are whole, and a run that goes on from here starts in this state."""
        with _writing(self._path):
            self._rows.flush()
            sync = time.monotonic() - self._synced >= _SECONDS_BETWEEN_SYNCS
            if sync:
                os.fsync(self._rows.fileno())
            self._write_line({"rows": self.count, "bytes": self._size, "crc": self._crc, "state": state})
            if sync:
                os.fsync(self._progress.fileno())
                self._synced = time.monotonic()

    def finish(self) -> None:
        """Put the whole file under its name. The marks stay until :meth:`forget`."""
        with _writing(self._path):
            self._rows.flush()
            keep_permissions(self._rows, self._path)
            os.fsync(self._rows.fileno())
            self._rows.close()
            if not _is_parquet(self._path):
                move_into_place(rows_path(self._path), self._path)
                return
            with (
                rows_path(self._path).open(encoding="utf-8") as lines,
                open_parquet_records(self._path, self._layout) as write,
            ):
                for line in lines:
                    write(json.loads(line))

    def forget(self) -> None:
        """Remove what only an unfinished run needs, once all its files are under their names."""
        with _writing(self._path):
            self._progress.close()
            progress_path(self._path).unlink(missing_ok=True)
            rows_path(self._path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the rows, which stay where they are."""
        with suppress(OSError):  # on a full disk; what was not committed does not count
            self._rows.close()

    def _append(self, text: str) -> None:
        data = text.encode()
        self._rows.write(data)
        self._size += len(data)
        self._crc = zlib.crc32(data, self._crc)

    def _write_line(self, record: Mapping[str, Any]) -> None:
        self._progress.write(json.dumps(record).encode() + b"\n")
        self._progress.flush()


@contextmanager
def open_journal(
    path: Path, layout: RowLayout, made_by: Mapping[str, Any], *, resume: bool
) -> Iterator[tuple[Journal, Mark | None]]:
    """A journal for the rows of a file, and where an earlier run had come to if it is to go on.

    Args:
        path: the predictions file to be.
        layout: its columns.
        made_by: what the rows are made by, as JSON has it; whoever goes on compares it (:func:`read_unfinished`).
        resume: whether to go on from what is there; else it is dropped.

    Raises:
        OutputFileError: if nothing can be written there, or another run is writing there.
    """
    with _writing(path):
        progress = open_own(progress_path(path), create=True)
    journal = None
    try:
        with _writing(path):
            _lock(path, progress)
            found, end = _read(path, progress) if resume else (None, 0)
            progress.truncate(end)
            progress.seek(end)
            mark = found.mark if found else None
            journal = Journal(path, layout, progress, made_by, mark)
        yield journal, mark
    finally:
        if journal is not None:
            journal.close()
        with suppress(OSError):  # as above
            progress.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputFileError:
        raise
    except OSError as error:
        raise OutputFileError(
            f"{path}: writing stopped ({error.strerror or error}); the rows so far are in {rows_path(path).name}: put"
            " that right and go on with --resume, or choose another place with -o"
        ) from None


def _read(path: Path, stream: IO[bytes]) -> tuple[Unfinished | None, int]:
    """What the progress file tells that the rows bear out, and up to which of its bytes."""
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
    """Whether a file stands under its name, and no rows beside it; a link was put there by no run."""
    return path.is_file() and not path.is_symlink() and not os.path.lexists(rows_path(path))


def _is_parquet(path: Path) -> bool:
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


def _lock(path: Path, stream: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        # Not flock: that lock would live on in worker processes that outlive a killed run for a moment.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise OutputFileError(
            f"{path}: another run is writing it; wait for it, or choose another place with -o"
        ) from None
    except OSError:
        return  # a file system without locks

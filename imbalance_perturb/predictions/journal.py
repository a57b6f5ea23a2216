"""Writes the rows of a run as they come, with marks that prove them whole, so that any cut-off run can be resumed.

The files beside the predictions file, and what they hold, are those of ``progress_file.py``. Every file is closed
before it is renamed or removed, since Windows refuses that for one that is open.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.files.writing import (
    check_output,
    check_writable,
    keep_permissions,
    move_into_place,
    open_own,
    refusing,
    sync_folder,
)
from imbalance_perturb.predictions.progress_file import (
    PROGRESS_SCHEMA,
    Mark,
    ahead_path,
    is_parquet,
    progress_path,
    read_marks,
    rows_path,
)
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_file import run_path
from imbalance_perturb.predictions.writing import open_parquet_records, text_rows

#: A power cut costs at most the rows of so many seconds; waiting for the disk at every batch would cost more.
_SECONDS_BETWEEN_SYNCS = 5.0


def check_place(path: Path) -> None:
    """Refuse a predictions file that a run could not write, with the files beside it, before any work is done.

    Raises:
        OutputFileError: naming the file and the reason.
    """
    check_output(path)
    check_writable(run_path(path))
    for beside in (rows_path(path), progress_path(path), ahead_path(path)):
        with refusing(beside), suppress(FileNotFoundError):
            open_own(beside).close()


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
            ahead_path(path).unlink(missing_ok=True)  # of rows that are dropped
            self._append(self._text.header)
            self._write_line({"schema": PROGRESS_SCHEMA, "made_by": made_by})

    def write(self, rows: Sequence[PredictionRow]) -> None:
        """Append rows; they count from the next :meth:`commit` on."""
        self.append("".join(map(self._text.line, rows)), len(rows))

    def append(self, text: str, count: int) -> None:
        """Append ``count`` rows that are text in the file's format already, as :meth:`write` does."""
        with _writing(self._path):
            self._append(text)
        self.count += count

    def commit(self, state: Mapping[str, Any]) -> None:
        """Put a mark: the rows so far are whole, and a run resumed from here starts in this state."""
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
            if not is_parquet(self._path):
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
            for path in (progress_path(self._path), rows_path(self._path), ahead_path(self._path)):
                path.unlink(missing_ok=True)

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
    """Open a journal for the rows of a file; yields it and, of a run that is resumed, the last mark.

    Args:
        path: the predictions file to be.
        layout: its columns.
        made_by: what the rows are made by, as JSON has it; resuming compares it (see ``read_unfinished``).
        resume: whether to keep the rows that are there; else they are dropped.

    Raises:
        OutputFileError: if nothing can be written there, or another run is writing there.
    """
    with _writing(path):
        progress = open_own(progress_path(path), create=True)
    journal = None
    try:
        with _writing(path):
            _lock(path, progress)
            found, end = read_marks(path, progress) if resume else (None, 0)
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

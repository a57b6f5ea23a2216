"""Writing results: never a half-written file under a final name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.parquet import has_pyarrow

#: Suffixes that a predictions file may have.
FORMATS = (".csv", ".jsonl", ".parquet")

STDOUT = "-"


def partial_path(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + ".partial")


def run_path(path: Path) -> Path:
    """The run file beside a predictions file: ``predictions.csv`` -> ``predictions.run.json``."""
    return path.with_suffix(".run.json")


@contextmanager
def open_whole(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file, UTF-8 text or bytes, that appears under its name only when the block ends without an error.

    Until then, and for good after an error, it is at :func:`partial_path`.

    Raises:
        OutputFileError: if it cannot be written.
    """
    partial = partial_path(path)
    try:
        # A file name that is not UTF-8 must not end the run: in JSON its bytes are escaped, and read back the same.
        text = {} if binary else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        stream: IO[Any] = partial.open("wb" if binary else "w", **text)  # type: ignore[call-overload]
    except OSError as error:
        raise OutputFileError(f"{path}: cannot be written ({error.strerror}); choose another place with -o") from None
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        if isinstance(error, OutputFileError):
            raise
        raise OutputFileError(
            f"{path}: writing stopped ({error.strerror or error}); what was written is in {partial}"
        ) from None


def write_json(path: Path, data: object) -> None:
    """Write JSON, whole or not at all."""
    with open_whole(path) as stream:
        json.dump(data, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def check_output(path: Path | None, suffixes: Sequence[str] = FORMATS) -> None:
    """Refuse a file that could not be written, before any work is done; ``None`` is no file.

    Raises:
        OutputFileError: if its suffix is none of ``suffixes``, its folder is not there, or it is to be Parquet and
            pyarrow is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        stdout = f", or {STDOUT} for stdout" if suffixes is FORMATS else ""
        raise OutputFileError(f"{path}: the suffix names no format; use {_alternatives(suffixes)}{stdout}")
    if path.suffix.lower() == ".parquet" and not has_pyarrow():
        raise OutputFileError(f"{path}: needs pyarrow; pip install 'imbalance-perturb[parquet]', or use .csv or .jsonl")
    if not path.parent.is_dir():
        raise OutputFileError(f"{path}: there is no folder {path.parent}; make it first or choose another")


def _alternatives(suffixes: Sequence[str]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

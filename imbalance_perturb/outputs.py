"""Writing results: rows as they come, and never a half-written file under a final name."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.results import PredictionRow

#: Columns of every predictions file, in order; class probabilities follow where asked for.
COLUMNS = ("image", "base_pred", "base_confidence", "pred", "confidence", "changed", "error")

#: Suffixes that a predictions file may have.
FORMATS = (".csv", ".jsonl")

STDOUT = "-"


def partial_path(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + ".partial")


def run_path(path: Path) -> Path:
    """The run file beside a predictions file: ``predictions.csv`` -> ``predictions.run.json``."""
    return path.with_suffix(".run.json")


@contextmanager
def open_whole(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name only when the block ends without an error.

    Until then, and for good after an error, it is at :func:`partial_path`.

    Raises:
        OutputFileError: if it cannot be written.
    """
    partial = partial_path(path)
    try:
        # A file name that is not UTF-8 must not end the run: it is written with its bytes escaped.
        stream = partial.open("w", encoding="utf-8", errors="backslashreplace", newline="")
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


@contextmanager
def open_rows(target: str, classes: Sequence[str], probabilities: bool) -> Iterator[Callable[[PredictionRow], None]]:
    """A function that writes one row to ``target``: a ``.csv`` or ``.jsonl`` path, or ``-`` for CSV on stdout.

    Raises:
        OutputFileError: if the suffix is not one of :data:`FORMATS` or the file cannot be written.
    """
    if target == STDOUT:
        with _stdout() as stream:
            yield _csv_writer(stream, classes, probabilities)
            stream.flush()
        return
    path = Path(target)
    check_output(path)
    with open_whole(path) as stream:
        make_writer = _jsonl_writer if path.suffix.lower() == ".jsonl" else _csv_writer
        yield make_writer(stream, classes, probabilities)


def check_output(path: Path | None, suffixes: Sequence[str] = FORMATS) -> None:
    """Refuse a file that could not be written, before any work is done; ``None`` is no file.

    Raises:
        OutputFileError: if its suffix is none of ``suffixes``, or its folder is not there.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        stdout = f", or {STDOUT} for stdout" if suffixes is FORMATS else ""
        raise OutputFileError(f"{path}: the suffix names no format; use {' or '.join(suffixes)}{stdout}")
    if not path.parent.is_dir():
        raise OutputFileError(f"{path}: there is no folder {path.parent}; make it first or choose another")


@contextmanager
def _stdout() -> Iterator[IO[str]]:
    # A stream of our own: the console's may translate newlines or lack characters.
    with open(sys.stdout.fileno(), "w", encoding="utf-8", errors="backslashreplace", newline="", closefd=False) as s:
        yield s


def _csv_writer(stream: IO[str], classes: Sequence[str], probabilities: bool) -> Callable[[PredictionRow], None]:
    writer = csv.writer(stream, lineterminator="\n")
    columns = [*COLUMNS]
    if probabilities:
        columns += [f"p_{name}" for name in classes] + [f"base_p_{name}" for name in classes]
    writer.writerow(columns)

    def write(row: PredictionRow) -> None:
        if row.error is not None:
            blank = [""] * (2 * len(classes) if probabilities else 0)
            writer.writerow([row.image, "", "", "", "", "", row.error, *blank])
            return
        cells = [row.image, row.base_pred, _digits(row.base_confidence), row.pred, _digits(row.confidence)]
        writer.writerow([*cells, int(row.changed), "", *map(_digits, (*row.probs, *row.base_probs))])

    return write


def _jsonl_writer(stream: IO[str], classes: Sequence[str], probabilities: bool) -> Callable[[PredictionRow], None]:
    def write(row: PredictionRow) -> None:
        json.dump(_jsonl_record(row, classes if probabilities else ()), stream, ensure_ascii=False)
        stream.write("\n")

    return write


def _jsonl_record(row: PredictionRow, classes: Sequence[str]) -> dict[str, Any]:
    if row.error is not None:
        return {**dict.fromkeys(COLUMNS), "image": row.image, "error": row.error}
    record: dict[str, Any] = {
        "image": row.image,
        "base_pred": row.base_pred,
        "base_confidence": row.base_confidence,
        "pred": row.pred,
        "confidence": row.confidence,
        "changed": row.changed,
        "error": None,
    }
    record |= {f"p_{name}": p for name, p in zip(classes, row.probs, strict=True)}
    record |= {f"base_p_{name}": p for name, p in zip(classes, row.base_probs, strict=True)}
    return record


def _digits(value: float | None) -> str:
    # Eight significant digits tell any two float32 apart that a reader could care about.
    return "" if value is None else format(value, ".8g")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Writing results: rows as they come, and never a half-written file under a final name."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from imbalance_perturb.cells import csv_line, encode_path, encode_text, encode_unicode
from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.parquet import has_pyarrow, open_parquet
from imbalance_perturb.results import PredictionRow

#: Columns of every predictions file, in order; class probabilities follow where asked for.
COLUMNS = ("image", "base_pred", "base_confidence", "pred", "confidence", "changed", "error")

#: The column after them where the correction was left out for some images: whether it was run.
CORRECTED = "corrected"

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


@contextmanager
def open_rows(
    target: str, classes: Sequence[str], probabilities: bool, *, corrected: bool = False
) -> Iterator[Callable[[PredictionRow], None]]:
    """A function that writes one row to ``target``: a ``.csv``, ``.jsonl`` or ``.parquet`` path, or ``-`` for CSV.

    In CSV no cell is a formula to a spreadsheet: :mod:`imbalance_perturb.cells` says how names are written and read.
    With ``corrected``, rows say whether the correction was run on the image, in a column after ``error``.

    Raises:
        OutputFileError: if the suffix is not one of :data:`FORMATS` or the file cannot be written.
    """
    if target == STDOUT:
        with _stdout() as stream:
            yield _csv_writer(stream, classes, probabilities, corrected)
            stream.flush()
        return
    path = Path(target)
    check_output(path)
    if path.suffix.lower() == ".parquet":
        columns = _typed_columns(classes, probabilities, corrected)
        with open_whole(path, binary=True) as file, open_parquet(file, columns) as write:
            yield lambda row: write(_record(row, classes if probabilities else (), corrected))
        return
    with open_whole(path) as stream:
        make_writer = _jsonl_writer if path.suffix.lower() == ".jsonl" else _csv_writer
        yield make_writer(stream, classes, probabilities, corrected)


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


@contextmanager
def _stdout() -> Iterator[IO[str]]:
    # A stream of our own: the console's may translate newlines or lack characters.
    with open(sys.stdout.fileno(), "w", encoding="utf-8", errors="backslashreplace", newline="", closefd=False) as s:
        yield s


def _alternatives(suffixes: Sequence[str]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last


def _typed_columns(classes: Sequence[str], probabilities: bool, corrected: bool) -> list[tuple[str, type]]:
    types = dict.fromkeys(COLUMNS, str) | {"base_confidence": float, "confidence": float, "changed": bool}
    columns: list[tuple[str, type]] = [*types.items(), *([(CORRECTED, bool)] if corrected else [])]
    if probabilities:
        columns += [(f"{kind}{name}", float) for kind in ("p_", "base_p_") for name in classes]
    return columns


def _csv_writer(
    stream: IO[str], classes: Sequence[str], probabilities: bool, corrected: bool
) -> Callable[[PredictionRow], None]:
    columns = [encode_unicode(name) for name, _ in _typed_columns(classes, probabilities, corrected)]
    stream.write(csv_line(columns))

    def write(row: PredictionRow) -> None:
        image = encode_path(row.image)
        if row.error is not None:
            blank = [""] * (len(columns) - len(COLUMNS))
            stream.write(csv_line([image, "", "", "", "", "", encode_text(row.error), *blank]))
            return
        cells = [encode_text(row.base_pred or ""), _digits(row.base_confidence)]
        cells += [encode_text(row.pred or ""), _digits(row.confidence), str(int(row.changed)), ""]
        mark = [str(int(row.corrected))] if corrected else []
        stream.write(csv_line([image, *cells, *mark, *map(_digits, (*row.probs, *row.base_probs))]))

    return write


def _jsonl_writer(
    stream: IO[str], classes: Sequence[str], probabilities: bool, corrected: bool
) -> Callable[[PredictionRow], None]:
    names = classes if probabilities else ()

    def write(row: PredictionRow) -> None:
        # Probabilities of a row without prediction are left out, not null.
        record = _record(row, () if row.error is not None else names, corrected)
        json.dump(record, stream, ensure_ascii=False)
        stream.write("\n")

    return write


def _record(row: PredictionRow, classes: Sequence[str], corrected: bool) -> dict[str, Any]:
    failed = row.error is not None
    record: dict[str, Any] = {
        "image": row.image,
        "base_pred": row.base_pred,
        "base_confidence": row.base_confidence,
        "pred": row.pred,
        "confidence": row.confidence,
        "changed": None if failed else row.changed,
        "error": row.error,
    }
    if corrected:
        record[CORRECTED] = None if failed else row.corrected
    nothing = [None] * len(classes)
    record |= {f"p_{name}": p for name, p in zip(classes, nothing if failed else row.probs, strict=True)}
    record |= {f"base_p_{name}": p for name, p in zip(classes, nothing if failed else row.base_probs, strict=True)}
    return record


def _digits(value: float | None) -> str:
    # Eight significant digits tell any two float32 apart that a reader could care about.
    return "" if value is None else format(value, ".8g")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

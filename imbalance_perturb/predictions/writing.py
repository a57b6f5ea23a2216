"""Prediction rows as text or Parquet: the columns, and how each format writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.files.csv_tables import csv_line, encode_path, encode_text, encode_unicode
from imbalance_perturb.files.parquet import open_parquet
from imbalance_perturb.files.writing import STDOUT, check_output, json_text, open_whole
from imbalance_perturb.predictions.rows import COLUMNS, PredictionRow, RowLayout

_BOM = "\ufeff"

RowWriter = Callable[[PredictionRow], None]


class TextRows(NamedTuple):
    """A text format: what the file starts with, and the line of a row."""

    header: str
    line: Callable[[PredictionRow], str]


def check_bom(target: str | Path) -> None:
    """Refuse a byte-order mark at the start of a file (or stdout, ``-``) that is no CSV.

    Raises:
        SettingsError: saying so.
    """
    if str(target) != STDOUT and Path(target).suffix.lower() != ".csv":
        raise SettingsError(f"{target}: --bom is for CSV alone, which Excel opens; leave it out, or write .csv")


def csv_rows(layout: RowLayout) -> TextRows:
    """Make CSV in which no cell is a formula to a spreadsheet: ``files/csv_tables.py`` says how names are written."""
    columns = [encode_unicode(name) for name, _ in layout.columns()]

    def line(row: PredictionRow) -> str:
        image = encode_path(row.image)
        if row.error is not None:
            blank = [""] * (len(columns) - len(COLUMNS))
            return csv_line([image, "", "", "", "", "", encode_text(row.error), *blank])
        cells = [encode_text(row.base_pred or ""), _digits(row.base_confidence)]
        cells += [encode_text(row.pred or ""), _digits(row.confidence), str(int(row.changed)), ""]
        more = [str(int(row.corrected))] if layout.corrected else []
        more += [_digits(row.margin)] if layout.margin else []
        probabilities = (*row.probs, *row.base_probs) if layout.classes else ()
        return csv_line([image, *cells, *more, *map(_digits, probabilities)])

    return TextRows((_BOM if layout.bom else "") + csv_line(columns), line)


def json_rows(layout: RowLayout) -> TextRows:
    """Make JSON Lines: one object a row, ``null`` where there is no value."""
    return TextRows("", lambda row: json_text(layout.record(row)) + "\n")


def text_rows(suffix: str, layout: RowLayout) -> TextRows:
    """Choose the text format of a suffix; of ``.parquet`` the JSON Lines that hold its rows until the file is whole."""
    return csv_rows(layout) if suffix.lower() == ".csv" else json_rows(layout)


@contextmanager
def open_rows(target: str, layout: RowLayout) -> Iterator[RowWriter]:
    """Open ``target``, a ``.csv``, ``.jsonl`` or ``.parquet`` path or ``-`` for CSV; yields a function to write a row.

    Raises:
        OutputFileError: if the suffix is not one of :data:`FORMATS` or the file cannot be written.
    """
    if target == STDOUT:
        with open_stdout() as stream:
            yield _write_text(stream, csv_rows(layout))
        return
    path = Path(target)
    check_output(path)
    if path.suffix.lower() == ".parquet":
        with open_parquet_records(path, layout) as write:
            yield lambda row: write(layout.record(row))
        return
    with open_whole(path) as stream:
        yield _write_text(stream, text_rows(path.suffix, layout))


@contextmanager
def open_parquet_records(path: Path, layout: RowLayout) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a Parquet file and yield a function that writes one record of :meth:`RowLayout.record`."""
    nothing = {name: None for name, _ in layout.columns()}
    with open_whole(path, binary=True) as file, open_parquet(file, layout.columns()) as write:
        yield lambda record: write(nothing | dict(record))


def _write_text(stream: IO[str], rows: TextRows) -> RowWriter:
    stream.write(rows.header)

    def write(row: PredictionRow) -> None:
        stream.write(rows.line(row))

    return write


@contextmanager
def open_stdout() -> Iterator[IO[str]]:
    """Open stdout for text as it would stand in a file: the console's own stream may translate or lack characters."""
    with open(sys.stdout.fileno(), "w", encoding="utf-8", newline="", closefd=False) as stream:
        yield stream
        stream.flush()


def _digits(value: float | None) -> str:
    # Eight significant digits distinguish any two float32 that differ by more than rounding.
    return "" if value is None else format(value, ".8g")

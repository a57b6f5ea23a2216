"""The rows of a predictions file, of whatever format, as they come: memory does not grow with their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from imbalance_perturb.cells import decode_path, decode_text, decode_unicode
from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.parquet import has_pyarrow
from imbalance_perturb.results import PredictionRow
from imbalance_perturb.row_formats import CORRECTED, RowLayout
from imbalance_perturb.tables import first_few, iter_table

_COLUMNS = ("image", "base_pred", "pred", "error")

#: Cells of Parquet that are Python objects at once.
_CELLS = 1 << 16

_FLAGS = {"1": True, "0": False, "True": True, "False": False}

Records = Iterator[tuple[int, dict[str, str]]]


def iter_records(path: Path) -> Records:
    """Rows as (line or row number, {column: text}) with names as they are; empty text where there is no value.

    Raises:
        PredictionsError: if the file cannot be read or lacks a column.
    """
    readers: dict[str, Callable[[Path], Records]] = {".jsonl": _iter_json_lines, ".parquet": _iter_parquet}
    return readers.get(path.suffix.lower(), _iter_csv)(path)


def iter_images(path: Path) -> Iterator[str]:
    """The image of each row, in the order of the file.

    Raises:
        PredictionsError: as in :func:`iter_records`.
    """
    records = _iter_parquet(path, only=("image",)) if path.suffix.lower() == ".parquet" else iter_records(path)
    return (record["image"] for _, record in records)


def iter_rows(path: Path, layout: RowLayout) -> Iterator[PredictionRow]:
    """The rows that were written to a file; written again in its format they are the same bytes.

    Args:
        path: the file.
        layout: its columns.

    Raises:
        PredictionsError: as in :func:`iter_records`, or if a row has no value where the layout wants one.
    """
    probs, base_probs = ([f"{kind}{name}" for name in layout.classes] for kind in ("p_", "base_p_"))
    for line, record in iter_records(path):
        if record["error"]:
            yield PredictionRow(record["image"], error=record["error"])
            continue
        cells = _Cells(path, line, record)
        yield PredictionRow(
            image=cells.text("image"),
            base_pred=cells.text("base_pred"),
            base_confidence=cells.number("base_confidence"),
            pred=cells.text("pred"),
            confidence=cells.number("confidence"),
            probs=tuple(map(cells.number, probs)),
            base_probs=tuple(map(cells.number, base_probs)),
            corrected=cells.flag(CORRECTED) if layout.corrected else True,
        )


class _Cells:
    """The cells of a row, each as what it should be."""

    def __init__(self, path: Path, line: int, record: Mapping[str, str]) -> None:
        self._path, self._line, self._record = path, line, record

    def text(self, column: str) -> str:
        return self._record.get(column) or self._refuse(column, "a name")

    def number(self, column: str) -> float:
        try:
            return float(self._record[column])
        except (KeyError, ValueError):
            return float(self._refuse(column, "a number"))

    def flag(self, column: str) -> bool:
        found = _FLAGS.get(self._record.get(column, ""))
        return bool(self._refuse(column, "1 or 0")) if found is None else found

    def _refuse(self, column: str, expected: str) -> str:
        raise PredictionsError(
            f"{self._path}, line {self._line}: {column} is {self._record.get(column)!r}; expected {expected}"
        )


def _iter_csv(path: Path) -> Records:
    """Rows with names and texts as they were before they were made harmless to spreadsheets."""
    texts = {"image": decode_path, "base_pred": decode_text, "pred": decode_text, "error": decode_text}
    names: dict[str, str] = {}
    for line, row in iter_table(path, _COLUMNS, PredictionsError):
        names = names or {key: decode_unicode(key) for key in row}
        record = {names[key]: value for key, value in row.items()}
        yield line, record | {key: decode(row[key]) for key, decode in texts.items()}


def _iter_parquet(path: Path, only: tuple[str, ...] | None = None) -> Records:
    if not has_pyarrow():
        raise PredictionsError(f"{path}: reading it needs pyarrow; pip install 'imbalance-perturb[parquet]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow.names
            missing = [name for name in _COLUMNS if name not in found]
            if missing:
                raise PredictionsError(f"{path}: has no column {first_few(missing)}; expected a file of predict")
            names = {name: decode_unicode(name) for name in found}
            rows = max(1, _CELLS // len(only or found))
            batches = file.iter_batches(batch_size=rows, columns=only)
            records = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, record in enumerate(records, start=1):
                yield number, {names[key]: _text(value) for key, value in record.items()}
    except (OSError, pa.ArrowException) as error:
        raise PredictionsError(f"{path}: is not a Parquet file that can be read ({error})") from None


def _text(value: object) -> str:
    return "" if value is None else decode_unicode(value) if isinstance(value, str) else str(value)


def _iter_json_lines(path: Path) -> Records:
    try:
        with path.open(encoding="utf-8") as stream:
            for line, text in enumerate(stream, start=1):
                if not text.strip():
                    continue
                record = json.loads(text)
                missing = [name for name in _COLUMNS if not isinstance(record, dict) or name not in record]
                if missing:
                    raise PredictionsError(
                        f"{path}, line {line}: has no {first_few(missing)}; expected a row of predict"
                    )
                yield line, {key: "" if value is None else str(value) for key, value in record.items()}
    except json.JSONDecodeError as error:
        raise PredictionsError(f"{path}, line {line}: is not JSON ({error.msg}); expected one object a line") from None
    except UnicodeDecodeError:
        raise PredictionsError(f"{path}: is not UTF-8 text; expected one JSON object a line") from None
    except OSError as error:
        raise PredictionsError(f"{path}: cannot be read ({error.strerror})") from None

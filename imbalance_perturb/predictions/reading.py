"""The rows of a predictions file, of whatever format, as they come: memory does not grow with their number."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from imbalance_perturb.errors import PredictionsError, brief, first_few
from imbalance_perturb.files.csv_tables import decode_path, decode_text, decode_unicode, iter_table
from imbalance_perturb.files.parquet import has_pyarrow
from imbalance_perturb.files.strict_json import parse_json
from imbalance_perturb.predictions.rows import COLUMNS, CORRECTED, MARGIN, PredictionRow, RowLayout

_COLUMNS = ("image", "base_pred", "pred", "error")

_KNOWN = (*COLUMNS, CORRECTED, MARGIN)

#: Cells of Parquet that are Python objects at once.
_CELLS = 1 << 16

_FLAGS = {"1": True, "0": False}


class Record:
    """A row as it was read: each cell is asked for as what it should be, and refused by file and line if it is not.

    Args:
        path: the file, for messages.
        line: the line, or in Parquet the row, from 1.
        cells: {column: value}, names as they are. Of CSV, which knows text alone, values are texts.
    """

    def __init__(self, path: Path, line: int, cells: Mapping[str, Any]) -> None:
        self._path, self.line, self._cells = path, line, cells
        self._is_text = path.suffix.lower() not in _READERS

    def __contains__(self, column: str) -> bool:
        return column in self._cells

    def columns(self) -> Iterator[str]:
        """The names of its columns, in order."""
        return iter(self._cells)

    def is_empty(self, column: str) -> bool:
        """Whether there is no value, or an empty text."""
        return self._cells.get(column) in (None, "")

    @property
    def error(self) -> str | None:
        """Why there is no prediction, ``None`` where there is one."""
        value = self._cells.get("error")
        if value is not None and not isinstance(value, str):
            self._refuse("error", "text")
        return value or None

    def text(self, column: str) -> str:
        """A name, never empty."""
        value = self._cells.get(column)
        return value if isinstance(value, str) and value else self._refuse(column, "a name")

    def probability(self, column: str) -> float:
        """A number from 0 to 1."""
        value = self._cells.get(column)
        if self._is_text:
            try:
                value = float(value)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                self._refuse(column, "a probability from 0 to 1")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self._refuse(column, "a probability from 0 to 1")
        return float(value)

    def probabilities(self, columns: Sequence[str]) -> list[float]:
        """Numbers from 0 to 1, one for each column."""
        cells = [self._cells.get(column) for column in columns]
        kind = str if self._is_text else float
        # Of thousands of classes all at once; one at a time to say which of them is wrong.
        if all(type(cell) is kind for cell in cells):
            with suppress(ValueError):
                found = list(map(float, cells))  # type: ignore[arg-type]
                if all(0 <= value <= 1 for value in found):
                    return found
        return list(map(self.probability, columns))

    def flag(self, column: str) -> bool:
        """A switch."""
        value = self._cells.get(column)
        found = _FLAGS.get(value) if self._is_text and isinstance(value, str) else value
        return (
            found if isinstance(found, bool) else self._refuse(column, "1 or 0" if self._is_text else "true or false")
        )

    def _refuse(self, column: str, expected: str) -> NoReturn:
        value = self._cells.get(column)
        found = "missing" if value is None else brief(value)
        raise PredictionsError(f"{self._path}, line {self.line}: {column} is {found}; expected {expected}")


Records = Iterator[Record]


def iter_records(path: Path) -> Records:
    """The rows of a file, in its order.

    Raises:
        PredictionsError: if the file cannot be read or lacks a column.
    """
    return _READERS.get(path.suffix.lower(), _iter_csv)(path)


def iter_images(path: Path) -> Iterator[str]:
    """The image of each row, in the order of the file.

    Raises:
        PredictionsError: as in :func:`iter_records`.
    """
    records = _iter_parquet(path, only=("image",)) if path.suffix.lower() == ".parquet" else iter_records(path)
    return (record.text("image") for record in records)


def iter_rows(path: Path, layout: RowLayout) -> Iterator[PredictionRow]:
    """The rows that were written to a file; written again in its format they are the same bytes.

    Args:
        path: the file.
        layout: its columns.

    Raises:
        PredictionsError: as in :func:`iter_records`, or if a row has no value where the layout wants one.
    """
    probs, base_probs = ([f"{kind}{name}" for name in layout.classes] for kind in ("p_", "base_p_"))
    for record in iter_records(path):
        image = record.text("image")
        if record.error is not None:
            yield PredictionRow(image, error=record.error)
            continue
        yield PredictionRow(
            image=image,
            base_pred=record.text("base_pred"),
            base_confidence=record.probability("base_confidence"),
            pred=record.text("pred"),
            confidence=record.probability("confidence"),
            probs=tuple(record.probabilities(probs)),
            base_probs=tuple(record.probabilities(base_probs)),
            corrected=record.flag(CORRECTED) if layout.corrected else True,
            margin=record.probability(MARGIN) if layout.margin else None,
        )


def _iter_csv(path: Path) -> Records:
    """Rows with names and texts as they were before they were made harmless to spreadsheets."""
    texts = {"image": decode_path, "base_pred": decode_text, "pred": decode_text, "error": decode_text}
    names: dict[str, str] = {}
    for line, row in iter_table(path, _COLUMNS, PredictionsError):
        names = names or {key: decode_unicode(key) for key in row}
        record = {names[key]: value for key, value in row.items()}
        yield Record(path, line, record | {key: decode(row[key]) for key, decode in texts.items()})


def _iter_parquet(path: Path, only: tuple[str, ...] | None = None) -> Records:
    if not has_pyarrow():
        raise PredictionsError(f"{path}: reading it needs pyarrow; pip install 'imbalance-perturb[parquet]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not by its name, which pyarrow takes for UTF-8.
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            found = file.schema_arrow.names
            missing = [name for name in _COLUMNS if name not in found]
            if missing:
                raise PredictionsError(f"{path}: has no column {first_few(missing)}; expected a file of predict")
            doubles = [name for name, count in Counter(found).items() if count > 1]
            if doubles:
                raise PredictionsError(f"{path}: has the column {first_few(doubles)} twice; expected a file of predict")
            # What others have added need not be readable as Python's values.
            wanted = only or [name for name in found if name in _KNOWN or name.startswith(("p_", "base_p_"))]
            names = {name: decode_unicode(name) for name in found}
            batches = file.iter_batches(batch_size=max(1, _CELLS // len(wanted)), columns=list(wanted))
            records = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, record in enumerate(records, start=1):
                yield Record(path, number, {names[key]: _decode(value) for key, value in record.items()})
    except PredictionsError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PredictionsError(f"{path}: is not a Parquet file that can be read ({error})") from None


def _decode(value: object) -> object:
    return decode_unicode(value) if isinstance(value, str) else value


def _iter_json_lines(path: Path) -> Records:
    try:
        with path.open("rb") as stream:
            for line, raw in enumerate(stream, start=1):
                raw = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
                if raw.strip():
                    yield _parse_line(path, line, raw)
    except OSError as error:
        raise PredictionsError(f"{path}: cannot be read ({error.strerror})") from None


def _parse_line(path: Path, line: int, raw: bytes) -> Record:
    try:
        cells = parse_json(raw.decode(), "one JSON object a line", PredictionsError)
    except UnicodeDecodeError:
        raise PredictionsError(f"{path}, line {line}: is not UTF-8 text; expected one JSON object a line") from None
    except PredictionsError as error:
        raise PredictionsError(f"{path}, line {line}: {error}") from None
    missing = [name for name in _COLUMNS if not isinstance(cells, dict) or name not in cells]
    if missing:
        raise PredictionsError(f"{path}, line {line}: has no {first_few(missing)}; expected a row of predict")
    return Record(path, line, cells)


#: Formats whose cells have types; any other is CSV, where all are text.
_READERS: dict[str, Callable[[Path], Records]] = {".jsonl": _iter_json_lines, ".parquet": _iter_parquet}

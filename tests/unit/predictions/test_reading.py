"""Rows that are not as predict writes them: every one is refused by file and line, or read as what it says."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.predictions.predicted_classes import load_predictions
from imbalance_perturb.predictions.reading import iter_images, iter_rows
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.writing import open_rows

CLASSES = ("a [b]", "=c")
LAYOUT = RowLayout(CLASSES, corrected=True, margin=True)
ROWS = [
    PredictionRow(f"{index}.png", "=c", 0.75, "a [b]", 0.5, probs=(0.5, 0.5), base_probs=(0.25, 0.75), margin=0.0)
    for index in range(3)
]
COLUMNS = [name for name, _ in LAYOUT.columns()]
GONE = object()

#: What another program, or a person, may have put into a cell.
VALUES = st.one_of(
    st.just(GONE),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["0.5", "nan", "inf", "1", "0", "True", "\ud800", "1e999", 10**400, -0.0, b"\xff", "a [b]", "'=c"]),
    st.lists(st.integers(-9, 9), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(-9, 9), min_size=1, max_size=2),
)


def write(path: Path, row: int, column: str, value: Any) -> None:
    """The rows in the format of the suffix, one cell of one row replaced, or gone."""
    with open_rows(str(path), LAYOUT) as put:
        for each in ROWS:
            put(each)
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        change(records[row], column, repr(value) if isinstance(value, bytes) else value)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".csv":
        with path.open(newline="") as stream:
            table = list(csv.reader(stream))
        if value is GONE:
            del table[row + 1][COLUMNS.index(column)]
        else:
            table[row + 1][COLUMNS.index(column)] = "" if value is None else str(value)
        with path.open("w", newline="", errors="surrogatepass") as stream:
            csv.writer(stream).writerows(table)
    else:
        table = pq.read_table(path)
        if value is GONE:
            pq.write_table(table.drop_columns([column]), path)
            return
        values = table.column(column).to_pylist()
        try:
            array = pa.array([value if index == row else old for index, old in enumerate(values)])
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
            array = pa.array([value] * len(values)) if not isinstance(value, int | str) else pa.array(values)
        index = table.column_names.index(column)
        pq.write_table(table.set_column(index, column, array), path)


def change(record: dict[str, Any], column: str, value: Any) -> None:
    if value is GONE:
        del record[column]
    else:
        record[column] = value


def check(rows: Iterable[PredictionRow]) -> None:
    """Rows with a prediction have names, and probabilities from 0 to 1."""
    for row in rows:
        if row.error is None:
            assert all((row.image, row.base_pred, row.pred))
            values = (row.base_confidence, row.confidence, row.margin, *row.probs, *row.base_probs)
            assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(row=st.integers(0, 2), column=st.sampled_from(COLUMNS), value=VALUES)
@example(row=2, column="p_=c", value=GONE)
@example(row=0, column="p_=c", value=GONE)
@example(row=1, column="base_p_a [b]", value=math.nan)
@example(row=1, column="pred", value=None)
@example(row=1, column="image", value=["a.png"])
@example(row=1, column="confidence", value=10**400)
@example(row=1, column="error", value=5)
def test_any_cell_may_be_anything(tmp_path: Path, suffix: str, row: int, column: str, value: Any) -> None:
    """Whatever stands in one cell, the rows are read as they say or refused in words: nothing else happens."""
    path = tmp_path / f"p{suffix}"
    write(path, row, column, value)
    problems = []
    for read in (
        lambda: load_predictions(path, CLASSES),
        lambda: list(iter_images(path)),
        lambda: check(iter_rows(path, LAYOUT)),
    ):
        try:
            read()
        except PredictionsError as error:
            problems.append(str(error))
    assert all(problem.startswith(str(path)) for problem in problems)


@pytest.mark.parametrize("column", ["p_=c", "base_p_a [b]", "confidence", "pred", "corrected"])
@pytest.mark.parametrize("value", [GONE, None, "0.5", math.nan, True, [1], 3, -1])
def test_a_later_row_is_refused_by_its_line(tmp_path: Path, column: str, value: Any) -> None:
    """A later row of JSON Lines whose cell is missing or of another kind is named by file, line and column."""
    if column == "corrected" and value is True:
        pytest.skip("is what stands there")
    path = tmp_path / "p.jsonl"
    if value is not math.nan:
        write(path, 2, column, value)
    else:
        write(path, 2, column, 0)
        text = path.read_text().splitlines()
        text[2] = json.dumps(json.loads(text[2]) | {column: value})
        path.write_text("\n".join(text))
    if column not in ("confidence", "corrected"):  # of which an evaluation has no use
        with pytest.raises(PredictionsError, match=r"p\.jsonl, line 3: "):
            load_predictions(path, CLASSES)
    if (column, value) != ("pred", "0.5"):  # a name
        with pytest.raises(PredictionsError, match=r"p\.jsonl, line 3: ") as refused:
            list(iter_rows(path, LAYOUT))
        assert column in str(refused.value) or "NaN is not a number" in str(refused.value)


def test_rows_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    """Probabilities from some row on only, a name twice, a class that is none, a number without end: by line."""
    path = tmp_path / "p.jsonl"
    write(path, 0, "pred", "a [b]")
    lines = path.read_text().splitlines()
    bare = {key: value for key, value in json.loads(lines[0]).items() if not key.startswith(("p_", "base_p_"))}
    for wrong, message in (
        ([json.dumps(bare), lines[1]], "line 2: has probabilities, rows before it have none"),
        ([lines[0], lines[1][:-1] + ', "pred": "=c"}'], "line 2: 'pred' stands more than once"),
        ([lines[0], lines[1].replace('"pred": "a [b]"', '"pred": "c"')], "line 2: predicts classes that are none"),
        ([lines[0], lines[1].replace("0.75", "7" * 5000)], "line 2: holds a number that is too long"),
        ([lines[0], "[" * 100_000], "line 2: is nested too deeply"),
    ):
        path.write_text("\n".join(wrong))
        with pytest.raises(PredictionsError, match=r"p\.jsonl, ") as refused:
            load_predictions(path, CLASSES)
        assert message in str(refused.value)
    path.write_bytes(lines[0].encode() + b"\n" + lines[1].encode().replace(b"1.png", b"\xff.png"))
    with pytest.raises(PredictionsError, match="line 2: is not UTF-8 text"):
        load_predictions(path, CLASSES)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_byte_order_mark_is_read_over(tmp_path: Path, suffix: str) -> None:
    """A file that begins with a byte-order mark, by option or by some editor, has the same rows."""
    path = tmp_path / f"p{suffix}"
    write(path, 0, "pred", "a [b]")
    plain = list(iter_rows(path, LAYOUT))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(iter_rows(path, LAYOUT)) == plain == ROWS

"""A predictions file as a pandas DataFrame, and what pandas would make of it by itself."""

from __future__ import annotations

import importlib.util
import re
from array import array
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.errors import PredictionsError, first_few
from imbalance_perturb.files.csv_tables import encode_text
from imbalance_perturb.predictions.reading import Record, iter_records
from imbalance_perturb.predictions.rows import CORRECTED, MARGIN, RowLayout

if TYPE_CHECKING:
    import pandas as pd

_PROBABILITIES = ("p_", "base_p_")

#: What pandas takes for a missing value unless told otherwise.
_MISSING = (
    "#N/A, #N/A N/A, #NA, -1.#IND, -1.#QNAN, -NaN, -nan, 1.#IND, 1.#QNAN, <NA>, N/A, NA, NULL, NaN, None, n/a, nan,"
    " null"
)

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_PLAIN_NUMBER = re.compile("0|-?[1-9][0-9]*")


def read_predictions(path: str | Path) -> pd.DataFrame:
    """The rows of a predictions file, of whatever format, as a DataFrame with its columns and in its order.

    Names are what they were before they were made harmless to spreadsheets, and stay text: a class may be called
    ``NA``, ``None`` or ``1``. Confidences, margins and probabilities are floats, ``changed`` and ``corrected``
    pandas' nullable ``boolean``. Where there is no prediction, its columns are missing (``isna``), and ``error``
    elsewhere.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.parquet`` as ``predict`` writes it; columns that others have added are left
            out.

    Raises:
        PredictionsError: if the file cannot be read, lacks a column, or a value is not what its column says; or
            pandas is not installed.
    """
    path = Path(path)
    if importlib.util.find_spec("pandas") is None:
        raise PredictionsError(f"{path}: reading it as a DataFrame needs pandas; pip install pandas")
    import pandas as pd

    if not path.is_file():
        raise PredictionsError(f"{path}: no such file; imbperturb predict makes it")
    kinds: dict[str, type] = {}
    columns: dict[str, list[object] | array[float]] = {}
    broken = True
    for number, record in enumerate(iter_records(path)):
        if broken:  # of JSON Lines a failed row lacks the probabilities
            kinds = kinds or dict(RowLayout(corrected=CORRECTED in record, margin=MARGIN in record).columns())
            kinds |= {name: float for name in record.columns() if name.startswith(_PROBABILITIES)}
            for name in kinds.keys() - columns.keys():
                columns[name] = array("d", [nan] * number) if kinds[name] is float else [None] * number
        broken = broken and record.error is not None
        numbers = [name for name, kind in kinds.items() if kind is float]
        found = record.probabilities(numbers) if record.error is None else [nan] * len(numbers)
        for name, value in zip(numbers, found, strict=True):
            columns[name].append(value)
        for name, kind in kinds.items():
            if kind is not float:
                columns[name].append(_value(record, name, kind))  # type: ignore[arg-type]
    kinds = kinds or dict(RowLayout().columns())
    types = {str: object, float: "float64", bool: "boolean"}
    return pd.DataFrame({name: pd.Series(columns.get(name, []), dtype=types[kind]) for name, kind in kinds.items()})


def pandas_notes(classes: Sequence[str], suffix: str) -> tuple[str, ...]:
    """Say in a line which names of classes ``pandas.read_csv`` makes something else of, and how it does not.

    Args:
        classes: the names of all classes.
        suffix: of the predictions file; only CSV leaves it to the reader what is text.
    """
    if suffix.lower() != ".csv":
        return ()
    missing_words = set(_MISSING.split(", "))
    missing = [name for name in classes if encode_text(name) in missing_words]
    switches = [name for name in classes if name.casefold() in ("true", "false")]
    numbers = []
    if all(map(_NUMBER.fullmatch, classes)):
        numbers = [name for name in classes if not _PLAIN_NUMBER.fullmatch(name)]
    kinds = {"no value": missing, "true or false": switches, "another number": numbers}
    taken = "; ".join(f"{first_few(names)}: {what}" for what, names in kinds.items() if names)
    if not taken:
        return ()
    return (
        f"pandas.read_csv takes classes for something else ({taken}): read the file by ip.read_predictions, or with"
        ' keep_default_na=False, na_values=[""], dtype={"base_pred": str, "pred": str}',
    )


def _value(record: Record, name: str, kind: type) -> str | bool | None:
    if name == "error":
        return record.error
    if record.error is not None and name != "image":
        return None
    return record.flag(name) if kind is bool else record.text(name)

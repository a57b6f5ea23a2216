"""A predictions file as a pandas DataFrame, for whoever goes on with it in Python."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.predictions.reading import Record, iter_records
from imbalance_perturb.predictions.rows import CORRECTED, RowLayout

if TYPE_CHECKING:
    import pandas as pd

_PROBABILITIES = ("p_", "base_p_")


def read_predictions(path: str | Path) -> pd.DataFrame:
    """The rows of a predictions file, of whatever format, as a DataFrame with its columns and in its order.

    Names are what they were before they were made harmless to spreadsheets, and stay text: a class may be called
    ``NA``, ``None`` or ``1``. Confidences and probabilities are floats, ``changed`` and ``corrected`` pandas' nullable
    ``boolean``. Where there is no prediction, its columns are missing (``isna``), and ``error`` elsewhere.

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
    rows: list[dict[str, str | float | bool | None]] = []
    columns: dict[str, type] = {}
    for record in iter_records(path):
        columns = columns or dict(RowLayout(corrected=CORRECTED in record).columns())
        if all(row["error"] for row in rows[-1:]):  # of JSON Lines a failed row lacks the probabilities
            columns |= {name: float for name in record.columns() if name.startswith(_PROBABILITIES)}
        rows.append({name: _value(record, name, kind) for name, kind in columns.items()})
    columns = columns or dict(RowLayout().columns())
    types = {str: object, float: "float64", bool: "boolean"}
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in rows], dtype=types[kind]) for name, kind in columns.items()}
    )


def _value(record: Record, name: str, kind: type) -> str | float | bool | None:
    if name == "error":
        return record.error
    if record.error is not None and name != "image":
        return None
    if kind is str:
        return record.text(name)
    return record.flag(name) if kind is bool else record.probability(name)

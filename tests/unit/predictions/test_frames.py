from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.files.csv_tables import encode_text
from imbalance_perturb.predictions.frames import pandas_notes, read_predictions
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.writing import open_rows

NAMES = ("NA", "None", "null", "1", "=x", "nan", "True", "01", "N/A", "-1")

ROWS = [
    PredictionRow("-a.png", error="is broken"),
    *(
        PredictionRow(image, name, 0.5, "NA", 0.25, None, (0.25, 0.75, *[0.0] * 8), (0.5, 0.5, *[0.0] * 8), margin=0.5)
        for image, name in zip(("NA", "1", "True", *map("{}.png".format, range(7))), NAMES, strict=True)
    ),
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("layout", [RowLayout(), RowLayout(NAMES, corrected=True, margin=True)])
def test_rows_come_back_as_they_were_predicted(suffix: str, layout: RowLayout, tmp_path: Path) -> None:
    """Names such as NA stay names, numbers are numbers, what is missing is missing, in every format."""
    path = tmp_path / f"predictions{suffix}"
    with open_rows(str(path), layout) as write:
        for row in ROWS:
            write(row)
    frame = read_predictions(path)
    assert list(frame) == [name for name, _ in layout.columns()]
    assert list(frame["image"]) == [row.image for row in ROWS]
    good = frame[frame["error"].isna()]
    assert list(good["base_pred"]) == list(NAMES)
    assert list(good["pred"] == "NA") == [True] * 10
    assert {type(value) for column in ("image", "base_pred", "pred") for value in good[column]} == {str}
    assert frame.dtypes[["base_confidence", "confidence", "changed"]].tolist() == ["float64", "float64", "boolean"]
    assert list(good["changed"]) == [name != "NA" for name in NAMES]
    assert frame.loc[0, "error"] == "is broken"
    assert frame.loc[0].drop(["image", "error"]).isna().all()
    assert list(good["base_confidence"]) == [0.5] * 10
    if layout.classes:
        assert list(good["p_None"]) == [0.75] * 10
        assert list(good["base_p_=x"]) == [0.0] * 10
        assert good["corrected"].all()
        assert list(good["margin"]) == [0.5] * 10


def test_a_wrong_value_is_named_by_its_line(tmp_path: Path) -> None:
    """As everywhere that predictions are read."""
    path = tmp_path / "predictions.csv"
    path.write_text("image,base_pred,base_confidence,pred,confidence,changed,error\na.png,a,2,a,0.5,0,\n")
    with pytest.raises(PredictionsError, match="line 2: base_confidence is '2'; expected a probability"):
        read_predictions(path)
    with pytest.raises(PredictionsError, match="no such file"):
        read_predictions(tmp_path / "nowhere.csv")


def test_pandas_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency; the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PredictionsError, match="pip install pandas"):
        read_predictions(tmp_path / "predictions.csv")


def test_columns_that_begin_after_a_failed_row(tmp_path: Path) -> None:
    """JSON Lines of failed rows lack the probabilities: they are missing there, wherever these rows stand."""
    path = tmp_path / "predictions.jsonl"
    with open_rows(str(path), RowLayout(NAMES)) as write:
        for row in (ROWS[0], replace(ROWS[0], image="b.png"), *ROWS[1:], replace(ROWS[0], image="c.png")):
            write(row)
    frame = read_predictions(path)
    assert frame["p_NA"].isna().tolist() == [True, True, *[False] * 10, True]
    assert frame["p_NA"].dtype == "float64"


def test_the_note_names_what_pandas_takes_for_something_else(tmp_path: Path) -> None:
    """All that pandas has for missing is named, and the way that is named gives the names back."""
    from pandas._libs.parsers import STR_NA_VALUES

    names = sorted({*STR_NA_VALUES, "True", "nv"} - {""})
    path = tmp_path / "predictions.csv"
    with open_rows(str(path), RowLayout()) as write:
        for name in names:
            write(PredictionRow(f"{name}.png", name, 0.5, name, 0.5))
    taken = {name for name, found in zip(names, pd.read_csv(path)["pred"], strict=True) if found != name}
    spelled = {name for name in names if encode_text(name) != name}  # has ' before it in CSV
    assert {name for name in names if pandas_notes([name, "nv"], ".csv")} - {"True"} == taken - spelled
    (note,) = pandas_notes(["None", "True", "nv"], ".csv")
    assert note.startswith("pandas.read_csv takes classes for something else (None: no value; True: true or false): ")
    assert "ip.read_predictions" in note
    assert "\n" not in note
    types = {"base_pred": str, "pred": str}
    again = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=types)
    assert [name.removeprefix("'") for name in again["pred"]] == names
    assert list(read_predictions(path)["pred"]) == names


@pytest.mark.parametrize(
    ("names", "suffix", "said"),
    [
        (("nv", "mel"), ".csv", ""),
        (("0", "1", "10"), ".csv", ""),
        (("01", "02", "10"), ".csv", "(01, 02: another number)"),
        (("01", "nv"), ".csv", ""),
        (("1.0", "2.0"), ".csv", "(1.0, 2.0: another number)"),
        (("NA", "b"), ".csv", "(NA: no value)"),
        (("NA", "b"), ".parquet", ""),
        (("NA", "b"), ".jsonl", ""),
        (("true", "FALSE"), ".csv", "(true, FALSE: true or false)"),
    ],
)
def test_usual_names_need_no_note(names: tuple[str, ...], suffix: str, said: str) -> None:
    """Formats with types and names that stay what they are have no note."""
    notes = pandas_notes(names, suffix)
    assert len(notes) == bool(said)
    assert said in "".join(notes)

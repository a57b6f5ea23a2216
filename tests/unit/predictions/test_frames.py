from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.predictions.frames import read_predictions
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.writing import open_rows

NAMES = ("NA", "None", "null", "1", "=x")

ROWS = [
    PredictionRow("-a.png", error="is broken"),
    *(
        PredictionRow(
            f"{index}.png", name, 0.5, "NA", 0.25, None, (0.25, 0.75, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0, 0.0)
        )
        for index, name in enumerate(NAMES)
    ),
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("layout", [RowLayout(), RowLayout(NAMES, corrected=True)])
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
    assert list(good["pred"] == "NA") == [True] * 5
    assert list(good["changed"]) == [name != "NA" for name in NAMES]
    assert frame.loc[0, "error"] == "is broken"
    assert frame.loc[0].drop(["image", "error"]).isna().all()
    assert list(good["base_confidence"]) == [0.5] * 5
    if layout.classes:
        assert list(good["p_None"]) == [0.75] * 5
        assert list(good["base_p_=x"]) == [0.0] * 5
        assert good["corrected"].all()


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

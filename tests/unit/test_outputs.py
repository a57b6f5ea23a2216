from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.outputs import check_output, open_rows, open_whole, partial_path, run_path, sha256, write_json
from imbalance_perturb.results import PredictionRow

CLASSES = ("nv", "mel,anoma")
ROWS = [
    PredictionRow("a.png", "nv", 0.75, "mel,anoma", 0.5000001, None, (0.25, 0.75), (0.75, 0.25)),
    PredictionRow('b "x",\n.png', error="not an image"),
    PredictionRow("c.png", "nv", 0.9, "nv", 0.8, None, (0.8, 0.2), (0.9, 0.1)),
]


def write(path: Path, probabilities: bool) -> None:
    with open_rows(str(path), CLASSES, probabilities) as write_row:
        for row in ROWS:
            write_row(row)


def test_csv_rows_read_back(tmp_path: Path) -> None:
    """A CSV has the columns in order, quotes what needs it, and leaves a failed row's cells empty."""
    path = tmp_path / "p.csv"
    write(path, probabilities=False)
    assert path.read_bytes().startswith(b"image,base_pred,base_confidence,pred,confidence,changed,error\n")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [row.image for row in ROWS]
    assert [row["changed"] for row in rows] == ["1", "", "0"]
    assert rows[0]["pred"] == "mel,anoma"
    assert float(rows[0]["confidence"]) == 0.5000001
    assert {key: value for key, value in rows[1].items() if value} == {"image": ROWS[1].image, "error": "not an image"}


def test_probabilities_follow_the_columns(tmp_path: Path) -> None:
    """With probabilities every row has p_<class> and base_p_<class>, empty where the image failed."""
    path = tmp_path / "p.csv"
    write(path, probabilities=True)
    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header[7:] == ["p_nv", "p_mel,anoma", "base_p_nv", "base_p_mel,anoma"]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][7:] == ["0.25", "0.75", "0.75", "0.25"]


def test_json_lines(tmp_path: Path) -> None:
    """JSON Lines hold the same values, with null where there is none."""
    path = tmp_path / "p.jsonl"
    write(path, probabilities=True)
    first, second, _ = (json.loads(line) for line in path.read_text().splitlines())
    assert first["changed"] is True
    assert first["base_p_mel,anoma"] == 0.25
    assert second == {
        **dict.fromkeys(("base_pred", "base_confidence", "pred", "confidence", "changed")),
        "image": ROWS[1].image,
        "error": "not an image",
    }


def test_a_file_is_whole_or_under_another_name(tmp_path: Path) -> None:
    """An interruption leaves what was written under .partial and nothing under the final name."""
    path = tmp_path / "p.csv"
    path.write_text("old")

    def interrupted() -> None:
        with open_rows(str(path), CLASSES, False) as write_row:
            write_row(ROWS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert "a.png" in partial_path(path).read_text()
    write(path, probabilities=False)
    assert "c.png" in path.read_text()
    assert not partial_path(path).exists()


def test_names_that_are_not_utf8_do_not_end_the_run(tmp_path: Path) -> None:
    """A file name with bytes that are no UTF-8 is written with those bytes escaped."""
    path = tmp_path / "p.csv"
    with open_rows(str(path), CLASSES, False) as write_row:
        write_row(PredictionRow("bad\udcff.png", error="x"))
    assert "bad\\udcff.png" in path.read_text(encoding="utf-8")


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    """An unknown suffix, a missing folder and a folder in the file's place are errors before any work."""
    with pytest.raises(OutputFileError, match=r"use \.csv or \.jsonl"):
        check_output(tmp_path / "p.xlsx")
    with pytest.raises(OutputFileError, match="there is no folder"):
        check_output(tmp_path / "no" / "p.csv")
    (tmp_path / "p.csv.partial").mkdir()
    with pytest.raises(OutputFileError, match=r"p\.csv: cannot be written"), open_whole(tmp_path / "p.csv"):
        pass


def test_json_files_and_hashes(tmp_path: Path) -> None:
    """JSON is written whole, NaN is refused rather than written, and a hash is that of the bytes."""
    path = tmp_path / "x.run.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert run_path(Path("out/predictions.csv")) == Path("out/predictions.run.json")

from __future__ import annotations

import csv
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from imbalance_perturb.cells import decode_path, decode_text
from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.outputs import check_output, open_whole, partial_path, run_path, sha256, write_json
from imbalance_perturb.results import PredictionRow
from imbalance_perturb.row_formats import RowLayout, open_rows

CLASSES = ("nv", "mel,anoma")
ROWS = [
    PredictionRow("a.png", "nv", 0.75, "mel,anoma", 0.5000001, None, (0.25, 0.75), (0.75, 0.25)),
    PredictionRow('b "x",\n.png', error="not an image"),
    PredictionRow("c.png", "nv", 0.9, "nv", 0.8, None, (0.8, 0.2), (0.9, 0.1)),
]


def write(path: Path, probabilities: bool) -> None:
    with open_rows(str(path), RowLayout(CLASSES if probabilities else ())) as write_row:
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


@pytest.mark.parametrize("probabilities", [False, True])
def test_rows_say_what_was_corrected(tmp_path: Path, probabilities: bool) -> None:
    """Asked for, a column after the error says whether the correction was run, before any probabilities."""
    rows = [replace(ROWS[0], corrected=True), ROWS[1], replace(ROWS[2], corrected=False)]
    if not probabilities:
        rows = [replace(row, probs=(), base_probs=()) for row in rows]
    for name in ("p.csv", "p.jsonl"):
        with open_rows(str(tmp_path / name), RowLayout(CLASSES if probabilities else (), corrected=True)) as write_row:
            for row in rows:
                write_row(row)
    with (tmp_path / "p.csv").open(newline="") as stream:
        header, *cells = csv.reader(stream)
    assert header[5:8] == ["changed", "error", "corrected"]
    assert [row[7] for row in cells] == ["1", "", "0"]
    assert {len(row) for row in cells} == {len(header)} == {12 if probabilities else 8}
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [record["corrected"] for record in records] == [True, None, False]


def test_a_file_is_whole_or_under_another_name(tmp_path: Path) -> None:
    """An interruption leaves what was written under .partial and nothing under the final name."""
    path = tmp_path / "p.csv"
    path.write_text("old")

    def interrupted() -> None:
        with open_rows(str(path), RowLayout()) as write_row:
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
    """A file name with bytes that are no UTF-8 is written with those bytes escaped, and reads back the same."""
    name = "bad\udcff.png"
    for suffix in (".csv", ".jsonl"):
        path = tmp_path / f"p{suffix}"
        with open_rows(str(path), RowLayout()) as write_row:
            write_row(PredictionRow(name, error="x"))
        assert "bad\\udcff.png" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text())["image"] == name


def test_no_cell_runs_as_a_formula_and_names_read_back(tmp_path: Path) -> None:
    """Names of images and classes that look like formulas, or hold line ends, are harmless and come back."""
    names = [
        "=cmd|'/C calc'!A0.png",
        "+1.png",
        "-x.png",
        "@SUM(A1).png",
        "\t=1.png",
        "\r=1.png",
        "a\rb\n.png",
        "x;=1.png",
    ]
    classes = ("=HYPERLINK(1)", "-1", "'quoted")
    path = tmp_path / "p.csv"
    with open_rows(str(path), RowLayout(classes)) as write_row:
        for index, name in enumerate(names):
            pred = classes[index % 3]
            write_row(PredictionRow(name, pred, 0.5, pred, 0.5, None, (0.5, 0.3, 0.2), (0.5, 0.3, 0.2)))
        write_row(PredictionRow("=broken.png", error="=not an image"))
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream, strict=True)
    for cell in (cell for row in [header, *rows] for cell in row):
        assert not cell.startswith(tuple("=+@\t\r\n"))
        assert not cell.startswith("-") or cell == "-1"
    assert [decode_path(row[0]) for row in rows] == [*names, "=broken.png"]
    assert [decode_text(row[3]) for row in rows[:3]] == list(classes)
    assert rows[-1][6] == "'=not an image"
    frame = pandas.read_csv(path)
    assert [decode_path(cell) for cell in frame["image"]] == [*names, "=broken.png"]
    assert frame["p_=HYPERLINK(1)"].tolist()[:8] == [0.5] * 8
    assert frame["changed"].dropna().tolist() == [0.0] * 8


@pytest.mark.parametrize("probabilities", [False, True])
def test_parquet(tmp_path: Path, probabilities: bool) -> None:
    """Parquet has the columns of the CSV with their types, and null where a failed image has nothing."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra parquet)")
    path, rows = tmp_path / "p.parquet", [*ROWS, PredictionRow("bad\udcff.png", error="x")]
    with open_rows(str(path), RowLayout(CLASSES if probabilities else (), corrected=True)) as write_row:
        for row in rows:
            write_row(row if probabilities else replace(row, probs=(), base_probs=()))
    table = parquet.read_table(path)
    assert [str(kind) for kind in table.schema.types[:8]] == [
        "string", "string", "double", "string", "double", "bool", "string", "bool",
    ]  # fmt: skip
    records = table.to_pylist()
    assert [record["image"] for record in records] == [*(row.image for row in ROWS), "bad\\udcff.png"]
    assert [record["changed"] for record in records] == [True, None, False, None]
    assert [record["error"] for record in records] == [None, "not an image", None, "x"]
    assert records[0]["confidence"] == ROWS[0].confidence
    if probabilities:
        assert table.column_names[8:] == ["p_nv", "p_mel,anoma", "base_p_nv", "base_p_mel,anoma"]
        assert [record["p_nv"] for record in records] == [0.25, None, 0.8, None]
    assert not partial_path(path).exists()


def test_parquet_is_written_in_groups_and_the_same_bytes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows leave memory group by group; the bytes depend on the rows alone."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra parquet)")
    monkeypatch.setattr("imbalance_perturb.parquet._GROUP_ROWS", 4)
    contents = []
    for name in ("a.parquet", "b.parquet"):
        with open_rows(str(tmp_path / name), RowLayout()) as write_row:
            for index in range(10):
                write_row(PredictionRow(f"{index}.png", "nv", 0.75, "nv", 0.5))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [4, 4, 2]


def test_an_interrupted_parquet_file_has_another_name(tmp_path: Path) -> None:
    """An interruption leaves no file under the final name."""
    pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
    path = tmp_path / "p.parquet"

    def interrupted() -> None:
        with open_rows(str(path), RowLayout()) as write_row:
            write_row(PredictionRow("a.png", error="x"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    assert partial_path(path).exists()


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    """No space left ends in one line that names the file, and nothing stands under the final name."""
    path = tmp_path / name
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
    partial_path(path).symlink_to("/dev/full")

    def fill() -> None:
        with open_rows(str(path), RowLayout()) as write_row:
            for index in range(20000):
                write_row(PredictionRow(f"{index}.png", error="x" * 100))

    with pytest.raises(OutputFileError, match=rf"{name}: writing stopped \(No space left on device\)"):
        fill()
    assert not path.exists()


def test_parquet_without_pyarrow_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing pyarrow is named, with the remedy, before any work."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputFileError, match=r"pip install 'imbalance-perturb\[parquet\]', or use \.csv or \.jsonl"):
        check_output(tmp_path / "p.parquet")
    check_output(tmp_path / "p.csv")


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    """An unknown suffix, a missing folder and a folder in the file's place are errors before any work."""
    with pytest.raises(OutputFileError, match=r"use \.csv, \.jsonl or \.parquet, or - for stdout"):
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

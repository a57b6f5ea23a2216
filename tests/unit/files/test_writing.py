from __future__ import annotations

import csv
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.files.csv_tables import decode_path, decode_text
from imbalance_perturb.files.writing import check_output, open_whole, sha256, write_json, write_whole
from imbalance_perturb.predictions.journal import check_place, open_journal
from imbalance_perturb.predictions.progress_file import progress_path, read_unfinished, rows_path
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_file import run_path
from imbalance_perturb.predictions.writing import open_rows
from tests.users import open_to_others

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
    """Asked for, columns after the error say whether the correction was run, and the margin; then probabilities."""
    rows = [replace(ROWS[0], corrected=True, margin=0.123456789), ROWS[1], replace(ROWS[2], corrected=False, margin=0)]
    if not probabilities:
        rows = [replace(row, probs=(), base_probs=()) for row in rows]
    for name in ("p.csv", "p.jsonl"):
        layout = RowLayout(CLASSES if probabilities else (), corrected=True, margin=True)
        with open_rows(str(tmp_path / name), layout) as write_row:
            for row in rows:
                write_row(row)
    with (tmp_path / "p.csv").open(newline="") as stream:
        header, *cells = csv.reader(stream)
    assert header[5:9] == ["changed", "error", "corrected", "margin"]
    assert [row[7:9] for row in cells] == [["1", "0.12345679"], ["", ""], ["0", "0"]]
    assert {len(row) for row in cells} == {len(header)} == {13 if probabilities else 9}
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [record["corrected"] for record in records] == [True, None, False]
    assert [record["margin"] for record in records] == [0.123456789, None, 0]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    """An interruption leaves the old file under its name, and nothing beside it."""
    path = tmp_path / "p.csv"
    path.write_text("old")

    def interrupted() -> None:
        with open_rows(str(path), RowLayout()) as write_row:
            write_row(ROWS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write(path, probabilities=False)
    assert "c.png" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


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
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_is_written_in_groups_and_the_same_bytes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows leave memory group by group; the bytes depend on the rows alone."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra parquet)")
    monkeypatch.setattr("imbalance_perturb.files.parquet._GROUP_ROWS", 4)
    contents = []
    for name in ("a.parquet", "b.parquet"):
        with open_rows(str(tmp_path / name), RowLayout()) as write_row:
            for index in range(10):
                write_row(PredictionRow(f"{index}.png", "nv", 0.75, "nv", 0.5))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [4, 4, 2]


def test_an_interrupted_parquet_file_is_not_there(tmp_path: Path) -> None:
    """An interruption leaves no file, under whatever name."""
    pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
    path = tmp_path / "p.parquet"

    def interrupted() -> None:
        with open_rows(str(path), RowLayout()) as write_row:
            write_row(PredictionRow("a.png", error="x"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 4,096 bytes. As no fixture: pytest's own report goes to a file, too, and would be cut."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    """No space left ends in one line that names the file, and nothing stands under the final name."""
    path = tmp_path / name
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")

    def fill() -> None:
        with open_rows(str(path), RowLayout()) as write_row:
            for index in range(20000):
                write_row(PredictionRow(f"{index}.png", error="x" * 100))

    with pytest.raises(OutputFileError, match=rf"{name}: writing stopped \(File too large\)"), small_disk():
        fill()
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing pyarrow is named, with the remedy, before any work."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputFileError, match=r"pip install 'imbalance-perturb\[parquet\]', or use \.csv or \.jsonl"):
        check_output(tmp_path / "p.parquet")
    check_output(tmp_path / "p.csv")


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    """An unknown suffix, a missing folder and what is no file in the file's place are errors before any work."""
    with pytest.raises(OutputFileError, match=r"use \.csv, \.jsonl or \.parquet, or - for stdout"):
        check_output(tmp_path / "p.xlsx")
    with pytest.raises(OutputFileError, match="there is no folder"):
        check_output(tmp_path / "no" / "p.csv")
    (tmp_path / "p.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("p.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    (tmp_path / "file").write_text("")
    for name, message in (
        ("p.csv", "is a folder, not a file"),
        ("link.csv", "is a folder, not a file"),
        ("pipe.csv", "is a device or pipe, not a file"),
        ("null.csv", "is a device or pipe, not a file"),
        ("file/p.csv", "there is no folder"),
        (f"{'n' * 252}.csv", r"cannot be written \(File name too long\)"),
    ):
        with pytest.raises(OutputFileError, match=rf"{name}: {message}"):
            check_output(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe.csv").stat().st_mode)
    with pytest.raises(OutputFileError, match=r"p\.csv: is a folder"), open_whole(tmp_path / "p.csv"):
        pass


def test_a_folder_that_takes_no_file_is_found_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the permissions say, a file is made where one is to be, and its failure is the message."""
    with pytest.raises(OutputFileError, match=r"^/proc/x\.csv: cannot be written \(.+\); choose another place$"):
        check_output(Path("/proc/x.csv"))
    path = tmp_path / "p.csv"
    check_output(path)
    assert list(tmp_path.iterdir()) == []

    def refuse(*arguments: object, **more: object) -> int:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(OutputFileError, match=r"p\.csv: cannot be written \(Read-only file system\)"):
        check_output(path)


def test_a_file_that_cannot_be_replaced_is_found_by_trying(tmp_path: Path) -> None:
    """An immutable file is refused before any work; one that only may not be written is replaced."""
    path = tmp_path / "p.csv"
    path.write_text("old")
    path.chmod(0o444)
    check_output(path)
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("needs chattr +i: root, and a file system that has it")
    try:
        with pytest.raises(OutputFileError, match=r"p\.csv: cannot be written \(Operation not permitted\)"):
            check_output(path)
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_what_belongs_to_another_user_is_left_alone(tmp_path: Path) -> None:
    """In a folder for all, another user's file cannot be replaced, and another's rows are not gone on with."""
    open_to_others(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for name in ("p.csv", "q.csv.partial", "r.csv.progress"):
        (shared / name).write_text("")
        (shared / name).chmod(0o666)
    os.seteuid(65534)
    try:
        with pytest.raises(OutputFileError, match=r"p\.csv: is another user's, who alone may replace it"):
            check_output(shared / "p.csv")
        for name, beside in (("q.csv", "q.csv.partial"), ("r.csv", "r.csv.progress")):
            with pytest.raises(OutputFileError, match=f"{beside}: belongs to another user, so it is not used"):
                check_place(shared / name)
    finally:
        os.seteuid(0)


def test_files_written_whole_have_names_that_nobody_can_foresee(tmp_path: Path) -> None:
    """Links laid at every name that could be foreseen are not written through, and the names differ each time."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "p.json"
    for name in ("p.json.partial", "p.json.tmp", ".p.json.tmp", "p.json"):
        (tmp_path / name).symlink_to(victim)
    seen = set()
    for _ in range(3):
        with open_whole(path) as stream:
            (temporary,) = (Path(entry) for entry in tmp_path.glob(".p.json.*.tmp"))
            seen.add(temporary.name)
            assert os.path.samestat(temporary.stat(), os.fstat(stream.fileno()))
            stream.write("new")
    assert len(seen) == 3
    assert victim.read_text() == "precious"
    assert (path.read_text(), path.is_symlink()) == ("new", False)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", [rows_path, progress_path])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "second name", "pipe", "folder"])
def test_rows_go_into_files_of_ones_own_alone(tmp_path: Path, suffix: str, name: object, kind: str) -> None:
    """Whatever else lies where a run's rows or marks are to be is refused in one line, and nothing goes there."""
    assert callable(name)
    path = tmp_path / f"p{suffix}"
    victim, beside = tmp_path / "victim", name(path)
    if kind != "link to nothing":
        victim.write_text("precious")
    match kind:
        case "second name":
            beside.hardlink_to(victim)
        case "pipe":
            os.mkfifo(beside)
        case "folder":
            beside.mkdir()
        case _:
            beside.symlink_to(victim)

    def begin() -> None:
        with open_journal(path, RowLayout(), {}, resume=False) as (journal, _):
            journal.write(ROWS)
            journal.commit({})

    what = {"second name": "has another name, too", "pipe": "no regular file", "folder": "no regular file"}
    for attempt in (lambda: check_place(path), begin):
        with pytest.raises(
            OutputFileError, match=f"{beside.name}: is .*{what.get(kind, 'a link')}.* so it is not used"
        ):
            attempt()
    assert not path.exists()
    assert (victim.read_text() if victim.exists() else None) == (None if kind == "link to nothing" else "precious")


def test_rows_laid_out_by_others_are_not_read(tmp_path: Path) -> None:
    """Marks behind a link are refused, rather than believed, and files of one's own are."""
    path = tmp_path / "p.csv"
    with open_journal(path, RowLayout(), {}, resume=False) as (journal, _):
        journal.write(ROWS)
        journal.commit({})
    unfinished = read_unfinished(path)
    assert unfinished is not None
    assert unfinished.mark.rows == len(ROWS)
    for beside in (progress_path(path), rows_path(path)):
        moved = beside.rename(tmp_path / "moved")
        beside.symlink_to(moved)
        with pytest.raises(OutputFileError, match=f"{beside.name}: is a link"):
            read_unfinished(path)
        moved.replace(beside)


def test_permissions_are_those_of_the_file_replaced_or_of_the_umask(tmp_path: Path) -> None:
    """A new file gets what the umask leaves, as any other; one that is replaced hands its permissions on."""
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "new.json", {})
        write_whole(tmp_path / "secret.toml", b"old")
        (tmp_path / "secret.toml").chmod(0o600)
        with open_whole(tmp_path / "secret.toml", binary=True) as stream:
            assert stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == 0o600  # before anything is in it
            stream.write(b"new")
        (tmp_path / "p.csv").write_text("")
        (tmp_path / "p.csv").chmod(0o604)
        with open_journal(tmp_path / "p.csv", RowLayout(), {}, resume=False) as (journal, _):
            journal.finish()
    finally:
        os.umask(before)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert (modes["new.json"], modes["secret.toml"], modes["p.csv"]) == (0o640, 0o600, 0o604)
    assert modes["p.csv.progress"] == 0o640


def test_a_file_in_its_place_is_there_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the bytes are made safe, then they get their name, then the name is made safe."""
    happened: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        happened.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_json(tmp_path / "x.json", {})
    assert happened == ["file", "rename", "folder"]
    with open_journal(tmp_path / "p.csv", RowLayout(), {}, resume=False) as (journal, _):
        assert happened.pop() == "folder"  # the names of the rows so far
        happened.clear()
        journal.finish()
        assert happened == ["file", "rename", "folder"]

    def unknown(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, os.strerror(22))

    monkeypatch.setattr(os, "fsync", unknown)  # as some network drives do
    write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_each_predictions_file_has_a_run_file_of_its_own() -> None:
    """The run file of a CSV goes without its suffix, any other's keeps it."""
    names = ("out/p.csv", "out/p.jsonl", "out/p.parquet", "out/p.x.csv", "p.CSV")
    assert [str(run_path(Path(name))) for name in names] == [
        "out/p.run.json",
        "out/p.jsonl.run.json",
        "out/p.parquet.run.json",
        "out/p.x.run.json",
        "p.CSV.run.json",
    ]


def test_json_files_and_hashes(tmp_path: Path) -> None:
    """JSON is written whole, NaN is refused rather than written, and a hash is that of the bytes."""
    path = tmp_path / "x.run.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]

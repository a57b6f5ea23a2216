"""Runs that are killed, told to stop or out of room: nothing lost, nothing double, nothing half under a name."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.predictions.journal import open_journal
from imbalance_perturb.predictions.progress_file import progress_path, read_unfinished, rows_path
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from tests.faults.kill_runs import COMMAND, Ended, command_line, kill_and_resume, make_workplace

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, counts and 240 images beside eight broken ones."""
    made = tmp_path_factory.mktemp("runs")
    make_workplace(made)
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Run]:
    """The command line in that folder."""
    with command_line(folder) as runner:
        yield runner


@pytest.fixture(scope="module")
def whole(run: Run, folder: Path) -> bytes:
    """The file of a run that nobody touched."""
    assert run(*COMMAND, "-o", "untouched.csv").code == 3
    return (folder / "untouched.csv").read_bytes()


@pytest.fixture
def unfinished(run: Run, folder: Path) -> Iterator[Path]:
    """The file of a run that was killed when it had rows."""
    path = folder / "cut.csv"
    for _ in range(5):  # until one is caught before its end
        if run(*COMMAND, "-o", "cut.csv", "--no-resume", kill_when=str(path)).code == -signal.SIGKILL:
            break
    else:
        pytest.fail("five runs were through before they could be killed")
    yield path
    for left in folder.glob("cut*"):
        left.unlink()


@pytest.mark.parametrize(("suffix", "kills"), [(".csv", 20), (".jsonl", 3), (".parquet", 5)])
def test_kills_at_random_moments_leave_no_mark(run: Run, folder: Path, suffix: str, kills: int) -> None:
    """However often a run is killed and resumed, its file is that of a run nobody touched, byte for byte."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
    try:
        done = kill_and_resume(run, folder, kills, 1, "-o", f"killed{suffix}")
        assert any(done), "no kill hit a run that had rows"
    finally:
        for left in (*folder.glob("killed.*"), *folder.glob("whole.*")):
            left.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_batch(run: Run, folder: Path, whole: bytes, number: int) -> None:
    """Ctrl-C and SIGTERM finish the images at hand, say how to go on, and the file then is as if never stopped."""
    path = folder / "cut.csv"
    ended = run(*COMMAND, "-o", "cut.csv", kill_when=str(path), number=number)
    name = signal.Signals(number).name
    assert ended.code == 1
    assert f"{name}: finishing the images at hand" in ended.err
    assert f"error: stopped by {name} after " in ended.err
    assert "cut.csv.partial: the same command with --resume goes on" in ended.err
    assert "Traceback" not in ended.err
    assert not path.exists()
    rows = rows_path(path).read_bytes()
    assert whole.startswith(rows)
    ended = run(*COMMAND, "-o", "cut.csv", "--resume")
    assert ended.code == 3
    assert "images had been done before" in ended.err
    assert path.read_bytes() == whole
    for left in folder.glob("cut*"):
        left.unlink()


def test_without_a_word_rows_of_an_unfinished_run_are_safe(
    run: Run, folder: Path, whole: bytes, unfinished: Path
) -> None:
    """The same command again neither drops the rows nor goes on by itself; --no-resume starts anew."""
    before = rows_path(unfinished).read_bytes()
    ended = run(*COMMAND, "-o", "cut.csv")
    assert ended.code == 1
    assert "rows of a run that did not end; --resume goes on with it, --no-resume starts anew" in ended.err
    assert rows_path(unfinished).read_bytes() == before
    assert run(*COMMAND, "-o", "cut.csv", "--no-resume").code == 3
    assert unfinished.read_bytes() == whole


@pytest.mark.parametrize(
    ("more", "different"),
    [
        (("--eps", "0.01"), "eps (0.001 then, 0.01 now)"),
        (("--temperature", "10"), "temperature (1000.0 then, 10.0 now)"),
        (("--probs",), "probabilities (False then, True now)"),
        (("--margin",), "margin (none then, True now)"),
        (("--resize", "36"), "resize (32 then, 36 now)"),
        (("--batch-size", "16"), "the batch size (8 then, 16 now)"),
        (("--precision", "fp32"), "precision (auto then, fp32 now)"),
        (("--shard", "1/2"), "shard (none then, 1/2 now)"),
    ],
)
def test_a_run_with_other_settings_is_not_gone_on_with(
    run: Run, unfinished: Path, more: tuple[str, ...], different: str
) -> None:
    """--resume with anything changed is refused, names what differs, and leaves the rows alone."""
    before = rows_path(unfinished).read_bytes()
    ended = run(*COMMAND, "-o", "cut.csv", "--resume", *more)
    assert ended.code == 1
    assert f"different: {different};" in ended.err
    assert rows_path(unfinished).read_bytes() == before


def test_a_run_with_other_files_is_not_gone_on_with(run: Run, folder: Path, unfinished: Path) -> None:
    """--resume with another model, other counts, other images or another version is refused and names it."""

    def refused(different: str) -> None:
        ended = run(*COMMAND, "-o", "cut.csv", "--resume")
        assert ended.code == 1
        assert f"different: {different};" in ended.err, ended.err

    counts = (folder / "counts.json").read_text()
    (folder / "counts.json").write_text(counts.replace("90,", "91,"))
    refused("the class counts or p*")
    (folder / "counts.json").write_text(counts)
    shutil.copy(folder / "images" / "0001.png", folder / "images" / "9.png")
    refused("the list of images")
    (folder / "images" / "9.png").unlink()
    image = (folder / "images" / "0001.png").read_bytes()
    shutil.copy(folder / "images" / "0000-broken.png", folder / "images" / "0001.png")
    refused("the images (some file has another size)")
    (folder / "images" / "0001.png").write_bytes(image)
    first, _, rest = progress_path(unfinished).read_text().partition("\n")
    made = json.loads(first)
    made["made_by"]["versions"]["imbalance_perturb"] = "0.0.9"
    progress_path(unfinished).write_text(json.dumps(made) + "\n" + rest)
    refused("imbalance-perturb (0.0.9 then, 0.1.0 now)")
    made["made_by"]["versions"]["imbalance_perturb"] = "0.1.0"
    made["made_by"]["model"]["sha256"] = "0" * 64
    progress_path(unfinished).write_text(json.dumps(made) + "\n" + rest)
    refused("the model file")


def test_resuming_what_is_whole_does_nothing(run: Run, folder: Path, whole: bytes) -> None:
    """--resume on a finished run ends as that did and writes nothing; on another run's file it is refused."""
    path = folder / "untouched.csv"
    before = path.stat().st_mtime_ns
    ended = run(*COMMAND, "-o", "untouched.csv", "--resume")
    assert ended.code == 3
    assert "248 of 248 images had been done before" in ended.err
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (whole, before)
    ended = run(*COMMAND, "-o", "untouched.csv", "--resume", "--eps", "0.1")
    assert ended.code == 1
    assert "different: eps (0.001 then, 0.1 now)" in ended.err
    shutil.copy(path, folder / "edited.csv")
    shutil.copy(folder / "untouched.run.json", folder / "edited.run.json")
    (folder / "edited.csv").write_bytes(whole.replace(b"0000.png", b"0009.png"))
    ended = run(*COMMAND, "-o", "edited.csv", "--resume")
    assert ended.code == 1
    assert "edited.csv: is not the file that edited.run.json tells of" in ended.err


@pytest.mark.parametrize("lost", ["rows cut off", "rows overwritten", "marks cut off", "marks overwritten", "no marks"])
def test_a_power_cut_costs_only_what_was_not_on_disk(
    run: Run, folder: Path, whole: bytes, unfinished: Path, lost: str
) -> None:
    """Files that a power cut has cut off or filled with zeros are trusted only as far as their checksums hold."""
    rows, marks = (path(unfinished).read_bytes() for path in (rows_path, progress_path))
    match lost:
        case "rows cut off":
            rows_path(unfinished).write_bytes(rows[:-5])
        case "rows overwritten":
            rows_path(unfinished).write_bytes(rows[:-40] + bytes(40))
        case "marks cut off":
            progress_path(unfinished).write_bytes(marks[:-9])
        case "marks overwritten":
            progress_path(unfinished).write_bytes(marks[:-30] + bytes(30))
        case "no marks":
            progress_path(unfinished).write_bytes(b"")
    assert run(*COMMAND, "-o", "cut.csv", "--resume").code == 3
    assert unfinished.read_bytes() == whole


def test_a_run_cut_off_between_its_file_and_its_run_file(run: Run, folder: Path) -> None:
    """Where the rows are under their name already and the run file is not, --resume writes that."""
    command = (*COMMAND[:3], "images/0001.png", *COMMAND[4:])
    assert run(*command, "-o", "one.csv").code == 0
    whole, path = (folder / "one.csv").read_bytes(), folder / "cut.csv"
    # On a disk with room for the rows, and not for the run file, which comes last.
    # Its timings may have some digits less the next time.
    limit = (folder / "one.run.json").stat().st_size - 200
    ended = run(*command, "-o", "cut.csv", file_limit=limit)
    assert ended.code == 1
    assert "cut.run.json: writing stopped (File too large)" in ended.err
    assert path.read_bytes() == whole
    assert run(*command, "-o", "cut.csv", "--resume").code == 0
    assert path.read_bytes() == whole
    assert json.loads((folder / "cut.run.json").read_text())["images"]["done"] == 1
    assert not progress_path(path).exists()
    (folder / "one.csv").unlink()
    (folder / "one.run.json").unlink()
    for left in folder.glob("cut*"):
        left.unlink()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_ends_the_run_and_costs_nothing(run: Run, folder: Path, whole: bytes, suffix: str) -> None:
    """No room for more rows is one line; with room made, --resume goes on to the file of an untouched run."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
    ended = run(*COMMAND, "-o", f"cut{suffix}", file_limit=6000)
    assert ended.code == 1
    assert f"cut{suffix}: writing stopped (File too large); the rows so far are in" in ended.err
    assert "Traceback" not in ended.err
    assert not (folder / f"cut{suffix}").exists()
    unfinished = read_unfinished(folder / f"cut{suffix}")
    assert unfinished is not None
    assert run(*COMMAND, "-o", f"cut{suffix}", "--resume").code == 3
    if suffix == ".csv":
        assert (folder / "cut.csv").read_bytes() == whole
    for left in folder.glob("cut*"):
        left.unlink()


def test_failures_end_a_run_where_they_are_limited(run: Run, folder: Path, whole: bytes) -> None:
    """--on-error fail and --max-failures end the run, name image and reason, and a higher limit goes on."""
    ended = run(*COMMAND, "-o", "cut.csv", "--on-error", "fail")
    assert ended.code == 1
    assert "error: 0000-broken.png: not an image in a known format; that makes 1 failed image, more than" in ended.err
    assert not (folder / "cut.csv").exists()
    ended = run(*COMMAND, "-o", "cut.csv", "--resume", "--max-failures", "2%")
    assert ended.code == 1
    assert "that makes 5 failed images, more than --max-failures 2% allows" in ended.err
    assert run(*COMMAND, "-o", "cut.csv", "--resume", "--max-failures", "9").code == 3
    assert (folder / "cut.csv").read_bytes() == whole
    ended = run(*COMMAND, "-o", "-", "--resume")
    assert ended.code == 1
    assert "cannot be resumed" in ended.err
    for left in folder.glob("cut*"):
        left.unlink()


def test_two_runs_do_not_write_one_file(run: Run, folder: Path) -> None:
    """While a run writes a file, another that is to write it ends in one line."""
    path = folder / "shared.csv"
    with open_journal(path, RowLayout(), {}, resume=False) as (journal, _):
        journal.write([PredictionRow("a.png", error="x")])
        ended = run(*COMMAND, "-o", "shared.csv", "--no-resume")
        assert ended.code == 1
        assert "another run is writing it" in ended.err
        journal.commit({})
    unfinished = read_unfinished(path)
    assert unfinished is not None
    assert unfinished.mark.rows == 1


def test_a_journal_needs_a_place(tmp_path: Path) -> None:
    """A folder that is not there is named, with what to do."""
    with (
        pytest.raises(OutputFileError, match=r"p\.csv: writing stopped \(No such file or directory\)"),
        open_journal(tmp_path / "no" / "p.csv", RowLayout(), {}, resume=False),
    ):
        pass

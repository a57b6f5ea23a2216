"""What people's folders and files hold besides plain pictures, seen from the commands."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.inference.decoding import workers
from imbalance_perturb.predictions.deep_images import DeepImages
from tests.biased import PLAIN, write_biased
from tests.functional.conftest import SMALL, Finished, Workplace
from tests.image_samples import saved

QUICK = ("--repeats", "2", "--folds", "3")


def predict(workplace: Workplace, *more: str, images: str = "images") -> Finished:
    return workplace.run("predict", "model.pth", "counts.json", images, *SMALL, *more)


def read_rows(path: str = "predictions.csv") -> dict[str, dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def read_run(path: str = "predictions.run.json") -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@pytest.fixture
def biased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Workplace:
    """A folder with ``model.pt``, ``counts.json`` and ``val/`` of class folders."""
    write_biased(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, capsys)


# Hidden and system folders


def test_hidden_and_system_folders_cost_a_line(workplace: Workplace) -> None:
    """`predict` takes none of them, says so in one line, and the run file has the numbers."""
    for folder in (".ipynb_checkpoints", "@eaDir", ".Trash-1000", "$RECYCLE.BIN", "__MACOSX", ".git", "sub/@eaDir"):
        Path("images", folder).mkdir()
        shutil.copy("images/0.png", Path("images", folder, "0.png"))
    Path("images/Thumbs.db").write_bytes(b"")
    finished = predict(workplace)
    assert finished.code == 0
    assert len(read_rows()) == 9
    assert [line for line in finished.err.splitlines() if "aside" in line] == [
        "  left aside: 7 files in 7 hidden or system folders ($RECYCLE.BIN, .Trash-1000, .git and 3 more),"
        " 1 hidden or system files"
    ]
    images = read_run()["images"]
    assert images["hidden"] == {"files": 8, "folders": 7}
    assert images["ignored_files"] == {}
    shutil.copytree("images", ".data")
    predict(workplace, "-o", "other.csv", images=".data")
    assert read_rows("other.csv") == read_rows()


def test_counts_are_those_of_the_images_alone(workplace: Workplace) -> None:
    """Three and four images are 3 and 4, and the line says what was left aside."""
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "b/4", "a/.ipynb_checkpoints/1", "a/@eaDir/1", ".git/x"):
        path = Path("train", f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    finished = workplace.run("counts", "train")
    assert json.loads(finished.out) == {"a": 3, "b": 4}
    assert "left aside: 3 files in 3 hidden or system folders (.git, .ipynb_checkpoints, @eaDir)" in finished.err
    assert "nothing to correct" not in finished.err


def test_tuning_and_comparing_say_it_too(biased: Workplace) -> None:
    """`tune-eps` in its line on the images, `compare` in its notes."""
    first = next(Path("val").rglob("*.png"))
    (first.parent / "@eaDir").mkdir()
    shutil.copy(first, first.parent / "@eaDir" / first.name)
    Path("val", "notes.txt").write_text("x")
    line = "left aside: 1 files in 1 hidden or system folders (@eaDir)"
    finished = biased.run("tune-eps", "model.pt", "counts.json", "--val", "val", *PLAIN, *QUICK, "--eps-grid", "0.05")
    assert line in finished.err
    finished = biased.run("compare", "model.pt", "counts.json", "--val", "val", *PLAIN, *QUICK, "--methods", "none,la")
    notes = json.loads(Path("compare.json").read_text())["notes"]
    assert f"val: {line}" in notes
    assert "val: 1 other files left aside: 1 .txt" in notes
    assert f"note: val: {line}" in finished.err


# One name for one image


@pytest.mark.parametrize("written", ["{}", "./{}", ".//{}"])
def test_every_command_matches_every_form_of_a_path(written: str, biased: Workplace) -> None:
    """A list, predictions and labels that write a path differently are of the same image; formulas included."""
    paths = sorted(Path("val").rglob("*.png"))
    labels = {path.relative_to("val").as_posix(): path.parent.name for path in paths}
    moved = f"=1+1 {paths[0].name}"
    shutil.copy(paths[0], Path("val", moved))
    labels[moved] = paths[0].parent.name
    with Path("labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label"), *((written.format(n), label) for n, label in labels.items())])
    with Path("val", "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image",), *((f"./{name}",) for name in labels)])
    given = ("model.pt", "counts.json", "--val", "val/list.csv", "--labels", "labels.csv", *PLAIN, *QUICK)
    finished = biased.run("tune-eps", *given, "--eps-grid", "0.05")
    assert finished.code == 0, finished.err
    finished = biased.run("compare", *given, "--methods", "none,la")
    assert finished.code == 0, finished.err
    finished = biased.run("predict", "model.pt", "counts.json", "val/list.csv", *PLAIN)
    assert finished.code == 0, finished.err
    assert set(read_rows()) == {*labels} - {moved} | {f"./{moved}"}
    finished = biased.run("evaluate", "--labels", "labels.csv", "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["n"] == len(labels)
    # What was written by hand, as another program might: no run file tells of it.
    Path("predictions.run.json").unlink()
    Path("predictions.csv").write_text(re.sub("^(?=[a-z]+/)", ".//", Path("predictions.csv").read_text(), flags=re.M))
    assert ".//" in Path("predictions.csv").read_text()
    finished = biased.run("evaluate", "--labels", "labels.csv", "--counts", "counts.json", "--json")
    assert finished.code == 0, finished.err


# Twelve bits in sixteen


def write_deep(folder: str, highest: int, n: int = 4) -> None:
    rng = np.random.default_rng(0)
    Path(folder).mkdir(exist_ok=True)
    for index in range(n):
        values = rng.integers(0, highest + 1, (40, 40), dtype=np.uint16)
        values[0, 0] = highest
        Image.fromarray(values).save(Path(folder, f"{index}.png"))


WARNING = (
    "all 4 images of more than 8 bits stay below 1/8 of white (their highest pixel is 4000): they are seen nearly"
    " black; give --max-value 4095?"
)


def test_dark_deep_images_are_one_warning(workplace: Workplace) -> None:
    """On stderr, in --json and in the run file; not where white was said, where one is bright, nor of 8 bits."""
    write_deep("deep", 4000)
    finished = predict(workplace, "--json", images="deep")
    assert finished.err.count(f"warning: {WARNING}") == 1
    assert json.loads(finished.out)["warnings"] == [WARNING]
    assert read_run()["warnings"] == [WARNING]
    assert read_run()["images"]["deep"] == {"count": 4, "bright": 0, "highest": 4000}
    assert "warning" not in predict(workplace, "--max-value", "4095", images="deep").err
    assert "warning" not in predict(workplace).err
    assert read_run()["images"]["deep"] == {"count": 0, "bright": 0, "highest": 0}
    write_deep("deep", 65535, n=1)
    assert "warning" not in predict(workplace, images="deep").err


def test_dark_deep_images_are_seen_across_parts_and_resumed_runs(workplace: Workplace) -> None:
    """A merge warns of all parts together; a run that goes on counts what it had seen before."""
    write_deep("deep", 4000, n=12)
    for part in (1, 2):
        predict(workplace, "--shard", f"{part}/2", "-o", f"part{part}.csv", images="deep")
    finished = workplace.run("merge", "part1.csv", "part2.csv", "-o", "all.csv")
    assert WARNING.replace("all 4", "all 12") in finished.err
    assert read_run("all.run.json")["warnings"] == [WARNING.replace("all 4", "all 12")]
    Path("deep/9.png").rename("deep/9.tmp")
    # Of the same size: a run is of images by name and size.
    Path("deep/9.png").write_bytes(bytes(Path("deep/9.tmp").stat().st_size))
    stopped = predict(workplace, "--batch-size", "1", "--on-error", "fail", "-o", "cut.csv", images="deep")
    assert stopped.code == 1
    Path("deep/9.tmp").replace("deep/9.png")
    finished = predict(workplace, "--batch-size", "1", "--resume", "-o", "cut.csv", images="deep")
    assert "resumed: " in finished.err
    assert WARNING.replace("all 4", "all 12") in finished.err
    finished = predict(workplace, "--batch-size", "1", "--resume", "-o", "cut.csv", images="deep")
    assert WARNING.replace("all 4", "all 12") in finished.err


def test_tuning_and_comparing_warn_of_dark_images(biased: Workplace) -> None:
    """Among their notes, on stderr and in the JSON."""
    for path in sorted(Path("val").rglob("*.png")):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 8).save(path)
    warning = "stay below 1/8 of white"
    finished = biased.run("tune-eps", "model.pt", "counts.json", "--val", "val", *PLAIN, *QUICK, "--eps-grid", "0.05")
    assert finished.err.count(warning) == 1
    assert sum(warning in note for note in json.loads(Path("tune-eps.json").read_text())["notes"]) == 1
    finished = biased.run("compare", "model.pt", "counts.json", "--val", "val", *PLAIN, *QUICK, "--methods", "none,la")
    assert finished.err.count(warning) == 1
    assert sum(warning in note for note in json.loads(Path("compare.json").read_text())["notes"]) == 1


@pytest.mark.parametrize(
    ("highest", "white", "remedy"),
    [
        (1000, 65535, "give --max-value 1023?"),
        (100, 65535, "give --max-value 255?"),
        (8191, 65535, "give --max-value 8191?"),
        (8192, 65535, None),
        (0, 65535, None),
        (511, 4095, "give --max-value 511?"),
        (100_000, 2**32 - 1, "convert them to fewer bits?"),
    ],
)
def test_the_white_that_fits(highest: int, white: int, remedy: str | None) -> None:
    """The nearest 2^k - 1, where it can be given; an eighth of white is bright, and black says nothing."""
    deep = DeepImages()
    deep.add(highest, white)
    assert [warning.rpartition("; ")[2] for warning in deep.warnings] == ([] if remedy is None else [remedy])


# Pictures that are not read


def test_pictures_that_are_not_read_have_a_row(workplace: Workplace) -> None:
    """Exit code 3, also with -q; a table beside them is left aside."""
    for name, content in (("a.svg", b"<svg/>"), ("b.jxl", b"\xff\x0a"), ("c.pdf", b"%PDF-1.7"), ("d.csv", b"image\n")):
        Path("images", name).write_bytes(content)
    assert predict(workplace, "-q").code == 3
    found = read_rows()
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert errors == {
        "a.svg": "a drawing without pixels, which is not read; export it as PNG",
        "b.jxl": "a JPEG XL, which is not read; convert it to PNG",
        "c.pdf": "a document, which is not read; export the pages that are meant as PNG",
    }
    assert len(found) == 12


def test_modern_formats_are_predicted_as_the_picture_they_hold(workplace: Workplace) -> None:
    """A lossless JPEG 2000 has its PNG's prediction, beside an AVIF that has one."""
    picture = Image.open("images/0.png")
    Path("images/0.jp2").write_bytes(saved(picture, "JPEG2000"))
    Path("images/0.avif").write_bytes(saved(picture, "AVIF"))
    assert predict(workplace, "--batch-size", "1").code == 0
    found = read_rows()
    assert {**found["0.jp2"], "image": ""} == {**found["0.png"], "image": ""}
    assert found["0.avif"]["pred"]


# Images that end or hold up the process decoding them


def harm(monkeypatch: pytest.MonkeyPatch, name: str, how: Any) -> None:
    def decode(path: Path, *arguments: object, **options: object) -> object:
        if path.name == name:
            how()
        return decode_image(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "decode_image", decode)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: Images keep sizes of their own, so that one is decoded before the model is tried.
NO_SIZE = ("--preset", "none", "--resize", "32")


def test_an_image_cannot_end_a_run_of_a_few(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine images, the first of which kills who decodes it, where the model's size comes from an image."""
    harm(monkeypatch, "0.png", kill)
    finished = workplace.run("predict", "model.pth", "counts.json", "images", *NO_SIZE)
    assert finished.code == 3, finished.err
    found = read_rows()
    assert "ended its process" in found["0.png"]["error"]
    assert sum(bool(row["error"]) for row in found.values()) == 1


def test_an_image_cannot_end_a_comparison(biased: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `compare` decodes, also for the last layer, is decoded in workers."""
    first = min(Path("val").rglob("*.png"))
    harm(monkeypatch, first.name, kill)
    finished = biased.run(
        "compare", "model.pt", "counts.json", "--val", "val", *PLAIN[:4], *QUICK, "--methods", "none,tau-norm"
    )
    assert finished.code == 3, finished.err
    failed = json.loads(Path("compare.json").read_text())["failed"]["images"]
    assert failed == sorted(path.relative_to("val").as_posix() for path in Path("val").rglob(first.name))


def test_an_image_that_never_ends_costs_its_row(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """--image-timeout, from the command line or the recipe, ends it; the setting is checked and recorded."""
    harm(monkeypatch, "0.png", lambda: time.sleep(600))
    start = time.monotonic()
    finished = workplace.run("predict", "model.pth", "counts.json", "images", *NO_SIZE, "--image-timeout", "2")
    assert time.monotonic() - start < 120
    assert finished.code == 3, finished.err
    found = read_rows()
    assert found["0.png"]["error"] == "not read within 2 s (--image-timeout SECONDS gives it more)"
    assert sum(bool(row["error"]) for row in found.values()) == 1
    assert read_run()["settings"]["run"]["image_timeout"] == 2
    message = workplace.fails("predict", "model.pth", "counts.json", "images", *SMALL, "--image-timeout", "0", code=2)
    assert "image_timeout is 0.0; expected a number of seconds above 0" in message

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.functional.conftest import SMALL, Workplace
from tests.functional.test_precision import many  # noqa: F401 - a fixture

N = 8
AWKWARD = ("a,b.png", "two\nlines.png", "=1+1.png", "@x.png", 'say "x".png', "'q.png", "-1.png")


def predict(workplace: Workplace, out: str, *more: str, model: str = "model.pth", images: str = "images") -> None:
    finished = workplace.run("predict", model, "counts.json", images, *SMALL, "--eps", "0.05", "-o", out, *more)
    assert finished.code in (0, 3), finished.err


def predict_parts(workplace: Workplace, suffix: str = ".csv", *more: str, n: int = N, **files: str) -> list[str]:
    """The parts of a run, last first."""
    outs = [f"part{index}{suffix}" for index in range(n, 0, -1)]
    for index, out in zip(range(n, 0, -1), outs, strict=True):
        predict(workplace, out, "--shard", f"{index}/{n}", *more, **files)
    return outs


def read_run(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def change_run(path: str, table: str, **values: object) -> None:
    data = read_run(path)
    data[table] |= values
    Path(path).write_text(json.dumps(data))


@pytest.fixture
def awkward(workplace: Workplace) -> Workplace:
    """A workplace whose images have awkward names, some of them broken."""
    for index, name in enumerate(AWKWARD):
        Image.new("RGB", (40, 40), (30 * index, 200, 10)).save(Path("images", name))
    for name in ("broken.png", "=broken, too.png"):
        Path("images", name).write_bytes(b"no image")
    return workplace


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_merged_parts_are_the_file_of_one_run(awkward: Workplace, suffix: str) -> None:
    """The merge of all parts, in any order, has the bytes of a run without parts; its run file has the sums."""
    probs = ("--probs", "--margin") if suffix != ".jsonl" else ()
    predict(awkward, f"whole{suffix}", *probs)
    parts = predict_parts(awkward, suffix, *probs)
    finished = awkward.run("merge", *parts, "-o", f"merged{suffix}")
    assert finished.code == 3, finished.err
    assert "8 parts merged: 18 images, 16 predicted" in finished.err
    assert "note" not in finished.err
    assert Path(f"merged{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    name = ".run.json" if suffix == ".csv" else f"{suffix}.run.json"
    whole, merged = read_run(f"whole{name}"), read_run(f"merged{name}")
    for same in ("predictions_sha256", "images", "classes", "settings", "output", "versions", "model"):
        assert merged[same] == whole[same], same
    assert [part["shard"] for part in merged["parts"]] == [f"{index}/8" for index in range(1, 9)]
    assert merged["seconds"].keys() == whole["seconds"].keys()
    total = sum(read_run(f"part{index}{name}")["seconds"]["total"] for index in range(1, 9))
    assert merged["seconds"]["total"] == pytest.approx(total, abs=1e-3)
    assert not list(Path().glob("*.partial"))


def test_a_merged_file_can_be_evaluated(workplace: Workplace) -> None:
    """evaluate takes a merged file with its run file; --json tells what was merged."""
    parts = predict_parts(workplace)
    finished = workplace.run("merge", *parts, "-o", "merged.csv", "--json", "--quiet")
    assert (finished.code, finished.err) == (0, "")
    assert (json.loads(finished.out)["parts"], json.loads(finished.out)["total"]) == (8, 9)
    names = sorted(path.relative_to("images").as_posix() for path in Path("images").rglob("*.png"))
    Path("labels.csv").write_text("image,label\n" + "".join(f"{n},{'abcd'[i % 4]}\n" for i, n in enumerate(names)))
    finished = workplace.run("evaluate", "merged.csv", "--labels", "labels.csv", "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["n"] == 9


def test_parts_in_auto_precision(many: Workplace) -> None:  # noqa: F811
    """With bounds measured on the whole list parts in --precision auto merge to the rows of one run."""
    files = {"model": "colours.pt", "images": "many"}
    predict(many, "whole.csv", "--precision", "auto", **files)
    parts = predict_parts(many, ".csv", "--precision", "auto", n=3, **files)
    finished = many.run("merge", *parts, "-o", "merged.csv")
    assert finished.code == 0, finished.err
    assert "note" not in finished.err
    assert Path("merged.csv").read_bytes() == Path("whole.csv").read_bytes()
    whole, merged = read_run("whole.run.json"), read_run("merged.run.json")
    assert merged["agreement"]["images"] == 300
    for same in ("bound", "base_bound", "recomputed", "corrected"):
        assert merged["agreement"][same] == whole["agreement"][same], same


def test_what_is_not_all_parts_of_one_run_is_refused(workplace: Workplace) -> None:
    """A part that is missing, given twice, of another division, or none at all is named."""
    parts = predict_parts(workplace, n=3)
    predict(workplace, "whole.csv")
    predict(workplace, "other.csv", "--shard", "1/2")
    shutil.copy("part2.csv", "again.csv")
    shutil.copy("part2.run.json", "again.run.json")
    for given, message in (
        (parts[:1], "2 of 3 parts are not given: 1/3, 2/3"),
        ([*parts, "again.csv"], "again.csv: is part 2/3, and so is part2.csv"),
        ([*parts, "other.csv"], "other.csv: is part 1/2, but part3.csv is part 3/3"),
        ([*parts, "whole.csv"], "whole.csv: is no part: it was predicted without --shard"),
        ([*parts, "gone.csv"], "gone.csv: no such file"),
    ):
        assert message in workplace.fails("merge", *given, "-o", "merged.csv")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--eps", "0.01"), "eps (0.05 there, 0.01 here)"),
        (("--probs",), "probabilities (False there, True here)"),
        (("--margin",), "margin (none there, True here)"),
        (("--mean", "0.1,0.1,0.1"), "mean"),
    ],
)
def test_a_part_made_otherwise_is_refused(workplace: Workplace, more: tuple[str, ...], message: str) -> None:
    """A part that another run's settings made is refused with what differs."""
    parts = predict_parts(workplace, n=2)
    predict(workplace, "part2.csv", "--shard", "2/2", *more)
    found = workplace.fails("merge", *parts, "-o", "merged.csv")
    assert "part2.csv: is not of the run that part1.csv is of; different: " in found
    assert message in found


def test_a_part_of_another_list_is_refused(workplace: Workplace) -> None:
    """A part that was predicted after an image was added, or replaced by one of another size, is refused."""
    parts = predict_parts(workplace, n=2)
    Image.new("RGB", (40, 40)).save("images/new.png")
    predict(workplace, "part2.csv", "--shard", "2/2")
    assert "different: the list of images;" in workplace.fails("merge", *parts, "-o", "merged.csv")
    Path("images/new.png").unlink()
    Image.new("RGB", (40, 40)).save("images/0.png")
    predict(workplace, "part2.csv", "--shard", "2/2")
    message = workplace.fails("merge", *parts, "-o", "merged.csv")
    assert "different: the images (some file has another size);" in message


def test_a_changed_part_is_refused(workplace: Workplace) -> None:
    """A part that is cut off, has no run file or has other rows than its run file and shard say is refused."""
    parts = predict_parts(workplace, n=2)
    whole = Path("part1.csv").read_bytes()
    Path("part1.csv").write_bytes(whole[:-20])
    assert "part1.csv: is not the file that part1.run.json tells of" in workplace.fails("merge", *parts, "-o", "m.csv")
    Path("part1.csv").write_bytes(whole)
    run = Path("part1.run.json").read_text()
    change_run("part1.run.json", "images", total=99)
    assert "rows, but part1.run.json tells of 99 images" in workplace.fails("merge", *parts, "-o", "m.csv")
    Path("part1.run.json").write_text(run)
    change_run("part1.run.json", "images", shard="2/2")
    change_run("part2.run.json", "images", shard="1/2")
    assert "is not in part" in workplace.fails("merge", *parts, "-o", "m.csv")
    change_run("part1.run.json", "images", shard="1/2", list_sha256="0")
    change_run("part2.run.json", "images", shard="2/2", list_sha256="0")
    assert "are not the 9 that the run saw" in workplace.fails("merge", *parts, "-o", "m.csv")
    Path("part1.run.json").unlink()
    assert "part1.run.json: cannot be read" in workplace.fails("merge", *parts, "-o", "m.csv")


def test_the_merged_file_goes_where_it_may(workplace: Workplace) -> None:
    """Another format, a part as the target, or one where an unfinished run has rows is refused."""
    parts = predict_parts(workplace, n=2)
    assert "must be of one format" in workplace.fails("merge", *parts, "-o", "merged.jsonl")
    assert "must be of one format" in workplace.fails("merge", *parts, "-o", "-")
    assert "is one of the parts" in workplace.fails("merge", *parts, "-o", "part1.csv")
    assert "no folder" in workplace.fails("merge", *parts, "-o", "nowhere/merged.csv")
    Path("merged.run.json").mkdir()
    assert "merged.run.json: is a folder, not a file" in workplace.fails("merge", *parts, "-o", "merged.csv")
    Path("images/9_broken.png").write_bytes(b"no image")
    cut = ("--batch-size", "1", "--workers", "0", "--on-error", "fail", "-o", "cut.csv")
    assert workplace.run("predict", "model.pth", "counts.json", "images", *SMALL, *cut).code == 1
    assert "did not end; finish it" in workplace.fails("merge", *parts, "-o", "cut.csv")
    assert "cut.csv: no such file; its run did not end" in workplace.fails("merge", *parts, "cut.csv", "-o", "m.csv")


def test_parts_of_different_machines_are_merged_with_a_note(workplace: Workplace) -> None:
    """Parts of another device, or with bounds of their own, are merged, and it is said that digits may differ."""
    parts = predict_parts(workplace, n=2)
    change_run("part1.run.json", "execution", device_name="NVIDIA H100")
    bounds = read_run("part2.run.json")["predictor"]["bounds"]
    change_run("part2.run.json", "predictor", bounds=bounds | {"base": 0.5})
    finished = workplace.run("merge", *parts, "-o", "merged.csv")
    assert finished.code == 0, finished.err
    assert "note: the parts were computed on CPU and NVIDIA H100: last digits may differ" in finished.err
    assert "note: the bounds of close calls were measured differently" in finished.err
    assert "sizes of their own" not in finished.err
    assert [part["device_name"] for part in read_run("merged.run.json")["parts"]] == ["NVIDIA H100", "CPU"]


def test_images_of_their_own_sizes_are_merged_with_a_note(workplace: Workplace) -> None:
    """Where images are not brought to one size, labels are those of one run, and it is said that digits may differ."""
    Image.new("RGB", (50, 64), (200, 10, 10)).save("images/9.png")
    own = ("--preset", "none", "--resize", "none", "--crop", "none")
    predict(workplace, "whole.csv", *own)
    finished = workplace.run("merge", *predict_parts(workplace, ".csv", *own, n=2), "-o", "merged.csv")
    assert finished.code == 0, finished.err
    assert "note: the images kept sizes of their own: last digits may differ" in finished.err
    found = [[line.split(",")[index] for index in (0, 1, 3)] for line in Path("merged.csv").read_text().splitlines()]
    assert found == [[x.split(",")[index] for index in (0, 1, 3)] for x in Path("whole.csv").read_text().splitlines()]


def test_parts_without_images_are_merged(workplace: Workplace) -> None:
    """Parts that no image fell into take part in the merge, with nothing to add."""
    predict(workplace, "whole.csv")
    parts = predict_parts(workplace, n=7)  # by its hash no image falls into the first
    assert workplace.run("merge", *parts, "-o", "merged.csv").code == 0
    assert Path("merged.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert 0 in [part["images"] for part in read_run("merged.run.json")["parts"]]

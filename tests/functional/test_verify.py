from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imbalance_perturb.predictions.shards import Shard
from tests.functional.conftest import Workplace
from tests.functional.test_merge import change_run, predict, predict_parts
from tests.functional.test_precision import many  # noqa: F401 - a fixture


def verify(workplace: Workplace, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    finished = workplace.run("verify", *arguments, "--json")
    assert finished.code == code, finished.err
    return json.loads(finished.out)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_run_reproduces(workplace: Workplace, suffix: str) -> None:
    """All rows of a run come out again to the last digit, those of images that failed with their errors."""
    Path("images/broken.png").write_bytes(b"no image")
    predict(workplace, f"out{suffix}", "--probs", "--margin")
    found = verify(workplace, "out.run.json" if suffix == ".csv" else f"out{suffix}.run.json")
    assert (found["total"], found["sampled"], found["reproduced"]) == (10, 10, 10)
    assert found["identical"] >= 9
    assert found["largest_difference"] < 1e-6
    assert found["mismatches"] == found["notes"] == []
    finished = workplace.run("verify", f"out{suffix}", "--sample", "3", "--seed", "5")
    assert (finished.code, finished.out) == (0, "")
    assert "3 of 3 sampled rows come out again (of 10, seed 5)" in finished.err


def test_the_sample_is_drawn_anew_or_by_a_seed(workplace: Workplace) -> None:
    """Without a seed one is drawn and told; a sample of no rows is a wrong use."""
    predict(workplace, "out.csv")
    seeds = {verify(workplace, "out.run.json", "--sample", "2")["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert "sample is 0" in workplace.fails("verify", "out.run.json", "--sample", "0", code=2)


def test_an_edited_cell_is_found(workplace: Workplace) -> None:
    """A predictions file that was edited after its run is refused by its hash."""
    predict(workplace, "out.csv")
    text = Path("out.csv").read_text()
    Path("out.csv").write_text(text.replace(",0,", ",1,", 1))
    assert "out.csv: is not the file that out.run.json tells of" in workplace.fails("verify", "out.run.json")
    Path("out.csv").unlink()
    assert "out.csv: no such file" in workplace.fails("verify", "out.run.json")


def test_an_image_that_was_replaced_or_removed_is_found(workplace: Workplace) -> None:
    """Images that are no longer what they were are named, the first one in the error and all in the JSON."""
    predict(workplace, "out.csv")
    Image.new("RGB", (40, 40), (255, 0, 0)).save("images/2.png")
    message = workplace.fails("verify", "out.run.json")
    assert "out.csv: 1 of 9 sampled rows do not come out again; first: 2.png: " in message
    Path("images/0.png").unlink()
    found = verify(workplace, "out.run.json", code=1)
    assert found["reproduced"] == 7
    assert [image for image, _ in found["mismatches"]] == ["0.png", "2.png"]
    assert found["notes"] == ["the images (some file has another size)"]
    assert found["mismatches"][0][1] == "error none then, 'no such file or directory' now"


def test_another_model_or_other_counts_are_refused(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """Model and counts must be the files of the run; those that moved are found where the user says."""
    predict(workplace, "out.csv")
    Path("elsewhere").mkdir()
    for name in ("model.pth", "counts.json", "images"):
        shutil.move(name, f"elsewhere/{name}")
    assert "model.pth: the model file of the run is not there" in workplace.fails("verify", "out.run.json")
    moved = ["--model", "elsewhere/model.pth", "--counts", "elsewhere/counts.json"]
    assert "images: the images of the run are not there" in workplace.fails("verify", "out.run.json", *moved)
    assert verify(workplace, "out.run.json", *moved, "--images", "elsewhere/images")["reproduced"] == 9
    torch.save({name: tensor + 1 for name, tensor in checkpoint.items()}, "model.pth")
    assert "model.pth: is not the model file that out.run.json was made with" in workplace.fails(
        "verify", "out.run.json", *moved[2:], "--images", "elsewhere/images"
    )
    Path("counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 4}))
    assert "counts.json: is not the counts file" in workplace.fails(
        "verify", "out.run.json", *moved[:2], "--images", "elsewhere/images"
    )


def test_another_target_is_refused(workplace: Workplace) -> None:
    """A target distribution that changed since the run is refused."""
    Path("target.json").write_text(json.dumps({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}))
    predict(workplace, "out.csv", "--target", "target.json")
    assert verify(workplace, "out.run.json")["reproduced"] == 9
    Path("target.json").write_text(json.dumps({"a": 0.4, "b": 0.2, "c": 0.3, "d": 0.1}))
    assert "made with another target distribution" in workplace.fails("verify", "out.run.json")


def test_another_folder_works(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, even one with a model and images of that name, files are found beside the run file."""
    predict(workplace, "out.csv")
    other = workplace.folder / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    Path("model.pth").write_bytes(b"another")
    Path("images").mkdir()
    assert verify(workplace, "../out.run.json")["reproduced"] == 9


def test_options_of_the_run_are_taken_up(workplace: Workplace) -> None:
    """Preprocessing, correction and images of their own sizes are as the run had them."""
    Image.new("RGB", (50, 64), (200, 10, 10)).save("images/9.png")
    options = ("--preset", "none", "--resize", "none", "--crop", "none", "--std", "0.5,0.6,0.7", "--eps-space", "pixel")
    predict(workplace, "out.csv", *options, "--clip", "--steps", "2", "--tau", "0.3", "--target", "inverse")
    found = verify(workplace, "out.run.json")
    assert (found["reproduced"], found["notes"]) == (10, [])


@pytest.mark.parametrize("more", [(), ("--close-calls-only",)])
def test_a_run_in_auto_precision_reproduces(many: Workplace, more: tuple[str, ...]) -> None:  # noqa: F811
    """Bounds are those of the run, so that rows come out again in low precision, too."""
    predict(many, "out.csv", "--precision", "auto", *more, model="colours.pt", images="many")
    found = verify(many, "out.run.json", "--sample", "100", "--seed", "0")
    assert (found["total"], found["sampled"], found["reproduced"]) == (300, 100, 100)
    assert found["notes"] == []


def test_parts_and_merged_runs_reproduce(many: Workplace) -> None:  # noqa: F811
    """A part of a run can be verified, and the merged file, each row with the bounds of its part."""
    parts = predict_parts(many, ".csv", "--precision", "auto", n=3, model="colours.pt", images="many")
    found = verify(many, "part2.run.json", "--sample", "20")
    assert found["reproduced"] == found["sampled"] == 20
    assert many.run("merge", *parts, "-o", "merged.csv").code == 0
    found = verify(many, "merged.run.json", "--sample", "60")
    assert found["reproduced"] == found["sampled"] == 60
    assert found["total"] == 300


def test_an_empty_part_is_verified(workplace: Workplace) -> None:
    """A part that no image fell into has nothing that could not come out again."""
    names = [path.relative_to("images").as_posix() for path in Path("images").rglob("*.png")]
    empty = next(k for k in range(1, 41) if not any(Shard(k, 40).holds(name) for name in names))
    predict(workplace, "empty.csv", "--shard", f"{empty}/40")
    assert len(Path("empty.csv").read_text().splitlines()) == 1
    assert verify(workplace, "empty.csv")["sampled"] == 0


def test_other_versions_are_noted(workplace: Workplace) -> None:
    """What is other than in the run is said, and the rows are compared all the same."""
    predict(workplace, "out.csv")
    change_run("out.run.json", "versions", torch="1.0")
    finished = workplace.run("verify", "out.run.json")
    assert finished.code == 0, finished.err
    assert f"note: other than in the run: torch (1.0 then, {torch.__version__} now)" in finished.err


def test_what_is_no_run_file_is_said(workplace: Workplace) -> None:
    """A file that predict did not write is one line."""
    Path("no.run.json").write_text("{}")
    assert "no.run.json: schema is missing" in workplace.fails("verify", "no.run.json")
    assert "gone.run.json: cannot be read" in workplace.fails("verify", "gone.run.json")
    predict(workplace, "out.csv")
    run = json.loads(Path("out.run.json").read_text())
    for broken, message in (
        (run | {"schema": 1}, "is of another version"),
        (
            {key: value for key, value in run.items() if key != "predictor"},
            "out.run.json: predictor is missing; expected an object",
        ),
        (
            run | {"settings": run["settings"] | {"debias": {"new": 1}}},
            "out.run.json: settings.debias.method is missing; expected one of perturb",
        ),
    ):
        Path("out.run.json").write_text(json.dumps(broken))
        assert message in workplace.fails("verify", "out.run.json")

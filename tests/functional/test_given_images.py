"""Several IMAGES, from prediction to evaluation."""

from __future__ import annotations

import json
from pathlib import Path

from tests.functional.conftest import SMALL, Workplace
from tests.functional.test_predict import predict, rows


def test_several_images_are_predicted_as_the_folder_is(workplace: Workplace) -> None:
    """What a shell makes of `images/*` gives the folder's own file, byte for byte, on a second way round as well."""
    predict(workplace)
    whole = Path("predictions.csv").read_bytes()
    given = sorted(map(str, Path("images").iterdir()))
    assert len(given) == 6
    finished = workplace.run("predict", "model.pth", "counts.json", *given, "-o", "several.csv", *SMALL)
    assert finished.code == 0, finished
    assert "images: 9 in images/0.png, images/2.png, images/4.png and 3 more (named relative to images)" in finished.err
    assert Path("several.csv").read_bytes() == whole
    images = json.loads(Path("several.run.json").read_text())["images"]
    assert (images["source"], images["sources"], images["total"]) == ("images", given, 9)
    Path("labels.csv").write_text("image,label\n" + "".join(f"{row['image']},a\n" for row in rows("several.csv")))
    finished = workplace.run("evaluate", "several.csv", "--labels", "labels.csv", "--json")
    assert (finished.code, json.loads(finished.out)["n"]) == (0, 9)
    # The run can be checked, and a second time is the same run.
    assert workplace.run("verify", "several.run.json").code == 0
    again = workplace.run("predict", "model.pth", "counts.json", *given, "-o", "several.csv", "--resume", *SMALL)
    assert (again.code, "resumed: 9 of 9" in again.err) == (0, True), again


def test_parts_of_several_images_are_merged(workplace: Workplace) -> None:
    """A folder, a list and a file beside them, in two parts: each once, from the one folder that holds all."""
    Path("list.txt").write_text("images/0.png\nimages/missing.png\n")
    given = ("images/sub", "list.txt", "images/2.png")
    finished = workplace.run("predict", "model.pth", "counts.json", *given, "-o", "whole.csv", *SMALL)
    assert finished.code == 3
    names = [f"images/{name}.png" for name in ("0", "2", "missing", "sub/1", "sub/3", "sub/5", "sub/7")]
    assert [row["image"] for row in rows("whole.csv")] == names
    assert [row["error"] for row in rows("whole.csv") if row["error"]] == ["no such file or directory"]
    for part in ("1", "2"):
        options = ("--shard", f"{part}/2", "-o", f"part{part}.csv", *SMALL)
        assert workplace.run("predict", "model.pth", "counts.json", *given, *options).code in (0, 3)
    assert workplace.run("merge", "part1.csv", "part2.csv", "-o", "merged.csv").code in (0, 3)
    assert [row["pred"] for row in rows("merged.csv")] == [row["pred"] for row in rows("whole.csv")]


def test_a_recipe_leaves_all_arguments_to_the_images(workplace: Workplace) -> None:
    """Whatever their number; MODEL and COUNTS are told by COUNTS, which is JSON."""
    assert workplace.run("init", "model.pth", "counts.json", *SMALL).code == 0
    expected = ["0.png", "2.png", "4.png"]
    images = [f"images/{name}" for name in expected]
    for number in (2, 3):
        assert workplace.run("predict", *images[:number]).code == 0
        assert [row["image"] for row in rows("predictions.csv")] == expected[:number]
    Path("counts").write_bytes(Path("counts.json").read_bytes())
    assert workplace.run("predict", "model.pth", "counts", *images[:1]).code == 0
    assert len(rows("predictions.csv")) == 1
    assert "no images are given" in workplace.fails("predict", "model.pth", "counts.json", code=2)
    Path("imbperturb.toml").unlink()
    assert "no images are given" in workplace.fails("predict", *images[:2], code=2)
    message = workplace.fails("predict", "images", "model.pth", "counts.json")
    assert "counts.json: is no image (a .json file); the order is MODEL COUNTS IMAGES" in message
    swapped = workplace.fails("predict", "counts.json", "model.pth", "images", code=2)
    assert "counts.json: this is a JSON file in the model's place; the order is MODEL COUNTS IMAGES" in swapped

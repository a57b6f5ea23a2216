from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.data.demo_files import write_demo
from imbalance_perturb.selection.comparison.methods import TAU_GRID
from tests.functional.conftest import SMALL, Finished, Workplace

#: The columns of the demonstration that its model was trained with.
DIGITS = ("--preset", "none", "--resize", "64", "--mean", "0.5", "--std", "0.5")

QUICK = ("--eps-grid", "0.02,0.05", "--tau-grid", "0.5,1", "--folds", "3", "--repeats", "2")

METHODS = [
    "none",
    "perturb",
    "perturb-at",
    "la",
    "perturb+la",
    "tau-norm",
    "offsets",
    "p2p",
    "random-sign",
    "minus-eps",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "demo"
    write_demo(folder)
    return folder


def compare(workplace: Workplace, digits: Path, *more: str) -> Finished:
    model, counts, val = digits / "model.safetensors", digits / "counts.json", digits / "val"
    return workplace.run(
        "compare", str(model), str(counts), "--val", str(val), "--labels", str(digits / "val.csv"), *DIGITS, *more
    )


def test_all_methods_side_by_side_on_test_images(workplace: Workplace, digits: Path) -> None:
    """Tables with every method, its parameter, its cost and the advice, the JSON and the page; 80 columns are kept."""
    finished = compare(
        workplace, digits, "--test", str(digits / "images"), "--test-labels", str(digits / "labels.csv"), *QUICK,
        "--report", "compare.html",
    )  # fmt: skip
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert max(map(len, lines)) <= 80
    data = json.loads(Path("compare.json").read_text())
    for method in METHODS:
        # A step that adds nothing to logit adjustment is no method of its own.
        tables = 2 if data["methods"][method]["available"] else 1
        assert sum(line.split()[:1] == [method] for line in lines) == tables, method
        assert tables == 2 or (method, data["methods"][method]["reason"][:23]) == (
            "perturb+la",
            "no eps adds to la with ",
        )
    assert "…" not in finished.out
    assert "test images; parameters chosen on" in lines[0]
    assert list(data["methods"]) == METHODS
    assert {"files", "model", "counts_file", "settings", "preprocessing", "execution", "versions"} <= data.keys()
    assert data["counts"] != data["counts_file"]
    assert "perturbation: T 1000, cross-entropy, target log\nrunning on " in finished.err
    advised = data["advice"]
    assert " ".join(advised["sentence"].split()) in " ".join(finished.out.split())
    assert advised["sentence"].startswith(
        f"Use {advised['method']}" if advised["method"] != "none" else "Use the model"
    )
    none, la, backwards = (data["methods"][method] for method in ("none", "la", "minus-eps"))
    assert la["mcr"] > none["mcr"] > backwards["mcr"]
    page = Path("compare.html").read_text()
    assert advised["sentence"] in page.replace("&#x27;", "'").replace("&gt;", ">")
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "written: compare.json" in finished.err


def test_json_alone_goes_to_stdout(workplace: Workplace, digits: Path) -> None:
    """--json prints what is written; nothing else is on stdout; --methods leaves the others out."""
    finished = compare(workplace, digits, *QUICK, "--methods", "la,none", "--json", "--quiet", "-o", "other.json")
    assert finished.code == 0, finished.err
    data = json.loads(finished.out)
    assert data == json.loads(Path("other.json").read_text())
    assert list(data["methods"]) == ["none", "la"]
    assert data["scored_on"] == "validation"
    assert finished.err == ""
    assert not Path("compare.json").exists()


def test_the_same_seed_gives_the_same_comparison(workplace: Workplace, digits: Path) -> None:
    """All figures repeat to the last digit; only the measured speed may differ."""
    runs = []
    for _ in range(2):
        data = json.loads(compare(workplace, digits, *QUICK, "--methods", "la,p2p,tau-norm", "--json").out)
        for entry in data["methods"].values():
            entry.pop("images_per_second")
        runs.append(data)
    assert runs[0] == runs[1]


def test_a_single_value_is_used_as_it_is(workplace: Workplace, digits: Path) -> None:
    """--eps-grid and --tau-grid with one value compare methods at just those, with nothing chosen."""
    fixed = ("--eps-grid", "0.05", "--tau-grid", "0.75", "--methods", "perturb,la,perturb+la", "--json")
    data = json.loads(compare(workplace, digits, *fixed).out)
    found = {method: entry["parameters"] for method, entry in data["methods"].items()}
    assert found == {
        "none": {},
        "perturb": {"eps": 0.05},
        "la": {"tau": 0.75},
        "perturb+la": {"eps": 0.05, "tau": 0.75},
    }
    assert all(entry["same_choice_in_splits"] is None for entry in data["methods"].values())


def test_model_and_counts_may_come_from_the_recipe(workplace: Workplace, digits: Path) -> None:
    """With a recipe only the images are named; a broken image ends in exit code 3 and a note."""
    model, counts = str(digits / "model.safetensors"), str(digits / "counts.json")
    assert workplace.run("init", model, counts, *DIGITS).code == 0
    rows = (digits / "val.csv").read_text().splitlines()
    head, *rest = rows
    image, label = head.split(",").index("image"), head.split(",").index("label")
    lines = [row.split(",") for row in rest]
    Path("broken.png").write_text("broken")
    listed = [f"{digits / 'val' / cells[image]},{cells[label]}" for cells in lines]
    first = lines[0][label]
    Path("val.csv").write_text("\n".join(["image,label", f"broken.png,{first}", *listed]) + "\n")
    finished = workplace.run("compare", "--val", "val.csv", *QUICK, "--methods", "la")
    assert finished.code == 3, finished.err
    assert "1 images could not be used and are in no figure (first: broken.png: not an image" in finished.err


@pytest.fixture
def labelled(workplace: Workplace) -> Workplace:
    """The workplace with a class folder for each of its four classes, six images each."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        for index in range(6):
            path = Path("val") / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return workplace


def test_class_folders_serve_as_labels(labelled: Workplace) -> None:
    """--val with a folder of class folders needs no labels file."""
    finished = labelled.run("compare", "model.pth", "counts.json", "--val", "val", *SMALL, *QUICK)
    assert finished.code == 0, finished.err
    assert "24 validation images" in finished.out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--eps", "0.01"), 2, "--eps is chosen by compare: give the steps to try as --eps-grid"),
        (("--tau", "1"), 2, "--tau is chosen by compare: give the strengths to try as --tau-grid"),
        (("--steps", "2"), 2, "methods are compared with one step"),
        (("--eps-grid", "a,b"), 2, "eps-grid is 'a,b'; expected numbers"),
        (("--tau-grid", "-1,2"), 2, "tau-grid is -1.0, 2.0; expected numbers, at least 0"),
        (("--methods", "la,magic"), 2, "methods has magic; expected some of none, perturb, perturb-at, la"),
        (("--objective", "auc"), 2, "objective is 'auc'; expected one of mcr"),
        (("--folds", "1"), 2, "folds is 1; expected a whole number, at least 2"),
        (("--confidence-level", "2"), 2, "confidence-level is 2"),
        (("--test-labels", "x.csv"), 2, "--test-labels is given without --test"),
        (("--folds", "25"), 1, "val: 24 labelled images cannot be split into 25 folds"),
        (("-o", "nowhere/c.json"), 1, "there is no folder nowhere"),
        (("-o", "c.csv"), 1, "the suffix names no format; use .json"),
        (("--report", "c.pdf"), 1, "the suffix names no format; use .html"),
        (("--test", "val"), 1, "24 of its images are in val too"),
        (("--labels", "nothing.csv"), 1, "nothing.csv: no such file"),
    ],
)
def test_wrong_use_is_one_line(labelled: Workplace, options: tuple[str, ...], code: int, message: str) -> None:
    """Each mistake ends in one line that says what and what to do, before the model runs, and writes nothing."""
    assert message in labelled.fails("compare", "model.pth", "counts.json", "--val", "val", *SMALL, *options, code=code)


def test_labels_that_cannot_serve_are_refused(labelled: Workplace) -> None:
    """Missing labels, unknown classes, doubles, empty files, and a single class: each is one line with names."""
    names = [f"{name}/{index}.png" for name in "abcd" for index in range(6)]

    def fails(text: str) -> str:
        Path("l.csv").write_text(text)
        return labelled.fails("compare", "model.pth", "counts.json", "--val", "val", "--labels", "l.csv", *SMALL)

    assert "no label for 23 of 24 images in val (first: a/1.png" in fails("image,label\na/0.png,a\n")
    unknown = fails("image,label\n" + "".join(f"{name},z\n" for name in names))
    assert "labels that are no class: z; the classes are a, b, c, d" in unknown
    assert "l.csv, line 3: a/0.png is there already, in line 2" in fails("image,label\na/0.png,a\na/0.png,b\n")
    assert "l.csv: is empty" in fails("")
    assert "l.csv: labels no image" in fails("image,label\n")
    assert "val: all labelled images are of one class" in fails(
        "image,label\n" + "".join(f"{name},a\n" for name in names)
    )
    Path("val/e").mkdir()
    Path("val/a/0.png").rename("val/e/0.png")
    message = labelled.fails("compare", "model.pth", "counts.json", "--val", "val", *SMALL)
    assert "class folders that are no class: e" in message


def test_groups_in_folds_intervals_and_tests(workplace: Workplace, digits: Path, tmp_path: Path) -> None:
    """--group: the comparison is by groups of validation and test images, and says so, and which are in both."""
    for name, start in (("val.csv", 0), ("labels.csv", 5)):
        lines = (digits / name).read_text().splitlines()
        grouped = [f"{line},w{start + index // 8}" for index, line in enumerate(lines[1:])]
        (tmp_path / name).write_text("\n".join([f"{lines[0]},writer", *grouped]) + "\n")
    more = ("--labels", str(tmp_path / "val.csv"), "--group", "writer", "--methods", "la,offsets", "--report", "c.html")
    finished = compare(workplace, digits, *QUICK, *more)
    assert finished.code == 0, finished.err
    data = json.loads(Path("compare.json").read_text())
    assert data["group"] == {"column": "writer", "groups": -(-data["n"] // 8), "largest": 8}
    text = f"Intervals and tests are by {data['group']['groups']:,} groups of writer"
    assert text in finished.out
    assert text in Path("c.html").read_text()
    assert {data["methods"]["la"]["difference"][name]["test"] for name in ("mcr", "scr", "accuracy")} == {
        "paired permutation of groups"
    }
    tested = ("--test", str(digits / "images"), "--test-labels", str(tmp_path / "labels.csv"))
    finished = compare(workplace, digits, *QUICK, *more, *tested)
    assert finished.code == 0, finished.err
    assert "groups of writer have images in " in finished.err
    assert json.loads(Path("compare.json").read_text())["group"]["column"] == "writer"
    tested = ("--test", str(digits / "images"), "--test-labels", str(digits / "labels.csv"))
    assert "has no column 'writer'" in compare(workplace, digits, *QUICK, *more, *tested).err


def test_the_help_says_how_many_tau_are_tried(workplace: Workplace) -> None:
    """The number in the help of --tau-grid is that of the grid."""
    text = " ".join(workplace.run("compare", "--help").out.replace("│", " ").split())
    assert f"(default: {len(TAU_GRID)} from 0 to {TAU_GRID[-1]:g})" in text

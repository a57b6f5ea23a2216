from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from imbalance_perturb.config.recipe import load_recipe
from tests.biased import PLAIN, write_biased
from tests.functional.conftest import Workplace

TUNE = ("tune-eps", "model.pt", "counts.json", "--val", "val", *PLAIN, "--repeats", "2")
GRID = ("--eps-grid", "0.01,0.05,0.2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Workplace:
    write_biased(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Workplace(tmp_path, capsys)


def write_labels(place: Workplace, rows: list[tuple[str, str]], name: str = "val.csv") -> None:
    with (place.folder / name).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label"])
        writer.writerows(rows)


def all_labels(place: Workplace, prefix: str = "") -> list[tuple[str, str]]:
    paths = sorted((place.folder / "val").rglob("*.png"))
    return [(prefix + path.relative_to(place.folder / "val").as_posix(), path.parent.name) for path in paths]


def test_the_choice_its_table_and_its_files(place: Workplace) -> None:
    """One command: table and choice on stdout, JSON, plot and page written, and what to do with it on stderr."""
    finished = place.run(*TUNE, *GRID, "--plot", "p.png", "--report", "r.html", "-o", "t.json")
    assert finished.code == 0, finished
    assert re.search(r"^ *0\.05 +1\.0000 +1\.0000 .*<- *$", finished.out, re.MULTILINE), finished.out
    text = " ".join(finished.out.split())
    assert "Chosen: eps 0.05, which has the best class-balanced Brier score, more than chance gives (adjusted p" in text
    assert "chosen in 10 of 10 splits" in text
    assert max(map(len, finished.out.splitlines())) <= 80
    assert "trying: 3 corrections" in finished.err
    assert "1 + 1 + 3 passes an image" in finished.err
    assert "written: t.json, p.png, r.html" in finished.err
    assert "predict ... --eps 0.05 --temperature 1000 --loss cross-entropy" in finished.err
    data = json.loads((place.folder / "t.json").read_text())
    assert data["choice"]["eps"] == 0.05
    assert {"images", "model", "counts", "settings", "preprocessing", "execution", "versions"} <= data.keys()
    assert "batches of" in finished.err
    assert "; network: " in finished.err
    assert (place.folder / "p.png").read_bytes().startswith(b"\x89PNG")
    page = (place.folder / "r.html").read_text()
    assert "Chosen: eps 0.05" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert not list(place.folder.glob("*.partial"))


def test_json_alone_is_on_stdout_and_quiet_is_quiet(place: Workplace) -> None:
    """--json --quiet: the JSON that is in the file, and nothing else."""
    finished = place.run(*TUNE, *GRID, "--json", "--quiet")
    assert finished.code == 0
    assert finished.err == ""
    assert json.loads(finished.out) == json.loads((place.folder / "tune-eps.json").read_text())


def test_wide_terminals_get_errors_and_splits(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 120 columns the table also has the standard error of each gain and the splits in which it was chosen."""
    monkeypatch.setenv("COLUMNS", "120")
    out = place.run(*TUNE, *GRID).out
    assert "± 1 SE" in out
    assert "splits" in out
    assert max(map(len, out.splitlines())) <= 120


def test_losses_and_temperatures_share_the_forward_pass(place: Workplace) -> None:
    """Two losses and two temperatures: one table each, 1 forward, 4 backward and 4 x 2 final passes a batch."""
    more = ("--eps-grid", "0.01,0.05", "--losses", "mse,cross-entropy", "--temperatures", "1,1000")
    finished = place.run(*TUNE, *more, "--batch-size", "100", "--plot", "p.png", "--report", "r.html")
    assert finished.code == 0, finished
    assert finished.out.count("Sweep over eps") == 4
    data = json.loads((place.folder / "tune-eps.json").read_text())
    assert data["passes"] == {"forward": 1, "backward": 4, "final": 8}
    assert data["choice"]["eps"] == 0.05


def test_the_recipe_gets_the_choice_and_predict_uses_it(place: Workplace) -> None:
    """MODEL and COUNTS from the recipe; afterwards its [debias] has the eps, and `predict` runs with it."""
    assert place.run("init", "model.pt", "counts.json", "--preset", "none").code == 0
    before = (place.folder / "imbperturb.toml").read_text()
    finished = place.run("tune-eps", "--val", "val", *GRID, "--losses", "mse", "--repeats", "2", "--workers", "0")
    assert finished.code == 0, finished
    assert "recipe: imbperturb.toml: [debias] now has eps = 0.05, loss = mse" in finished.err
    tables = load_recipe(place.folder / "imbperturb.toml")
    assert (tables["debias"]["eps"], tables["debias"]["loss"]) == (0.05, "mse")
    assert (place.folder / "imbperturb.toml").read_text().splitlines()[:3] == before.splitlines()[:3]
    assert place.run("predict", "val", "--workers", "0").code == 0
    run = json.loads((place.folder / "predictions.run.json").read_text())
    assert run["settings"]["debias"]["eps"] == 0.05
    with (place.folder / "predictions.csv").open() as stream:
        assert all(row["image"].startswith(row["pred"] + "/") for row in csv.DictReader(stream))


def test_a_recipe_of_another_preprocessing_is_left_alone(place: Workplace) -> None:
    """An eps tuned with other preprocessing than the recipe's is not written into it."""
    assert place.run("init", "model.pt", "counts.json", "--preset", "none").code == 0
    before = (place.folder / "imbperturb.toml").read_bytes()
    finished = place.run(
        "tune-eps", "--val", "val", *GRID, "--mean", "0,0,0", "--std", "1,1,2", "--repeats", "1", "--workers", "0"
    )
    assert finished.code == 0
    assert "imbperturb.toml is left as it is" in finished.err
    assert (place.folder / "imbperturb.toml").read_bytes() == before


def test_labels_from_a_csv_serve_like_class_folders(place: Workplace) -> None:
    """A folder with --labels, and a CSV with image and label as --val, give the choice that class folders give."""
    write_labels(place, all_labels(place), "labels.csv")
    write_labels(place, all_labels(place, "val/"), "val.csv")
    assert place.run(*TUNE, *GRID, "-o", "1.json").code == 0
    assert place.run(*TUNE, *GRID, "-o", "2.json", "--labels", "labels.csv").code == 0
    assert place.run(*TUNE, *GRID, "-o", "3.json", "--val", "val.csv").code == 0
    first, second, third = (json.loads((place.folder / f"{i}.json").read_text())["sweep"] for i in (1, 2, 3))
    assert first == second == third


def test_no_correction_is_said_and_written(place: Workplace) -> None:
    """Where no eps helps the answer is 0, with its reason, exit code 0, and the recipe gets eps 0."""
    assert place.run("init", "model.pt", "counts.json", "--preset", "none").code == 0
    finished = place.run("tune-eps", "--val", "val", "--eps-grid", "1e-6,1e-5", "--repeats", "1", "--workers", "0")
    assert finished.code == 0
    assert "Chosen: eps 0, no correction: no eps changed a single prediction" in " ".join(finished.out.split())
    assert load_recipe(place.folder / "imbperturb.toml")["debias"]["eps"] == 0


def test_broken_images_are_named_and_left_out(place: Workplace) -> None:
    """Exit code 3, the choice is made all the same, and the image is named with the reason."""
    (place.folder / "val" / "rare" / "03.png").write_text("broken")
    finished = place.run(*TUNE, *GRID)
    assert finished.code == 3
    assert "note: 1 images could not be used and are left out: rare/03.png: not an image" in finished.err
    data = json.loads((place.folder / "tune-eps.json").read_text())
    assert data["failed"] == {"rare/03.png": "not an image in a known format"}
    assert data["choice"]["eps"] == 0.05


def test_costs_are_an_objective(place: Workplace) -> None:
    """--costs: the choice is by the cost-weighted score, and the expected cost stands before and after."""
    (place.folder / "costs.json").write_text(json.dumps({"common": {"rare": 1}, "rare": {"common": 10}}))
    finished = place.run(*TUNE, *GRID, "--costs", "costs.json", "--plot", "p.png", "--report", "r.html")
    assert finished.code == 0, finished
    text = " ".join(finished.out.split())
    assert "Chosen: eps 0.05, which has the best cost-weighted Brier score" in text
    assert re.search(r"this way of choosing takes expected cost from [1-9.]+[0-9]* to 0\.0000", text), text
    assert "cost" in finished.out.splitlines()[2]
    assert max(map(len, finished.out.splitlines())) <= 80
    data = json.loads((place.folder / "tune-eps.json").read_text())
    assert data["sweep"][0]["cost"] == data["held_out"]["cost"]["base"] > 0
    assert data["held_out"]["cost"]["tuned"] == 0
    assert data["rule"]["objective"] == "cost"
    assert data["rule"]["costs"] == [[0, 1], [10, 0]]
    assert "expected cost" in (place.folder / "r.html").read_text()


def test_costs_that_cannot_be_used_end_in_one_line(place: Workplace) -> None:
    """Costs of other classes, and costs beside another objective, are a wrong use."""
    (place.folder / "costs.json").write_text("[[0, 1, 1], [1, 0, 1], [1, 1, 0]]")
    message = place.fails(*TUNE, "--costs", "costs.json", code=2)
    assert "costs.json: the costs have 3 entries for 2 classes" in message
    message = place.fails(*TUNE, "--costs", "costs.json", "--objective", "scr", code=2)
    assert "--costs is an objective of its own; leave --objective scr out" in message


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--eps", "0.1"), 2, "eps is what tune-eps chooses: leave --eps out"),
        (("--temperature", "5", "--temperatures", "1,5"), 2, "--temperature and --temperatures are both given"),
        (("--loss", "mse", "--losses", "mse,focal"), 2, "--loss and --losses are both given"),
        (("--eps-grid", "0.1,x"), 2, "eps-grid is '0.1,x'; expected numbers separated by commas"),
        (("--eps-grid", "0"), 2, "eps-grid has no value above 0"),
        (("--losses", "kl"), 2, "losses has 'kl'"),
        (("--objective", "auc"), 2, "objective is 'auc'; expected one of mcr, scr, worst, gmean"),
        (("--max-accuracy-drop", "1.5"), 2, "max-accuracy-drop is 1.5"),
        (("--folds", "1"), 2, "folds is 1"),
        (("--folds", "500"), 1, "60 labelled images cannot be split into 500 folds"),
        (("--steps", "3"), 2, "steps is 3; all eps are tried with one gradient"),
        (("-o", "t.csv"), 1, "t.csv: the suffix names no format; use .json"),
        (("-o", "no/t.json"), 1, "no/t.json: there is no folder no"),
        (("--plot", "p.pdf"), 1, "p.pdf: the suffix names no format; use .png"),
        (("--report", "r.txt"), 1, "r.txt: the suffix names no format; use .html or .htm"),
        (("--val", "none"), 1, "none: no such file or folder"),
        (("--labels", "none.csv"), 1, "none.csv: no such file or folder"),
    ],
)
def test_wrong_options_end_in_one_line(place: Workplace, more: tuple[str, ...], code: int, message: str) -> None:
    """What cannot be done is refused before the model runs, and nothing is written."""
    assert message in place.fails(*TUNE, *more, code=code)


def test_labels_that_do_not_serve_end_in_one_line(place: Workplace) -> None:
    """Missing labels with count and names, unknown classes with both lists, one class, an empty file."""
    rows = all_labels(place)
    write_labels(place, rows[2:], "labels.csv")
    message = place.fails(*TUNE, "--labels", "labels.csv")
    assert "no label for 2 of 60 images in val (first: common/00.png, common/01.png)" in message
    write_labels(place, [(image, label.replace("rare", "seldom")) for image, label in rows], "labels.csv")
    message = place.fails(*TUNE, "--labels", "labels.csv")
    assert "labels that are no class: seldom; the classes are common, rare" in message
    write_labels(place, [(image, "common") for image, _ in rows], "labels.csv")
    assert "all labelled images are of one class" in place.fails(*TUNE, "--labels", "labels.csv")
    (place.folder / "labels.csv").write_text("")
    assert "labels.csv: is empty" in place.fails(*TUNE, "--labels", "labels.csv")
    (place.folder / "val" / "seldom").mkdir()
    (place.folder / "val" / "rare" / "00.png").rename(place.folder / "val" / "seldom" / "00.png")
    assert "class folders that are no class: seldom; the classes are common, rare" in place.fails(*TUNE)


def test_the_smallest_class_needs_images_to_be_the_objective(place: Workplace) -> None:
    """--objective scr without an image of the smallest class is refused; with few it is warned about."""
    (place.folder / "counts.json").write_text(json.dumps({"common": 30, "rare": 900}))
    for path in (place.folder / "val" / "common").iterdir():
        if path.stem >= "06":
            path.unlink()
    finished = place.run(*TUNE, *GRID, "--objective", "scr")
    assert finished.code == 0
    assert "too few validation images to decide on common (6)" in finished.err
    assert "0 of the 6 images of common are predicted wrong without correction" in finished.err


def test_groups_stay_in_a_fold_and_widen_what_is_said(place: Workplace) -> None:
    """--group: folds, test and intervals are of whole groups, said everywhere; images that are alike tell less."""
    rows = all_labels(place)
    with (place.folder / "val.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "lesion"])
        writer.writerows([(*row, f"{row[1]}{index // 3}") for index, row in enumerate(rows)])
    alone, text = place.run(*TUNE, *GRID, "-o", "alone.json"), "Intervals and tests are by 20 groups of lesion"
    finished = place.run(*TUNE, *GRID, "--labels", "val.csv", "--group", "lesion", "--report", "r.html")
    assert finished.code == 0, finished
    assert text in finished.out
    assert text in (place.folder / "r.html").read_text()
    assert "of whole groups" in (place.folder / "r.html").read_text()
    assert "Images are taken as independent; --group COLUMN" in alone.out
    data, other = (json.loads((place.folder / name).read_text()) for name in ("tune-eps.json", "alone.json"))
    assert (other["group"], data["group"]) == (None, {"column": "lesion", "groups": 20, "largest": 3})
    assert [row["mcr"] for row in data["sweep"]] == [row["mcr"] for row in other["sweep"]]
    by_group, by_image = (max(row["p_value"] for row in each["sweep"] if row["eps"] == 0.05) for each in (data, other))
    assert by_group >= by_image
    low, high = data["held_out"]["mcr"]["ci95"]
    assert high - low > other["held_out"]["mcr"]["ci95"][1] - other["held_out"]["mcr"]["ci95"][0]


def test_groups_that_cannot_decide(place: Workplace) -> None:
    """Too few groups, no such column, or class folders for labels: one line before the model runs."""
    message = place.fails(*TUNE, *GRID, "--group", "lesion")
    assert "val: a folder of class folders has no column 'lesion'" in message
    rows = all_labels(place)
    text = "image,label,lesion\n" + "".join(f"{image},{label},{label}\n" for image, label in rows)
    (place.folder / "val.csv").write_text(text)
    message = place.fails(*TUNE, *GRID, "--labels", "val.csv", "--group", "lesion")
    assert "2 groups of images cannot be split into 5 folds" in message
    message = place.fails(*TUNE, *GRID, "--labels", "val.csv", "--group", "patient")
    assert "has no column 'patient' to group images by; its columns are image, label, lesion" in message

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_perturb import ClassCounts, PerturbedClassifier
from imbalance_perturb.cli.app import main
from imbalance_perturb.files.writing import FORMATS, sha256
from imbalance_perturb.predictions.run_file import run_path
from tests.run_files import make_run

CLASSES = {"nv": 900, "mel": 90, "df": 9}
ROWS = [
    # image, label, base, perturbed
    ("a.png", "nv", "nv", "nv"),
    ("b.png", "nv", "nv", "mel"),
    ("c.png", "nv", "nv", "nv"),
    ("sub/d.png", "mel", "nv", "mel"),
    ("sub/e.png", "mel", "mel", "mel"),
    ("sub/f.png", "df", "nv", "df"),
    ("sub/g.png", "df", "mel", "mel"),
]


class Finished(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


class Folder(NamedTuple):
    """A folder with ``predictions.csv``, ``predictions.run.json``, ``labels.csv`` and ``counts.json``."""

    path: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> Finished:
        """Run ``imbperturb evaluate`` with these arguments in the folder, its run files being of the predictions."""
        self.sign()
        return self.run_as_it_is(*arguments)

    def run_as_it_is(self, *arguments: str) -> Finished:
        """Run ``imbperturb evaluate`` with whatever is in the folder."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *arguments])
        out, err = self.capture.readouterr()
        return Finished(int(ended.value.code or 0), out, err)

    def json(self, *arguments: str) -> dict[str, Any]:
        """The JSON of a command that succeeds."""
        finished = self.run("--labels", "labels.csv", "--json", *arguments)
        assert finished.code == 0, finished.err
        return json.loads(finished.out)  # type: ignore[no-any-return]

    def fails(self, *arguments: str, code: int = 1) -> str:
        """The one-line message of a command that must fail, leaving every file as it was."""
        self.sign()
        before = self.contents()
        finished = self.run(*(arguments or ("--labels", "labels.csv")))
        assert finished.code == code, finished
        assert finished.out == ""
        assert len(finished.err.splitlines()) == 1, finished.err
        assert finished.err.startswith("imbperturb: error: ")
        assert self.contents() == before
        return finished.err.removeprefix("imbperturb: error: ").strip()

    def sign(self) -> None:
        """Put the hash of each predictions file into its run file, where that is one."""
        for path in self.path.iterdir():
            beside = run_path(path)
            if path.suffix in FORMATS and beside.is_file() and (text := beside.read_text()).startswith('{"schema"'):
                beside.write_text(json.dumps(json.loads(text) | {"predictions_sha256": sha256(path)}))

    def contents(self) -> dict[Path, bytes]:
        """Every file with its bytes."""
        return {path: path.read_bytes() for path in self.path.rglob("*") if path.is_file()}

    def write(self, name: str, text: str) -> None:
        """Replace a file."""
        (self.path / name).write_text(text, encoding="utf-8")


def write_predictions(path: Path, rows: Sequence[tuple[str, str, str, str]], probabilities: bool = False) -> None:
    columns = ["image", "base_pred", "base_confidence", "pred", "confidence", "changed", "error"]
    if probabilities:
        columns += [f"p_{name}" for name in CLASSES] + [f"base_p_{name}" for name in CLASSES]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for image, _, base, pred in rows:
            cells = [image, base, "0.8", pred, "0.6", int(base != pred), ""]
            if probabilities:
                cells += [0.6 if name == pred else 0.2 for name in CLASSES]
                cells += [0.8 if name == base else 0.1 for name in CLASSES]
            writer.writerow(cells)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Folder:
    write_predictions(tmp_path / "predictions.csv", ROWS)
    (tmp_path / "predictions.run.json").write_text(json.dumps(make_run(CLASSES).to_dict()))
    (tmp_path / "counts.json").write_text(json.dumps(CLASSES))
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{row[0]},{row[1]}\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Folder(tmp_path, capsys)


def test_json_alone_on_stdout(folder: Folder) -> None:
    """--json prints one JSON document on stdout, with the figures counted by hand."""
    data = folder.json()
    assert data["n"] == 7
    assert data["base"]["mcr"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert data["perturbed"]["mcr"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert (data["base"]["scr"], data["perturbed"]["scr"]) == (0.0, 0.5)
    assert data["difference"]["accuracy"]["value"] == pytest.approx(1 / 7)
    assert data["base"]["confusion_matrix"] == [[3, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert data["changed"] == {"total": 3, "gained": 2, "lost": 1, "still_wrong": 0}
    assert data["base"]["auc"] is None


def test_tables_on_stdout_notes_on_stderr(folder: Folder) -> None:
    """The terminal shows the figures on stdout, and what a reader must know on stderr."""
    finished = folder.run("--labels", "labels.csv")
    assert finished.code == 0
    for text in ("3 of 7 predictions changed", "MCR", "SCR (df)", "0.5000", "Confusion matrix, perturbed"):
        assert text in finished.out
    assert "note: fewer than 5 labelled images" in finished.err
    assert folder.run("--labels", "labels.csv", "--quiet").err == ""


def test_labels_from_class_folders(folder: Folder) -> None:
    """A folder of class folders serves as labels for predictions over the same folder."""
    rows = [(f"{label}/{image.replace('/', '_')}", label, base, pred) for image, label, base, pred in ROWS]
    write_predictions(folder.path / "predictions.csv", rows)
    for image, *_ in rows:
        (folder.path / "val" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder.path / "val" / image)
    finished = folder.run("--labels", "val", "--json")
    assert json.loads(finished.out)["changed"]["total"] == 3


def test_json_lines_and_csv_agree(folder: Folder) -> None:
    """Predictions in JSON Lines give the same figures as in CSV, probabilities included."""
    write_predictions(folder.path / "predictions.csv", ROWS, probabilities=True)
    from_csv = folder.json()
    with (folder.path / "predictions.csv").open() as stream:
        records = list(csv.DictReader(stream))
    lines = [
        {
            key: (None if key == "error" else float(value) if "_p_" in key or key.startswith("p_") else value)
            for key, value in record.items()
        }
        for record in records
    ]
    folder.write("p.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    folder.write("p.jsonl.run.json", (folder.path / "predictions.run.json").read_text())
    from_lines = folder.json("p.jsonl")
    assert from_csv["base"]["auc"] is not None
    del from_csv["predictions"], from_lines["predictions"]
    assert from_csv == from_lines


def test_report_and_plot(folder: Folder) -> None:
    """--report writes one HTML page with the settings of the run, --plot a PNG; nothing else is left."""
    before = folder.contents().keys()
    finished = folder.run("--labels", "labels.csv", "--report", "r.html", "--plot", "p.png")
    assert finished.code == 0
    assert {path.name for path in folder.contents().keys() - before} == {"r.html", "p.png"}
    page = (folder.path / "r.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "settings debias eps" in page
    with Image.open(folder.path / "p.png") as image:
        assert image.format == "PNG"


def write_class_files(folder: Folder) -> None:
    """Write ``shares.json``, as imbperturb shares does, and ``costs.json``."""
    folder.write("shares.json", json.dumps({"shares": {"nv": 0.5, "mel": 0.3, "df": 0.2}}))
    folder.write("costs.json", json.dumps({"nv": {"mel": 1, "df": 1}, "mel": {"nv": 9, "df": 2}, "df": [5, 5, 0]}))


def test_figures_in_use_as_json(folder: Folder) -> None:
    """--json has specificity, PPV and NPV of each class at the stated prevalence, calibration and expected costs."""
    write_predictions(folder.path / "predictions.csv", ROWS, probabilities=True)
    write_class_files(folder)
    plain = folder.json()
    data = folder.json("--prevalence", "shares.json", "--costs", "costs.json")
    assert plain["base"]["per_class"]["mel"]["ppv"] == plain["base"]["per_class"]["mel"]["precision"] == 0.5
    # Of the base: nv 3/3 right; mel 1/2, else nv; df 1/2 nv, 1/2 mel.
    assert data["base"]["per_class"]["mel"]["ppv"] == pytest.approx(0.3 * 0.5 / (0.3 * 0.5 + 0.2 * 0.5))
    assert data["base"]["per_class"]["nv"]["npv"] == 1.0
    assert data["base"]["per_class"]["nv"]["specificity"] == pytest.approx(2 / 4)
    assert data["costs"]["base"] == pytest.approx(0.3 * 0.5 * 9 + 0.2 * 5)
    assert data["costs"]["perturbed"] == pytest.approx(0.5 / 3 * 1 + 0.2 * 0.5 * 5)
    assert data["costs"]["difference"]["value"] == pytest.approx(data["costs"]["perturbed"] - data["costs"]["base"])
    assert data["prevalence"] == {"source": "given", "shares": {"nv": 0.5, "mel": 0.3, "df": 0.2}}
    assert plain["prevalence"]["shares"]["nv"] == pytest.approx(3 / 7)
    assert plain["costs"] is None
    # Four right with p 0.8, 0.1 and 0.1, three wrong.
    right, wrong = 0.2**2 + 2 * 0.1**2, 0.8**2 + 0.9**2 + 0.1**2
    assert data["base"]["calibration"]["brier"] == pytest.approx((4 * right + 3 * wrong) / 7)
    assert {"log_loss", "ece", "reliability"} <= data["perturbed"]["calibration"].keys()
    assert data["recall_gain"]["df"]["p_holm"] == 1.0


def test_figures_in_use_in_the_terminal(folder: Folder) -> None:
    """Within 80 columns stand what falls, calibration, costs, and predictive values where a prevalence is given."""
    write_predictions(folder.path / "predictions.csv", ROWS, probabilities=True)
    write_class_files(folder)
    plain = folder.run("--labels", "labels.csv").out
    assert "No class's recall falls significantly (exact McNemar, Holm-adjusted)." in plain
    assert "Brier score" in plain
    assert "Expected cost" not in plain
    assert "PPV" not in plain
    shown = folder.run("--labels", "labels.csv", "--prevalence", "shares.json", "--costs", "costs.json").out
    assert "Expected cost per image, at the shares given by --prevalence: 2.35 -> 0.6667" in shown
    assert "PPV and NPV at the shares given" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_recalls_that_fall_are_named(folder: Folder) -> None:
    """A class whose recall falls by more than chance, after Holm's adjustment, is named with its recalls."""
    rows = [(f"{i}.png", "nv", "nv", "mel" if i < 12 else "nv") for i in range(40)]
    rows += [(f"m{i}.png", "mel", "mel", "nv" if i < 2 else "mel") for i in range(10)]
    write_predictions(folder.path / "predictions.csv", rows)
    folder.write("labels.csv", "image,label\n" + "".join(f"{row[0]},{row[1]}\n" for row in rows))
    shown = " ".join(folder.run("--labels", "labels.csv", "--report", "r.html").out.split())
    said = "Recall falls on: nv (1.0000 -> 0.7000, p <0.001) (exact McNemar, Holm-adjusted)."
    assert said in shown
    assert "Recall falls on: nv" in (folder.path / "r.html").read_text()


def test_calibration_needs_probabilities(folder: Folder) -> None:
    """Without probabilities one line says which option gives them, in the terminal and on the page."""
    finished = folder.run("--labels", "labels.csv", "--report", "r.html")
    for text in (" ".join(finished.out.split()), (folder.path / "r.html").read_text()):
        assert "Calibration (Brier, log-loss, ECE) and AUC need probabilities: run predict with --probs." in text
    assert folder.json()["base"]["calibration"] is None


def test_report_and_plot_of_probabilities(folder: Folder) -> None:
    """With probabilities the page has a reliability curve, and the PNG a row of plots more."""
    heights = []
    for probabilities in (False, True):
        write_predictions(folder.path / "predictions.csv", ROWS, probabilities)
        assert folder.run("--labels", "labels.csv", "--report", "r.html", "--plot", "p.png").code == 0
        assert ("probability of the predicted class" in (folder.path / "r.html").read_text()) == probabilities
        with Image.open(folder.path / "p.png") as image:
            heights.append(image.height)
    assert heights[0] < heights[1]


def test_class_files_that_cannot_be_used(folder: Folder) -> None:
    """Bad shares and costs are a wrong use, in one line with the file's name."""
    folder.write("s.json", "[0.5, 0.5]")
    folder.write("c.json", "[[0, 1], [1, 0]]")
    message = folder.fails("--labels", "labels.csv", "--prevalence", "s.json", code=2)
    assert "s.json: the shares have 2 entries for 3 classes" in message
    message = folder.fails("--labels", "labels.csv", "--costs", "c.json", code=2)
    assert "c.json: the costs have 2 entries for 3 classes" in message
    assert "none.json: cannot be read" in folder.fails("--labels", "labels.csv", "--costs", "none.json", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--report", "r.pdf"), "r.pdf: the suffix names no format; use .html or .htm"),
        (("--plot", "p.svg"), "p.svg: the suffix names no format; use .png"),
        (("--plot", "none/p.png"), "none/p.png: there is no folder none"),
    ],
)
def test_outputs_are_checked_first(folder: Folder, arguments: tuple[str, str], message: str) -> None:
    """An output that cannot be written is refused before any work, and nothing is written."""
    assert message in folder.fails("--labels", "labels.csv", *arguments)


def test_confidence_level_names_its_key(folder: Folder) -> None:
    """Another level gives other intervals under its own key; percent is a wrong use."""
    assert "ci90" in folder.json("--confidence-level", "0.9")["difference"]["mcr"]
    assert "confidence-level is 95" in folder.fails("--labels", "labels.csv", "--confidence-level", "95", code=2)


def test_labels_of_a_part_are_scored_and_it_is_said(folder: Folder) -> None:
    """Images without a label are in no figure; how many of how many is in terminal, notes, JSON and report."""
    folder.write("labels.csv", "image,label\na.png,nv\nb.png,nv\nc.png,nv\n")
    said = "4 of 7 predicted images have no label and are in no figure (first: sub/d.png, sub/e.png, sub/f.png and"
    finished = folder.run("--labels", "labels.csv", "--report", "r.html")
    assert f"note: {said} 1 more)" in finished.err
    assert finished.out.startswith("Scored on 3 of 7 predicted images, those with a label.")
    page = (folder.path / "r.html").read_text()
    assert said in page
    assert "Scored on 3 of 7 predicted images" in page
    data = folder.json()
    assert (data["n"], data["unlabelled"], data["base"]["per_class"]["nv"]["support"]) == (3, 4, 3)
    assert any(said in note for note in data["notes"])


def test_names_that_never_match_get_a_hint(folder: Folder) -> None:
    """Labels that name images another way altogether are shown beside the predictions' names."""
    folder.write("labels.csv", "image,label\n1,nv\n2,nv\n")
    assert "the labels name images like 1: names must be the same" in folder.fails()


def test_labels_of_other_images_are_a_note(folder: Folder) -> None:
    """Labels of images that were not predicted are not used, and counted."""
    with (folder.path / "labels.csv").open("a") as stream:
        stream.write("other.png,nv\nmore.png,df\n")
    finished = folder.run("--labels", "labels.csv", "--json")
    assert "note: 2 labels are of images that predictions.csv does not have" in finished.err
    assert json.loads(finished.out)["unused_labels"] == 2


def test_unknown_labels_list_both(folder: Folder) -> None:
    """Labels that are no class are listed beside the classes."""
    folder.write("labels.csv", "image,label\na.png,nevus\nb.png,naevus\n")
    assert "labels that are no class: naevus, nevus; the classes are nv, mel, df" in folder.fails()


def test_unknown_predicted_classes_list_both(folder: Folder) -> None:
    """Predicted classes that are none of the counts are listed beside the classes."""
    write_predictions(folder.path / "predictions.csv", [("a.png", "", "x", "nv"), ("b.png", "", "nv", "y")])
    assert "predicts classes that are none of the counts: x, y; the classes are nv, mel, df" in folder.fails()


def test_class_folder_that_is_no_class(folder: Folder) -> None:
    """A class folder that COUNTS does not have is named."""
    for name in ("nv", "scar"):
        (folder.path / "val" / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder.path / "val" / name / "a.png")
    assert "class folders that are no class: scar" in folder.fails("--labels", "val")


def test_doubles_in_either_file(folder: Folder) -> None:
    """An image that stands twice in labels or predictions is an error with its name."""
    rows = (folder.path / "labels.csv").read_text()
    folder.write("labels.csv", rows + "a.png,df\n")
    assert "labels.csv, line 9: a.png is there already, in line 2" in folder.fails()
    folder.write("labels.csv", rows)
    write_predictions(folder.path / "predictions.csv", [*ROWS, ROWS[1]])
    assert "1 images stand more than once (first: b.png)" in folder.fails()


def test_other_counts_than_given(folder: Folder) -> None:
    """Counts that are not those of the run are refused, naming the difference."""
    arguments = ("--labels", "labels.csv", "--counts", "counts.json")
    assert folder.run(*arguments).code == 0
    folder.write("counts.json", json.dumps({**CLASSES, "df": 10}))
    message = folder.fails(*arguments)
    assert "made with other counts than given: class 'df' has 9 images in predictions.run.json, 10 in" in message
    folder.write("counts.json", json.dumps({"nv": 900, "mel": 90, "scar": 9}))
    assert "only predictions.run.json has the classes df, only counts.json has scar" in folder.fails(*arguments)
    folder.write("counts.json", json.dumps({"mel": 90, "nv": 900, "df": 9}))
    assert "class index 0 is 'nv' in predictions.run.json, 'mel' in counts.json" in folder.fails(*arguments)


def test_counts_serve_where_the_run_file_is_missing(folder: Folder) -> None:
    """Without a run file --counts says what the classes are, else the recipe; without either that is the error."""
    (folder.path / "predictions.run.json").unlink()
    assert "give them with --counts" in folder.fails()
    assert folder.json("--counts", "counts.json")["smallest_class"] == "df"
    folder.write("imbperturb.toml", '[model]\nmodel = "model.pth"\ncounts = "counts.json"\n')
    assert folder.json()["smallest_class"] == "df"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "predictions.run.json: is empty"),
        ("{", "predictions.run.json: is not JSON"),
        ("[]", "predictions.run.json: holds no JSON object; expected the file that predict or merge writes"),
        ("{}", "predictions.run.json: schema is missing; expected a whole number"),
        (json.dumps(make_run({"a": 1, "b": 0}).to_dict()), "predictions.run.json: the count of class 'b' is 0"),
    ],
)
def test_bad_run_files(folder: Folder, text: str, message: str) -> None:
    """A run file that is none is an error: SCR would be of another class."""
    folder.write("predictions.run.json", text)
    assert message in folder.fails()


@pytest.mark.parametrize("rows", [ROWS[:5], [(image, label, pred, base) for image, label, base, pred in ROWS]])
def test_run_file_of_another_run_is_refused(folder: Folder, rows: list[tuple[str, str, str, str]]) -> None:
    """Predictions that are not those of the run file beside them are refused, with the way out, which works."""
    folder.sign()
    assert folder.run_as_it_is("--labels", "labels.csv").code == 0
    write_predictions(folder.path / "predictions.csv", rows)
    for more in ((), ("--counts", "counts.json")):
        finished = folder.run_as_it_is("--labels", "labels.csv", *more)
        assert (finished.code, finished.out) == (1, "")
        assert finished.err == (
            "imbperturb: error: predictions.csv: is not the file that predictions.run.json tells of (its SHA-256"
            " differs): changed, cut off, or of another run; predict it again; if the change is meant, move"
            " predictions.run.json away and give --counts\n"
        )
    (folder.path / "predictions.run.json").rename(folder.path / "away.json")
    assert folder.run_as_it_is("--labels", "labels.csv", "--counts", "counts.json").code == 0


def test_the_run_file_is_of_the_format_that_is_evaluated(folder: Folder) -> None:
    """Beside predictions.csv, predictions.jsonl has no run file until it has one of its own."""
    row = dict(zip(("image", "label", "base_pred", "pred"), ROWS[0], strict=True))
    folder.write("predictions.jsonl", json.dumps(row | {"error": None}) + "\n")
    message = folder.fails("predictions.jsonl", "--labels", "labels.csv")
    assert "predictions.jsonl.run.json: no such file, so the training counts are not known" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "predictions.csv: is empty; expected CSV with the columns"),
        ("image,base_pred,pred,error\n", "holds no prediction"),
        ("image,pred\na.png,nv\n", "has no column 'base_pred' and no column 'error'"),
        ("image,base_pred,pred,error\na.png,nv,,\n", "line 2: a.png has neither a prediction nor an error"),
        ("image,base_pred,pred,error\n,nv,nv,\n", "line 2: the image is empty"),
        ("image,base_pred,pred,error\na.png,nv\n", "line 2: 2 cells"),
        (
            "image,base_pred,pred,error,p_nv\na.png,nv,nv,,0.5\n",
            "probabilities of some classes only (not there: base_p",
        ),
    ],
)
def test_bad_predictions(folder: Folder, text: str, message: str) -> None:
    """Each defect of a predictions file has its own message."""
    folder.write("predictions.csv", text)
    assert message in folder.fails()


def test_probabilities_that_are_none(folder: Folder) -> None:
    """A probability that is no number from 0 to 1 is named with its line and column."""
    write_predictions(folder.path / "predictions.csv", ROWS, probabilities=True)
    text = (folder.path / "predictions.csv").read_text()
    for wrong in ("nan", "1.5", "x"):
        folder.write("predictions.csv", text.replace("0.6,0.2,0.2", f"{wrong},0.2,0.2", 1))
        assert f"line 2: p_nv is {wrong!r}; expected a probability from 0 to 1" in folder.fails()


def test_json_lines_that_are_none(folder: Folder) -> None:
    """A line that is no row is named by its number."""
    folder.write("p.jsonl.run.json", (folder.path / "predictions.run.json").read_text())
    for text, message in (("{}\n", "line 1: has no image"), ('\n{"a"', "line 2: is not JSON"), ("[]", "has no image")):
        folder.write("p.jsonl", text)
        assert message in folder.fails("p.jsonl", "--labels", "labels.csv")


def test_missing_files(folder: Folder) -> None:
    """Missing predictions and missing labels are named; labels are not optional."""
    assert "none.csv: no such file; imbperturb predict makes it" in folder.fails("none.csv", "--labels", "labels.csv")
    assert "none: no such file or folder" in folder.fails("--labels", "none")
    assert folder.run().code == 2


def test_images_with_an_error_are_left_out_and_named(folder: Folder) -> None:
    """Rows with an error are in no figure, are counted and named, and give exit code 3."""
    with (folder.path / "predictions.csv").open("a") as stream:
        stream.write("z.png,,,,,,is truncated\n")
    with (folder.path / "labels.csv").open("a") as stream:
        stream.write("z.png,df\n")
    finished = folder.run("--labels", "labels.csv", "--json")
    assert finished.code == 3
    data = json.loads(finished.out)
    assert (data["n"], data["failed"]) == (7, {"total": 1, "images": ["z.png"]})
    assert "1 images have an error instead of a prediction and are in no figure (first: z.png)" in finished.err
    assert data["unused_labels"] == 0


def test_only_errors_leave_nothing_to_evaluate(folder: Folder) -> None:
    """Where every row has an error there is nothing to evaluate."""
    folder.write("predictions.csv", "image,base_pred,pred,error\na.png,,,broken\n")
    assert "there is no labelled image with a prediction" in folder.fails()


def test_one_class_only(folder: Folder) -> None:
    """Labels of one class are evaluated; the others are named as left out."""
    write_predictions(folder.path / "predictions.csv", ROWS[:3])
    data = folder.json()
    assert data["classes_without_labels"] == ["mel", "df"]
    assert data["base"]["scr"] is None
    assert data["base"]["mcr"] == 1.0


def test_no_torch_is_loaded(folder: Folder) -> None:
    """The command loads no torch, so it answers at once."""
    code = (
        "import sys; from imbalance_perturb.cli.app import main\n"
        "try: main(['evaluate', '--labels', 'labels.csv', '--quiet'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.mark.skin7
def test_skin7_fold_0_equals_the_reference(folder: Folder, shared_dir: Path, skin7_counts: ClassCounts) -> None:
    """Predictions of the Skin7 checkpoint on fold 0 evaluate to the reference figures, to four digits."""
    data = shared_dir / "data" / "skin7"
    with (data / "labels.csv").open() as stream:
        chosen = [(row["image"], row["label"]) for row in csv.DictReader(stream) if row["fold"] == "0"]
    checkpoint = shared_dir / "models" / "skin7_efficientnet_lite0.torchscript.pt"
    debiased = PerturbedClassifier(torch.jit.load(checkpoint).eval(), skin7_counts, eps=0.001)
    mean, std = (np.array(v, dtype=np.float32) for v in ((0.7626, 0.5453, 0.5714), (0.1404, 0.1519, 0.1685)))
    rows = []
    for start in range(0, len(chosen), 16):
        batch = chosen[start : start + 16]
        pixels = []
        for image, _ in batch:
            with Image.open(data / "images" / image) as opened:
                small = opened.convert("RGB").resize((112, 112), Image.Resampling.BILINEAR)
            pixels.append((np.asarray(small, dtype=np.float32) / 255 - mean) / std)
        base, perturbed = debiased.predict_both(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
        for (image, label), first, second in zip(batch, base.argmax(1), perturbed.argmax(1), strict=True):
            rows.append((image, label, skin7_counts.names[int(first)], skin7_counts.names[int(second)]))
    write_predictions(folder.path / "skin7.csv", rows)
    folder.write("labels.csv", "image,label\n" + "".join(f"{image},{label}\n" for image, label in chosen))
    folder.write("counts.json", json.dumps(skin7_counts.to_dict()))
    found = folder.json("skin7.csv", "--counts", "counts.json")
    for kind, mcr, scr, accuracy in (("base", 0.5903, 0.3913, 0.8079), ("perturbed", 0.6294, 0.5217, 0.8129)):
        assert found[kind]["mcr"] == pytest.approx(mcr, abs=5e-5)
        assert found[kind]["scr"] == pytest.approx(scr, abs=5e-5)
        assert found[kind]["accuracy"] == pytest.approx(accuracy, abs=5e-5)
    assert found["changed"]["total"] / found["n"] == pytest.approx(0.029, abs=5e-4)


def test_by_groups_of_a_column(folder: Folder) -> None:
    """--group reads the column, says by how many groups intervals and tests are, and leaves the figures as they are."""
    lines = [f"{row[0]},{row[1]},{lesion}" for row, lesion in zip(ROWS, "uuvwwxy", strict=True)]
    folder.write("labels.csv", "\n".join(["image,label,Lesion ID", *lines, ""]))
    alone, found = folder.json(), folder.json("--group", "Lesion ID")
    assert (alone["group"], found["group"]) == (None, {"column": "Lesion ID", "groups": 5, "largest": 2})
    assert {name: entry["value"] for name, entry in found["difference"].items()} == pytest.approx(
        {name: entry["value"] for name, entry in alone["difference"].items()}
    )
    assert found["difference"]["accuracy"]["test"] == "paired permutation of groups"
    for arguments, text in (
        ((), "Images are taken as independent; --group COLUMN if several show the same"),
        (("--group", "Lesion ID"), "Intervals and tests are by 5 groups of Lesion ID"),
    ):
        finished = folder.run("--labels", "labels.csv", "--report", "r.html", *arguments)
        assert text in finished.out
        assert text in (folder.path / "r.html").read_text()
    assert "McNemar" not in (folder.path / "r.html").read_text()


def test_figures_in_use_by_groups(folder: Folder) -> None:
    """Where images of one lesion are copies of each other, costs and PPV are less sure by groups than by images."""
    rows = [(f"{i}.png", label, base, pred) for i, (_, label, base, pred) in enumerate(ROWS * 12)]
    write_predictions(folder.path / "predictions.csv", rows)
    lines = [f"{row[0]},{row[1]},{i % len(ROWS)}-{i // len(ROWS) // 6}\n" for i, row in enumerate(rows)]
    folder.write("labels.csv", "image,label,lesion\n" + "".join(lines))
    write_class_files(folder)
    arguments = ("--prevalence", "shares.json", "--costs", "costs.json")
    alone, found = folder.json(*arguments), folder.json(*arguments, "--group", "lesion")

    def widths(data: dict[str, Any]) -> list[float]:
        entry = data["perturbed"]["per_class"]["mel"]
        ends = [data["costs"]["difference"]["ci95"], entry["ppv_ci95"], entry["specificity_ci95"]]
        return [high - low for low, high in ends]

    assert found["costs"]["base"] == alone["costs"]["base"]
    assert all(wide > 1.2 * narrow for wide, narrow in zip(widths(found), widths(alone), strict=True))


def test_groups_that_cannot_be_read(folder: Folder) -> None:
    """A column that is not there, an empty cell, and labels without columns are one line each, with what to do."""
    assert "has no column 'lesion' to group images by; its columns are image, label" in folder.fails(
        "--labels", "labels.csv", "--group", "lesion"
    )
    folder.write("labels.csv", "image,label,lesion\na.png,nv,u\nb.png,nv, \n")
    assert "line 3: lesion is empty; give each image a group, one of its own" in folder.fails(
        "--labels", "labels.csv", "--group", "lesion"
    )
    (folder.path / "val" / "nv").mkdir(parents=True)
    Image.new("L", (2, 2)).save(folder.path / "val" / "nv" / "a.png")
    assert "a folder of class folders has no column 'lesion'" in folder.fails("--labels", "val", "--group", "lesion")

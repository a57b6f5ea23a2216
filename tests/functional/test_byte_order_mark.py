"""The byte-order mark by which Excel knows a CSV for UTF-8: by option, and read over by everything."""

from __future__ import annotations

import codecs
import csv
import json
import re
from pathlib import Path

import pytest

import imbalance_perturb.inference.folder_prediction
from tests.functional.conftest import SMALL, Finished, Workplace


def predict(workplace: Workplace, *more: str) -> Finished:
    return workplace.run("predict", "model.pth", "counts.json", "images", *SMALL, "--batch-size", "2", *more)


def test_bom_is_all_that_differs(workplace: Workplace) -> None:
    """--bom puts the mark before the same bytes, the run file says so, and every reader takes both."""
    assert predict(workplace, "-o", "plain.csv", "--probs").code == 0
    assert predict(workplace, "-o", "marked.csv", "--probs", "--bom").code == 0
    assert Path("marked.csv").read_bytes() == codecs.BOM_UTF8 + Path("plain.csv").read_bytes()
    runs = [json.loads(Path(f"{name}.run.json").read_text())["output"] for name in ("plain", "marked")]
    assert runs == [{"format": ".csv", "probabilities": True, "bom": bom} for bom in (False, True)]
    with Path("labels.csv").open("w", newline="") as stream:
        names = [row["image"] for row in csv.DictReader(Path("plain.csv").read_text().splitlines())]
        csv.writer(stream).writerows([("image", "label"), *((name, "a") for name in names)])
    shown = [
        workplace.run("evaluate", f"{name}.csv", "--labels", "labels.csv", "--json") for name in ("plain", "marked")
    ]
    figures = [json.loads(each.out)["base"] for each in shown]
    assert figures[0] == figures[1]
    verified = json.loads(workplace.run("verify", "marked.run.json", "--json").out)
    assert (verified["identical"], verified["notes"]) == (9, [])
    # A list of images may be a predictions file.
    Path("marked.csv").rename("images/list.csv")
    assert workplace.run("predict", "model.pth", "counts.json", "images/list.csv", *SMALL).code == 0


def test_bom_of_merged_parts(workplace: Workplace) -> None:
    """Merged parts are what one run with the same option writes; merge adds the mark where it is asked for."""
    for bom in ((), ("--bom",)):
        name = "marked" if bom else "plain"
        predict(workplace, "-o", f"{name}.csv", *bom)
        for part in (1, 2):
            predict(workplace, "-o", f"{name}{part}.csv", "--shard", f"{part}/2", *bom)
        assert workplace.run("merge", f"{name}1.csv", f"{name}2.csv", "-o", "merged.csv").code == 0
        assert Path("merged.csv").read_bytes() == Path(f"{name}.csv").read_bytes()
        assert workplace.run("merge", f"{name}1.csv", f"{name}2.csv", "-o", "merged.csv", "--bom").code == 0
        assert Path("merged.csv").read_bytes() == codecs.BOM_UTF8 + Path("plain.csv").read_bytes()
        assert json.loads(Path("merged.run.json").read_text())["output"]["bom"]
    assert "is not of the run" in workplace.fails("merge", "plain1.csv", "marked2.csv", "-o", "mixed.csv")


def test_bom_of_a_resumed_run(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run cut off goes on with the same option alone, and ends in the same bytes."""
    predict(workplace, "-o", "whole.csv", "--bom")
    commit = imbalance_perturb.inference.folder_prediction.Journal.commit

    def cut_off(journal: object, state: object) -> None:
        commit(journal, state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(imbalance_perturb.inference.folder_prediction.Journal, "commit", cut_off)
        assert predict(workplace, "--bom").code == 130
    assert Path("predictions.csv.partial").read_bytes().startswith(codecs.BOM_UTF8)
    script = ("predict", "model.pth", "counts.json", "images", *SMALL, "--batch-size", "2")
    assert "different: bom (True then, False now)" in workplace.fails(*script, "--resume")
    assert re.search("resumed: [1-8] of 9 ", predict(workplace, "--bom", "--resume").err)
    assert Path("predictions.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_bom_is_of_csv_alone(workplace: Workplace) -> None:
    """Of the other formats none knows such a mark: it is refused before any work."""
    script = ("predict", "model.pth", "counts.json", "images", *SMALL)
    for name in ("p.jsonl", "p.parquet"):
        assert "--bom is for CSV alone" in workplace.fails(*script, "-o", name, "--bom", code=2)
        assert "--bom is for CSV alone" in workplace.fails("merge", name, "-o", f"whole{name}", "--bom", code=2)

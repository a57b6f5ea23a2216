"""The scripts under ``examples/`` do what they say."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_whole_job_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python example tunes, predicts, evaluates and compares, and its figures are of the file it wrote."""
    runpy.run_path(str(EXAMPLES / "digits_in_python.py"))["main"]([str(tmp_path / "work")])
    shown = capsys.readouterr().out
    assert "Chosen: eps 0.0" in shown
    assert "comparison: " in shown
    with (tmp_path / "work" / "predictions.csv").open(newline="") as stream:
        preds = {row["image"]: row["pred"] for row in csv.DictReader(stream)}
    with (tmp_path / "work" / "labels.csv").open(newline="") as stream:
        labels = {row["image"]: row["label"] for row in csv.DictReader(stream)}
    # Each digit has as many images, so the mean class recall is the accuracy.
    mcr = sum(preds[image] == label for image, label in labels.items()) / len(labels)
    assert f"-> {mcr:.4f}: " in shown

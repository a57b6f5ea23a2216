from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imbalance_perturb.evaluation.metrics import SparseMatrix
from imbalance_perturb.evaluation.results import MOST_MATRIX_CLASSES
from tests.functional.conftest import Finished, Workplace

LABELS = Path("labels.csv")


def evaluate(workplace: Workplace, classes: int, *more: str) -> Finished:
    """Evaluate made predictions of three images of each class."""
    random = np.random.default_rng(0)
    labels = np.arange(3 * classes) % classes
    base = np.where(random.random(len(labels)) < 0.6, labels, random.integers(0, classes, len(labels)))
    preds = np.where(random.random(len(labels)) < 0.9, base, labels)
    names = [f"class{index:04d}" for index in range(classes)]
    Path("counts.json").write_text(json.dumps({name: 2 + (7 * index) % 500 for index, name in enumerate(names)}))
    rows = list(enumerate(zip(labels, base, preds, strict=True)))
    lines = [f"{i}.png,{names[b]},0.5,{names[p]},0.5,{int(b != p)}," for i, (_, b, p) in rows]
    Path("predictions.csv").write_text(
        "\n".join(["image,base_pred,base_confidence,pred,confidence,changed,error", *lines, ""])
    )
    LABELS.write_text("image,label\n" + "".join(f"{i}.png,{names[label]}\n" for i, (label, *_) in rows))
    finished = workplace.run("evaluate", "--labels", str(LABELS), "--counts", "counts.json", *more)
    assert finished.code == 0, finished.err
    return finished


def test_output_grows_with_the_classes_not_their_square(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above some hundred classes cells stand for matrices, no matrix is ever made, and tables have some classes."""

    def refuse(matrix: SparseMatrix) -> None:
        raise AssertionError(f"a matrix over {matrix.num_classes} classes")

    monkeypatch.setattr(SparseMatrix, "to_array", refuse)
    data = json.loads(evaluate(workplace, 1400, "--json", "--report", "r.html", "--plot", "p.png").out)
    for kind in ("base", "perturbed"):
        assert data[kind]["confusion_matrix"] is None
        cells = np.array(data[kind]["confusion_cells"])
        assert cells[:, 2].sum() == data["n"] == 4200
        assert cells[cells[:, 0] == cells[:, 1], 2].sum() / 4200 == pytest.approx(data[kind]["accuracy"])
        assert len(data[kind]["per_class"]) == 1400
    assert "so many classes the intervals of means rest on fewer resamples: 4,761 for a difference" in data["notes"][-1]
    page = Path("r.html").read_text()
    assert len(page) < 300_000
    assert "of 1,400 classes: the 100 with the lowest recall (perturbed) and the 100 with" in page
    assert "Not drawn above 300 classes" in page
    assert 200 < page.count("<td>class") <= 400  # in each of two tables
    assert Path("p.png").stat().st_size < 500_000


def test_the_terminal_names_the_worst_and_the_smallest(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty classes at most, in the order of their training images, and a line on where the others stand."""
    monkeypatch.setenv("COLUMNS", "160")
    out = evaluate(workplace, 301).out
    shown = [line.split() for line in out.splitlines() if line.startswith(" class0")]
    data = json.loads(evaluate(workplace, 301, "--json").out)["perturbed"]["per_class"]
    recalls = {name: data[name]["recall"] for name in data}
    worst = sorted(recalls.values())[:20]
    assert sorted(recalls[name] for name, *_ in shown)[:20] == worst
    counts = json.loads(Path("counts.json").read_text())
    assert set(sorted(counts, key=lambda name: counts[name])[:19]) <= {name for name, *_ in shown}
    assert 20 < len(shown) <= 40
    assert [int(count) for _, count, *_ in shown] == sorted((counts[name] for name, *_ in shown), reverse=True)
    assert f"Shown are {len(shown)} of 301 classes: the 20 with the lowest recall" in out
    assert "Confusion matrices are not shown above 300 classes: --json has their cells." in out


def test_usual_numbers_of_classes_have_all(workplace: Workplace) -> None:
    """Up to the limit the matrix is there in full, under the key that it always had, and no cells are."""
    data = json.loads(evaluate(workplace, MOST_MATRIX_CLASSES, "--json", "--report", "r.html").out)
    assert np.array(data["base"]["confusion_matrix"]).shape == (MOST_MATRIX_CLASSES,) * 2
    assert "confusion_cells" not in data["base"]
    assert not any("resamples" in note for note in data["notes"])
    page = Path("r.html").read_text()
    assert page.count("<td>class") == 2 * MOST_MATRIX_CLASSES
    assert "Not drawn" not in page

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imbalance_perturb.errors import PredictionsError, SettingsError
from imbalance_perturb.evaluation.changed_images import MOST_CHANGED, draw_changed
from imbalance_perturb.files.writing import sha256
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.writing import open_rows
from tests.run_files import make_run

CLASSES = {"nv": 900, "mel": 90, "df": 9}

#: true, base, corrected class, and how many images.
KINDS = (
    ("mel", "nv", "mel", 40),  # gained
    ("nv", "nv", "mel", 3),  # lost
    ("df", "nv", "mel", 5),  # wrong to wrong
    ("df", "df", "df", 5),  # not changed
    (None, "nv", "mel", 5),  # without a label
)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Predictions and labels of images of all kinds, one that failed among them."""
    path, labels = tmp_path / "predictions.csv", ["image,label"]
    with open_rows(str(path), RowLayout()) as write:
        for kind, (label, base, pred, number) in enumerate(KINDS):
            for index in range(number):
                write(PredictionRow(f"{kind}/{index:02d}.png", base, 0.75, pred, 0.5))
                labels += [] if label is None else [f"{kind}/{index:02d}.png,{label}"]
        write(PredictionRow("broken.png", error="no image"))
    (tmp_path / "labels.csv").write_text("\n".join([*labels, "broken.png,nv"]) + "\n")
    run = make_run(CLASSES, 59).to_dict() | {"predictions_sha256": sha256(path)}
    (tmp_path / "predictions.run.json").write_text(json.dumps(run))
    return path


def test_images_of_both_kinds_are_drawn(predictions: Path) -> None:
    """Of each kind as many as asked for, or all there are, by name; their total is of all that have a label."""
    found = draw_changed(predictions, predictions.with_name("labels.csv"), 10)
    assert (found.gained.total, found.lost.total) == (40, 3)
    gained = [image.row.image for image in found.gained.drawn]
    assert len(set(gained)) == 10
    assert gained == sorted(gained)
    assert all(name.startswith("0/") for name in gained)
    assert [image.row.image for image in found.lost.drawn] == ["1/00.png", "1/01.png", "1/02.png"]
    assert {(image.label, image.row.base_pred, image.row.pred) for image in found.lost.drawn} == {("nv", "nv", "mel")}
    assert [row.image for row in found.rows] == [*gained, "1/00.png", "1/01.png", "1/02.png"]


def test_the_draw_is_random_and_comes_again_by_its_seed(predictions: Path) -> None:
    """Another seed draws other images, the same one the same; no place in the file is left out."""
    labels = predictions.with_name("labels.csv")
    draws = [tuple(i.row.image for i in draw_changed(predictions, labels, 5, seed).gained.drawn) for seed in range(30)]
    assert len(set(draws)) > 20
    assert draws[3] == tuple(i.row.image for i in draw_changed(predictions, labels, 5, 3).gained.drawn)
    assert len({name for names in draws for name in names}) > 35


def test_what_cannot_be_drawn_is_refused(predictions: Path) -> None:
    """A number out of range, and predictions without their run file or with another's, are one line."""
    labels = predictions.with_name("labels.csv")
    for number in (0, -1, MOST_CHANGED + 1):
        with pytest.raises(SettingsError, match=f"gallery is {number}; expected .* from 1 to 100"):
            draw_changed(predictions, labels, number)
    predictions.write_text(predictions.read_text().replace(",mel,", ",df,", 1))
    with pytest.raises(PredictionsError, match="its SHA-256 differs"):
        draw_changed(predictions, labels, 1)
    predictions.with_name("predictions.run.json").unlink()
    with pytest.raises(PredictionsError, match=r"predictions\.run\.json: no such file; --gallery"):
        draw_changed(predictions, labels, 1)

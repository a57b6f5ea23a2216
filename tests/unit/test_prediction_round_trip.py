"""What `predict` writes, in any format, is what `evaluate` reads: names come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.prediction_files import load_predictions
from imbalance_perturb.results import PredictionRow
from imbalance_perturb.row_formats import RowLayout, open_rows

CLASSES = ("=1+1", "plain", "'quoted", "-1")
IMAGES = ("=cmd.png", "a,b.png", 'say "x".png', "two\nlines.png", "\udcff.png", "ü/猫.png", "@sum(1).png")


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_come_back_as_they_were(tmp_path: Path, suffix: str, corrected: bool) -> None:
    """Images and classes that a spreadsheet, CSV or UTF-8 cannot take as they are survive writing and reading."""
    path = tmp_path / f"predictions{suffix}"
    probs = (0.1, 0.2, 0.3, 0.4)
    with open_rows(str(path), RowLayout(CLASSES, corrected)) as write:
        for index, image in enumerate(IMAGES):
            base, pred = CLASSES[index % 4], CLASSES[(index + 1) % 4]
            write(PredictionRow(image, base, 0.4, pred, 0.4, probs=probs, base_probs=probs[::-1], corrected=True))
        write(PredictionRow("broken.png", error="=not a formula"))
    found = load_predictions(path, CLASSES)
    assert found.images == IMAGES
    assert found.base_preds == tuple(index % 4 for index in range(len(IMAGES)))
    assert found.preds == tuple((index + 1) % 4 for index in range(len(IMAGES)))
    assert found.failed == ("broken.png",)
    assert found.probs == (probs,) * len(IMAGES)
    assert found.base_probs == (probs[::-1],) * len(IMAGES)


def test_what_is_no_parquet_file_is_said(tmp_path: Path) -> None:
    """A file that only has the suffix is one line naming it."""
    path = tmp_path / "predictions.parquet"
    path.write_bytes(b"image,pred\n")
    with pytest.raises(PredictionsError, match=r"predictions\.parquet: is not a Parquet file"):
        load_predictions(path, CLASSES)

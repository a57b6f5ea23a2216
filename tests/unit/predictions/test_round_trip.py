"""What `predict` writes, in any format, is what `evaluate` reads: names come back as they were."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.predictions.predicted_classes import load_predictions
from imbalance_perturb.predictions.reading import iter_images, iter_rows
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.writing import open_rows

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
    assert found.base_preds.tolist() == [index % 4 for index in range(len(IMAGES))]
    assert found.preds.tolist() == [(index + 1) % 4 for index in range(len(IMAGES))]
    assert found.failed == ("broken.png",)
    assert found.probs is not None
    assert found.base_probs is not None
    assert found.probs.tolist() == [list(probs)] * len(IMAGES)
    assert found.base_probs.tolist() == [list(probs[::-1])] * len(IMAGES)


def test_what_is_no_parquet_file_is_said(tmp_path: Path) -> None:
    """A file that only has the suffix is one line naming it."""
    path = tmp_path / "predictions.parquet"
    path.write_bytes(b"image,pred\n")
    with pytest.raises(PredictionsError, match=r"predictions\.parquet: is not a Parquet file"):
        load_predictions(path, CLASSES)


@pytest.mark.parametrize("layout", [RowLayout(), RowLayout(margin=True), RowLayout(CLASSES, True, margin=True)])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_read_and_written_again_are_the_same_bytes(tmp_path: Path, suffix: str, layout: RowLayout) -> None:
    """Rows that are read back and written anew make the same file, whatever names, errors and numbers are in them."""
    rng = random.Random(0)
    first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
    errors = ("=not a formula", "'quoted", "two\nlines, a comma", "a byte \udcff", "\\udcff as text", "-1")
    with open_rows(str(first), layout) as write:
        for index, image in enumerate(IMAGES):
            p, q, *_ = probs = tuple(rng.choice((rng.random(), 1e-9 * rng.random(), 1.0, 0.0)) for _ in CLASSES)
            more = (probs, probs[::-1], bool(index % 2)) if layout.corrected else ((), (), True)
            margin = rng.choice((p, 0.0, 1.0)) if layout.margin else None
            write(PredictionRow(image, CLASSES[index % 4], p, CLASSES[index // 2], q, None, *more, margin=margin))
        for index, error in enumerate(errors):
            write(PredictionRow(f"broken {index}.png", error=error))
    with open_rows(str(again), layout) as write:
        for row in iter_rows(first, layout):
            write(row)
    assert again.read_bytes() == first.read_bytes()
    assert list(iter_images(first)) == [row.image for row in iter_rows(again, layout)]
    assert [row.error for row in iter_rows(first, layout)][-len(errors) :] == list(errors)


@pytest.mark.parametrize("cell", ["base_confidence", "pred", "corrected", "margin", "p_plain"])
def test_a_row_without_a_value_is_named(tmp_path: Path, cell: str) -> None:
    """A value that is not there is an error with file, line and column."""
    layout = RowLayout(("plain", "b"), corrected=True, margin=True)
    columns = [name for name, _ in layout.columns()]
    values = dict.fromkeys(columns, "1") | {"error": "", cell: ""}
    (tmp_path / "p.csv").write_text(f"{','.join(columns)}\n{','.join(values.values())}\n")
    with pytest.raises(PredictionsError, match=rf"p\.csv, line 2: {cell} is ''; expected"):
        list(iter_rows(tmp_path / "p.csv", layout))

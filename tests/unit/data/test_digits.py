"""The demonstration's images, split and files, and the script that trains its model."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torchvision.models import get_model

import imbalance_perturb.data.digits
from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.digits import (
    DIGIT_NAMES,
    TEST_PER_CLASS,
    TRAIN_COUNTS,
    VAL_PER_CLASS,
    DigitSplits,
    load_digit_splits,
    write_digit_images,
)
from imbalance_perturb.data.preprocessing import make_geometry, select_preprocessing
from imbalance_perturb.errors import LabelsError, OutputFileError

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = Path(imbalance_perturb.data.digits.__file__).parent / "assets" / "demo_digits.safetensors"


#: The first images of each part, by their position in scikit-learn's data set.
FIRST_SOURCES = [[166, 1472, 1469, 646], [139, 1699, 1711, 748], [1749, 232, 154, 570]]


@pytest.fixture(scope="module")
def splits() -> DigitSplits:
    return load_digit_splits()


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    """The names that the training script defines."""
    return runpy.run_path(str(ROOT / "examples" / "train_demo_model.py"))


def test_training_follows_the_long_tail(splits: DigitSplits) -> None:
    """The training part has the stated counts, fifty times as many of the largest class as of the smallest."""
    assert splits.counts.names == DIGIT_NAMES
    assert splits.counts.counts == TRAIN_COUNTS
    assert splits.counts.imbalance == 50
    assert splits.counts.smallest == 9


def test_profile_is_exponential() -> None:
    """The counts are an exponential curve from the largest to the smallest class, rounded."""
    largest, smallest = TRAIN_COUNTS[0], TRAIN_COUNTS[-1]
    curve = [largest * (smallest / largest) ** (index / 9) for index in range(10)]
    assert tuple(round(value) for value in curve) == TRAIN_COUNTS


def test_held_out_parts_are_balanced(splits: DigitSplits) -> None:
    """Validation and test hold every digit equally often."""
    assert np.bincount(splits.val.labels).tolist() == [VAL_PER_CLASS] * 10
    assert np.bincount(splits.test.labels).tolist() == [TEST_PER_CLASS] * 10


def test_parts_share_no_image(splits: DigitSplits) -> None:
    """No image of the data set stands in two parts, or twice in one."""
    sources = np.concatenate([part.sources for part in splits])
    assert len(set(sources.tolist())) == len(sources) == 280 + 240 + 540


def test_images_and_labels_are_those_of_the_data_set(splits: DigitSplits) -> None:
    """Every image keeps its own class, and its pixels are scikit-learn's scaled to the full 8-bit range."""
    data = load_digits()
    for part in splits:
        assert part.images.shape == (len(part.labels), 8, 8)
        assert part.images.dtype == np.uint8
        np.testing.assert_array_equal(part.labels, data.target[part.sources])
        np.testing.assert_allclose(part.images, data.images[part.sources] / 16 * 255, atol=0.5)
    assert splits.test.images.max() == 255


def test_split_never_changes(splits: DigitSplits) -> None:
    """The split is the one that the shipped checkpoint was trained for, on every call and every machine."""
    again = load_digit_splits()
    for one, other in zip(splits, again, strict=True):
        np.testing.assert_array_equal(one.sources, other.sources)
    first = [part.sources[:4].tolist() for part in splits]
    assert first == FIRST_SOURCES


def test_written_images_read_back(splits: DigitSplits, tmp_path: Path) -> None:
    """The PNG files hold the pixels exactly, and labels.csv names the class of each, which its name does not."""
    images, labels = splits.test.images[:20], splits.test.labels[:20]
    path = write_digit_images(tmp_path / "new" / "test", images, labels)
    assert path == tmp_path / "new" / "test" / "labels.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"digit_{position:04d}.png" for position in range(20)]
    assert [row["label"] for row in rows] == [DIGIT_NAMES[label] for label in labels]
    for row, image in zip(rows, images, strict=True):
        with Image.open(path.parent / row["image"]) as opened:
            assert opened.mode == "L"
            np.testing.assert_array_equal(np.asarray(opened), image)


def test_labels_must_fit_the_images(splits: DigitSplits, tmp_path: Path) -> None:
    """A missing label, or one that is not a digit, is refused before anything is written."""
    images = splits.test.images[:2]
    with pytest.raises(LabelsError, match="2 images but 1 labels"):
        write_digit_images(tmp_path / "out", images, np.array([1]))
    with pytest.raises(LabelsError, match="label 10 is not a digit"):
        write_digit_images(tmp_path / "out", images, np.array([1, 10]))
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_said(splits: DigitSplits, tmp_path: Path) -> None:
    """A folder that cannot be made is named, with what to do."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputFileError, match=r"file: the digit images cannot be written .*another folder"):
        write_digit_images(tmp_path / "file", splits.test.images[:1], splits.test.labels[:1])


def test_module_needs_no_torch() -> None:
    """The digits can be loaded and written without torch, which takes seconds to import."""
    code = "import sys, imbalance_perturb.data.digits as d; d.load_digit_splits(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_inputs_are_those_of_the_command(splits: DigitSplits, training: dict[str, Any], tmp_path: Path) -> None:
    """Training sees exactly the tensors that the command makes of the PNG files with the stated settings."""
    write_digit_images(tmp_path, splits.val.images[:5], splits.val.labels[:5])
    size, mean, std = training["SIZE"], training["MEAN"], training["STD"]
    settings = PreprocessSettings(preset="none", resize=size, mean=(mean,), std=(std,))
    preprocessing = select_preprocessing(settings)
    geometry = make_geometry(preprocessing)
    pixels = []
    for path in sorted(tmp_path.glob("*.png")):
        with Image.open(path) as image:
            pixels.append(geometry(image.convert("RGB")))
    inputs = training["to_input"](splits.val)[:5]
    torch.testing.assert_close(inputs, preprocessing.normalise(torch.stack(pixels)))
    assert inputs.shape == (5, 3, size, size)


def test_training_script_writes_a_checkpoint(training: dict[str, Any], tmp_path: Path) -> None:
    """One epoch of the script writes a plain state_dict of the stated architecture, the same for the same seed."""
    files = [tmp_path / "new" / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        training["main"]([str(file), "--epochs", "1", "--seed", "3"])
    model = get_model(training["ARCH"], weights=None, num_classes=10)
    model.load_state_dict(load_file(files[0]))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert files[0].read_bytes() == files[1].read_bytes()


def test_training_script_wants_an_epoch(
    training: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No epochs at all is a wrong use of the script, said in one line."""
    with pytest.raises(SystemExit) as stopped:
        training["main"]([str(tmp_path / "x.safetensors"), "--epochs", "0"])
    assert stopped.value.code == 2
    assert "--epochs must be at least 1" in capsys.readouterr().err


def test_shipped_checkpoint_overlooks_rare_digits(splits: DigitSplits, training: dict[str, Any]) -> None:
    """The shipped model fits its architecture, knows the frequent digits and misses most of the rarest."""
    assert CHECKPOINT.stat().st_size < 1.5e6
    model = get_model(training["ARCH"], weights=None, num_classes=10).eval()
    model.load_state_dict(load_file(CHECKPOINT))
    with torch.inference_mode():
        hits = model(training["to_input"](splits.test)).argmax(dim=1).numpy() == splits.test.labels
    recall = [hits[splits.test.labels == digit].mean() for digit in range(10)]
    assert min(recall[:4]) > 0.8
    assert recall[9] < 0.5

"""One folder with every kind of bad file and 500 good ones: each bad one is named, each good one is as if alone."""

from __future__ import annotations

import csv
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_perturb import ClassCounts
from imbalance_perturb.cli.app import main
from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.files.csv_tables import decode_path
from imbalance_perturb.files.writing import write_json
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.pipeline import load_pipeline, make_predictor
from imbalance_perturb.predictions.rows import PredictionRow
from tests.image_samples import deep, dicom_samples, picture, saved, tiff

GOOD = 500
COUNTS = ClassCounts(("a", "b", "c", "d"), (900, 90, 30, 3))
SIZE = 24

#: Names of good images: all that a file system lets people have.
NAMES = [
    "with space",
    'quo"te',
    "com,ma",
    "new\nline",
    "tab\t",
    "=formula",
    "'quote",
    "emoji \U0001f9e0",
    "é",
    "-1",
    "bad\udcff",
]


class NanOnBlack(nn.Module):
    """Convolutions that answer exactly black images with NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        brightest = x.amax(dim=(1, 2, 3), keepdim=True)
        return self.head(self.features(x * (brightest / brightest)).mean(dim=(2, 3)))


def write_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def bad_files() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For each bad file how it is made and what its row says."""
    jpeg, png = saved(picture(60, 80), "JPEG"), saved(picture(60, 80), "PNG")
    pages = saved(picture(), "TIFF", save_all=True, append_images=[picture()])
    bomb = png[:16] + (60000).to_bytes(4, "big") * 2 + png[24:]
    files: dict[str, tuple[Callable[[Path], object], str]] = {
        "truncated.jpg": (write_bytes(jpeg[: len(jpeg) // 2]), "truncated|cut off|damaged"),
        "truncated.png": (write_bytes(png[: len(png) // 2]), "truncated|cut off|damaged"),
        "empty.png": (write_bytes(b""), "the file is empty"),
        "text.jpg": (write_bytes(b"hello world, this is no picture\n" * 9), "not an image in a known format"),
        "no-dicom.dcm": (write_bytes(b"hello"), "not a DICOM file"),
        "bomb.png": (write_bytes(bomb), "pixels are more than|damaged|broken|decompression bomb"),
        "pages.tif": (write_bytes(pages), "pages"),
        "float.tif": (lambda path: Image.fromarray(np.full((30, 30), np.nan, np.float32)).save(path), "float"),
        "black.png": (lambda path: Image.new("RGB", (30, 30)).save(path), "not finite"),
        "long.png": (lambda path: Image.new("RGB", (1, 20000)).save(path), "."),
        "gone.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "a link to a file that is not there"),
        "loop.jpg": (lambda path: path.symlink_to(path.name), "."),
        "folder.jpg": (lambda path: path.mkdir(), "is a folder"),
        "pipe.jpg": (os.mkfifo, "is a named pipe"),
        "socket.jpg": (make_socket, "is a socket"),
    }
    if os.geteuid() != 0:  # who may read everything cannot be denied it; tests/faults/test_images.py goes around that
        files["secret.png"] = (lambda path: (path.write_bytes(png), path.chmod(0)), "permission denied")
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, its counts, and all the images, good ones and bad ones side by side."""
    made = tmp_path_factory.mktemp("matrix")
    torch.manual_seed(0)
    network = NanOnBlack().eval()
    # An untrained network answers every image alike: centre and stretch the logits, so that images differ.
    with torch.no_grad():
        logits = network(torch.rand(64, 3, 1, 1).expand(-1, -1, SIZE, SIZE))
        scale = 2 / logits.std(0)
        network.head.bias.copy_((network.head.bias - logits.mean(0)) * scale)
        network.head.weight *= scale[:, None]
    torch.jit.script(network).save(made / "model.pt")
    write_json(made / "counts.json", COUNTS.to_dict())
    images = made / "images"
    rng = np.random.default_rng(0)
    formats = {".png": {}, ".jpg": {"quality": 95}, ".bmp": {}, ".webp": {"lossless": True}, ".tif": {}}
    for index in range(GOOD):
        suffix, options = list(formats.items())[index % len(formats)]
        name = f"{NAMES[index] if index < len(NAMES) else index:>03}{suffix}"
        path = images / (f"sub{index % 7}" if index % 3 else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = ("RGB", "L", "RGB", "RGB", "P" if suffix == ".png" else "RGB")[index % 5]
        shape = (int(rng.integers(26, 60)), int(rng.integers(26, 60)), 3)
        pixels = rng.integers(1, 216, 3) + rng.integers(0, 40, shape)
        Image.fromarray(pixels.astype(np.uint8)).convert(kind).save(path, **options)
    (images / "deep.tif").write_bytes(tiff(deep(1, 40, 50)))
    (images / "gray.dcm").write_bytes(dicom_samples()["gray.dcm"])
    for name, (make, _) in bad_files().items():
        make(images / name)
    return made


def alone(images: ImageList, settings: Settings) -> list[PredictionRow]:
    """Rows of the images, each predicted as if it were the only one there is."""
    pipeline = load_pipeline(settings, images)
    rows = []
    with applied(pipeline.execution):
        for name in images.names:
            one = ImageList(images.source, images.root, [name])
            predictor = make_predictor(pipeline)
            rows += [
                row
                for found in iter_predictions(predictor, one, pipeline.preprocessing, pipeline.execution)
                for row in found
            ]
    return rows


def test_every_good_file_is_predicted_as_alone_and_every_bad_one_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3; each bad file has its own row with its own reason; each good row is that of the image alone."""
    pytest.importorskip("pydicom", reason="needs pydicom (the extra dicom)")
    monkeypatch.chdir(folder)
    size = ["--preset", "none", "--resize", f"{SIZE},{SIZE}", "--batch-size", "16", "--workers", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["predict", "model.pt", "counts.json", "images", *size, "--eps", "0.05", "--precision", "fp32"])
    assert ended.value.code == 3, capsys.readouterr().err
    with Path("predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = {decode_path(row["image"]): row for row in csv.DictReader(stream)}
    bad = bad_files()
    assert {name for name, row in rows.items() if row["error"]} == set(bad)
    for name, (_, reason) in bad.items():
        assert re.search(reason, rows[name]["error"]), (name, rows[name]["error"])
        assert not any(
            rows[name][column] for column in ("base_pred", "base_confidence", "pred", "confidence", "changed")
        )
    good = sorted(rows.keys() - bad.keys())
    assert len(good) == GOOD + 2
    settings = Settings(
        model=ModelSettings(model="model.pt", counts="counts.json"),
        preprocess=PreprocessSettings(preset="none", resize=(SIZE, SIZE)),
        debias=DebiasSettings(eps=0.05),
        run=RunSettings(batch_size=16, workers=0, precision="fp32"),
    )
    for row in alone(ImageList(Path("images"), Path("images"), good), settings):
        found = rows[row.image]
        assert (found["base_pred"], found["pred"]) == (row.base_pred, row.pred)
        assert found["confidence"] == format(row.confidence, ".8g"), row.image
        assert found["base_confidence"] == format(row.base_confidence, ".8g"), row.image
    assert len({row["pred"] for row in rows.values()} - {""}) > 2, "the model tells no images apart"
    assert any(row["changed"] == "1" for row in rows.values())

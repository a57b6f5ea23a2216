"""The paper's data sets, their folds, and what a network is shown of an image."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from examples.paper import networks
from examples.paper.datasets import OCT_CLASSES, octmnist, select_chest_images, skin7, xray6
from examples.paper.folds import split
from examples.paper.training import Pictures
from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, make_geometry, select_preprocessing


def test_the_papers_chest_images(shared_dir: Path, tmp_path: Path) -> None:
    """The rule picks X-ray6 out of metadata with other findings; four of five folds hold 88 Hernia, as in Table 1."""
    with (shared_dir / "data" / "xray6" / "selection.csv").open(newline="") as stream:
        chosen = list(csv.DictReader(stream))
    (tmp_path / "images").mkdir()
    with (tmp_path / "Data_Entry_2017_v2020.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Image Index", "Finding Labels", "Follow-up #", "Patient ID"])
        for row in chosen:
            writer.writerow([row["image"], row["label"], 0, row["patient"]])
        writer.writerows([["a.png", "No Finding", 0, 1], ["b.png", "Hernia|Mass", 0, 1], ["c.png", "Edema", 0, 2]])
    data = xray6(tmp_path)
    counts = dict(zip(data.classes, np.bincount(data.train.labels).tolist(), strict=True))
    assert counts == {
        "Atelectasis": 4215, "Effusion": 3955, "Mass": 2139, "Cardiomegaly": 1093, "Emphysema": 892, "Hernia": 110,
    }  # fmt: skip
    parts = split(data, 0, "image")
    training = np.bincount(np.concatenate([parts.train.labels, parts.validation.labels]))
    assert (training[5], training[0]) == (88, 3372)
    assert not {*parts.test.images} & {*parts.train.images}


def test_several_findings_are_left_out() -> None:
    """An image with two findings, or with one that is none of the six, is not of X-ray6."""
    rows = [
        {"Image Index": f"{i}.png", "Finding Labels": label, "Patient ID": "7"}
        for i, label in enumerate(["Mass", "Mass|Effusion", "No Finding", "Pneumonia", "Hernia"])
    ]
    assert [(row["image"], row["label"]) for row in select_chest_images(rows)] == [
        ("0.png", "Mass"),
        ("4.png", "Hernia"),
    ]


def test_the_chest_images_at_hand(shared_dir: Path, tmp_path: Path) -> None:
    """The 152 images are read, grey as they are, into three channels."""
    source = shared_dir / "data" / "xray6"
    (tmp_path / "images").symlink_to(source / "images")
    shutil.copy(source / "labels_64px.csv", tmp_path / "labels.csv")
    rows = (tmp_path / "labels.csv").read_text().splitlines()[1:]
    data = xray6(tmp_path)
    assert len(data.train) == len(rows) == 152
    picture, label = Pictures(data, data.train, 64, cache=False)[0]
    assert (data.train.images[0].name, data.classes[label]) == tuple(rows[0].split(",")[:2])
    assert picture.shape == (3, 64, 64)


def test_octmnist_in_its_official_layout(tmp_path: Path) -> None:
    """Arrays become files with the same pixels, in the official split; a second opening writes none."""
    random = np.random.default_rng(0)
    sizes = {"train": 40, "val": 12, "test": 8}
    arrays = {f"{name}_images": random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for name, n in sizes.items()}
    labels = {f"{name}_labels": (np.arange(n) % 4).astype(np.uint8)[:, None] for name, n in sizes.items()}
    np.savez(tmp_path / "octmnist.npz", **arrays, **labels)
    data = octmnist(tmp_path)
    parts = split(data, 0, "group")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [40, 12, 8]
    assert data.classes == OCT_CLASSES
    assert parts.test.labels.tolist() == [0, 1, 2, 3] * 2
    with Image.open(parts.validation.images[5]) as image:
        assert np.array_equal(np.asarray(image), arrays["val_images"][5])
    written = parts.validation.images[5].stat().st_mtime_ns
    octmnist(tmp_path)
    assert parts.validation.images[5].stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="official split"):
        split(data, 1, "group")


def test_folds_keep_lesions_apart(small_skin7: Path) -> None:
    """Over the folds each image is tested once; no lesion is in two parts; `image` takes the paper's folds."""
    data = skin7(small_skin7)
    tested: Counter[Path] = Counter()
    for fold in range(5):
        parts = split(data, fold, "group")
        lesions = [set(part.groups) for part in (parts.train, parts.validation, parts.test)]
        assert sum(map(len, lesions)) == len(set.union(*lesions))
        assert sum(map(len, (parts.train, parts.validation, parts.test))) == 140
        tested.update(parts.test.images)
    assert set(tested.values()) == {1}
    assert len(tested) == 140
    by_image = split(data, 2, "image").test
    assert {int(path.stem[-3:]) % 5 for path in by_image.images} == {2}


def test_commands_see_what_the_training_saw(small_skin7: Path) -> None:
    """The recipe's view of an image is the training's, without its chance: square, resized, cropped in the centre."""
    data = skin7(small_skin7)
    size = 32
    path = data.train.images[3]
    shown = v2.functional.center_crop(Pictures(data, data.train, size, cache=False).read(path), [size, size])
    expected = v2.functional.normalize(
        v2.functional.to_dtype(v2.functional.to_image(shown), torch.float32, True), IMAGENET_MEAN, IMAGENET_STD
    )
    settings = data.preprocess(size)
    assert settings == {"resize": 43, "crop": 32}
    preprocessing = select_preprocessing(PreprocessSettings(**settings))
    with Image.open(path) as image:
        seen = preprocessing.normalise(make_geometry(preprocessing)(image)[None])[0]
    assert torch.allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_the_backbones(backbone: str) -> None:
    """Each has a head of as many classes as asked for; LDAM's gives cosines, scaled."""
    network = networks.build(backbone, 3, cosine=True).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    assert 0 < logits.abs().max() <= 30 * (1 + 1e-6)


def test_features_of_another_network_are_refused(tmp_path: Path) -> None:
    """A file that lacks a layer, or has one too many, ends in one line that names it."""
    tensors = networks.build("mobilenet_v2", 2).state_dict()
    torch.save(
        {key: value for key, value in tensors.items() if not key.startswith("classifier")}, tmp_path / "good.pth"
    )
    assert networks.build("mobilenet_v2", 5, pretrained=str(tmp_path / "good.pth")).classifier[1].out_features == 5
    tensors.pop("features.0.0.weight")
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(SystemExit, match=r"features\.0\.0\.weight"):
        networks.build("mobilenet_v2", 5, pretrained=str(tmp_path / "bad.pth"))

"""Logits of real checkpoints under every candidate correction, kept in files for other benchmarks.

One file for each Skin7 checkpoint and set of images (folds 0 and 1, whole and cropped like the official test set, and
that set), and one for the demonstration's network on all digits that it was not trained on: ``labels`` (N,), ``groups``
(N,) lesions, ``base`` (N, C) and ``moved`` (K, N, C) logits for ``eps`` (K,), ``paper`` (N, C) for the paper's eps,
``l1`` (N,) the norm ||J^T l||_1 of each image, ``norms`` and ``bias`` (C,) of the last layer. Files that are there are
left as they are: a run that was cut off goes on where it stopped.

    python benchmarks/real_logits.py FOLDER --shared SHARED [--hidden]

With ``--hidden`` the steps are those of ``--perturb-at auto``, and eps and ``l1`` are in units of that layer's output.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from checkpoints import CHECKPOINTS, Checkpoint
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from subjects import CLASSES, MEAN, STD, skin7_counts, skin7_rows
from torch import Tensor, nn

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.demo_files import MODEL, write_demo
from imbalance_perturb.data.preprocessing import Preprocessing, make_geometry, select_preprocessing
from imbalance_perturb.inference.acceleration.optimisation import optimise
from imbalance_perturb.inference.hidden_stage.cutting import Staged
from imbalance_perturb.inference.hidden_stage.staged_network import cut_model, each_part, halves
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.perturbation import gradient_sign, step
from imbalance_perturb.method.step_strength import full_eps, prior_gradient_norms
from imbalance_perturb.method.target import target_distribution
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.classifier import LoadedClassifier
from imbalance_perturb.models.last_layer import LastLayer, find_last_layer
from imbalance_perturb.selection.sweep import STRENGTH_GRID

#: The centre square of 200 x 150 pictures that the official test set's images show.
SQUARE = (25, 0, 175, 150)

#: The eps that the paper uses.
PAPER_EPS = 0.001

_BATCH = 64


class Images(NamedTuple):
    """Files with labels (N,) and groups (N,), and what is done to a picture first."""

    paths: list[Path]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    first: Callable[[Image.Image], Image.Image] = lambda image: image


def image_sets(shared: Path) -> dict[str, Images]:
    """The sets by name."""
    found, data = {}, shared / "data"
    for fold in ("0", "1"):
        rows = sorted((r["image"], r["label"], r["lesion_id"]) for r in skin7_rows(shared) if r["fold"] == fold)
        names, labels, groups = zip(*rows, strict=True)
        whole = Images([data / "skin7" / "images" / name for name in names], _index(labels), np.array(groups))
        found[f"fold{fold}"] = whole
        found[f"fold{fold}-square"] = whole._replace(first=lambda image: image.crop(SQUARE))
    with (data / "skin7_test" / "labels.csv").open(newline="") as stream:
        tested = sorted((row["image"], row["label"]) for row in csv.DictReader(stream))
    names, labels = zip(*tested, strict=True)
    paths = [data / "skin7_test" / "images" / name for name in names]
    return {**found, "test": Images(paths, _index(labels), np.array(names))}


def _index(labels: tuple[str, ...]) -> NDArray[np.int64]:
    return np.array([CLASSES.index(label) for label in labels])


class Subject(NamedTuple):
    """A network, made fast, its last layer, what it was trained on, and 64 images that say its full correction."""

    model: LoadedClassifier
    last: LastLayer | str
    counts: ClassCounts
    drawn: Tensor


def make_subject(model: LoadedClassifier, counts: ClassCounts, drawn: Tensor, *, hidden: bool) -> Subject:
    """Rewrite the network for a CPU, as every command does, after a look at its last layer; cut it first if asked."""
    last = find_last_layer(model, drawn[:2])
    if hidden:
        print(f"  cut behind {cut_model(model, 'auto', drawn[:1]).layer}", flush=True)
    model.network, _ = each_part(model.network, drawn[:2], optimise)
    return Subject(model, last, counts, drawn)


def stage(model: LoadedClassifier) -> tuple[nn.Module, nn.Module]:
    """What comes before the step, nothing where the network is not cut, and the classifier behind it."""
    return halves(model) if isinstance(model.network, Staged) else (nn.Identity(), model)


#: Prepares a part of a set of images: (n, C, H, W).
Read = Callable[[slice], Tensor]


def load_checkpoint(
    checkpoint: Checkpoint, drawn: Images, shared: Path, *, hidden: bool = False
) -> tuple[Subject, Preprocessing]:
    """One of the Skin7 checkpoints, made fast, and how it sees images."""
    model, preprocessing = open_checkpoint(checkpoint, shared)
    drawn_images = read_images(drawn, slice(None), preprocessing)
    return make_subject(model, skin7_counts(shared), drawn_images, hidden=hidden), preprocessing


def open_checkpoint(checkpoint: Checkpoint, shared: Path) -> tuple[LoadedClassifier, Preprocessing]:
    """One of the Skin7 checkpoints as its file has it, and how it sees images."""
    asked = checkpoint.settings
    preprocessing = select_preprocessing(type(asked)(resize=asked.resize, crop=asked.crop, mean=MEAN, std=STD))
    height, width = preprocessing.size or (224, 224)
    model = load_classifier(
        shared / "models" / checkpoint.file, arch=checkpoint.arch, input_shape=(3, height, width), outputs="logits"
    )
    return model, preprocessing


def load_digits_network(*, hidden: bool = False) -> tuple[Subject, Read, NDArray[np.int64]]:
    """The demonstration's network with every digit that it was not trained on, and their labels."""
    with tempfile.TemporaryDirectory() as folder:
        splits = write_demo(Path(folder) / "demo")
        model = load_classifier(Path(folder) / "demo" / MODEL, input_shape=(3, 64, 64))
    data = load_digits()
    kept = np.setdiff1d(np.arange(len(data.target)), splits.train.sources)
    settings = PreprocessSettings(preset="none", resize=64, mean=(0.5,), std=(0.5,))
    preprocessing = select_preprocessing(settings)
    geometry = make_geometry(preprocessing)

    def read(part: slice) -> Tensor:
        grey = np.rint(data.images[kept[part]] * (255 / 16)).astype(np.uint8)
        return preprocessing.normalise(
            torch.stack([geometry(Image.fromarray(image).convert("RGB")) for image in grey])
        ).contiguous()

    return (
        make_subject(model, splits.counts, read(slice(0, 64)), hidden=hidden),
        read,
        data.target[kept].astype(np.int64),
    )


def write_logits(path: Path, subject: Subject, labels: NDArray[np.int64], groups: NDArray[np.str_], read: Read) -> None:
    """Compute one file."""
    model, last, counts, drawn = subject
    front, back = stage(model)
    target = target_distribution(counts)
    full = full_eps(prior_gradient_norms(back, front(drawn), counts), counts)
    grid = [share * full for share in STRENGTH_GRID] + [PAPER_EPS]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(labels), _BATCH):
        h = front(read(slice(start, start + _BATCH)))
        found = gradient_sign(back, h, target)
        with torch.no_grad():
            moved = torch.stack([back(step(h, found.sign, eps)) for eps in grid])
        parts.append((found.logits, moved, prior_gradient_norms(back, h, counts)))
    base, moved, norms = (
        torch.cat(values, dim=axis).numpy() for values, axis in zip(zip(*parts, strict=True), (0, 1, 0), strict=True)
    )
    moved, paper = moved[:-1], moved[-1]
    known = {} if isinstance(last, str) else {"norms": last.norms.numpy(), "bias": last.bias.numpy()}
    unfinished = path.with_suffix(".partial.npz")
    np.savez_compressed(
        unfinished, labels=labels, groups=groups, base=base, moved=moved, eps=grid[:-1], paper=paper, l1=norms,
        counts=counts.counts, **known,
    )  # fmt: skip
    unfinished.replace(path)


def read_images(images: Images, part: slice, preprocessing: Preprocessing) -> Tensor:
    """Prepare a part of a set: (n, C, H, W)."""
    geometry = make_geometry(preprocessing)
    pixels = [geometry(images.first(Image.open(path).convert("RGB"))) for path in images.paths[part]]
    return preprocessing.normalise(torch.stack(pixels)).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the files are or go")
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/skin7, data/skin7_test and models")
    parser.add_argument("--hidden", action="store_true", help="step at a hidden layer, that of --perturb-at auto")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sets = image_sets(options.shared)
    chosen = np.random.default_rng(0).choice(len(sets["fold1"].paths), 64, replace=False)
    drawn = sets["fold1"]._replace(paths=[sets["fold1"].paths[index] for index in chosen])
    path = options.folder / "digits-pool.npz"
    if not path.exists():
        digits, read, labels = load_digits_network(hidden=options.hidden)
        write_logits(path, digits, labels, np.array([str(index) for index in range(len(labels))]), read)
    print(path, flush=True)
    for name, checkpoint in CHECKPOINTS.items():
        subject, preprocessing = load_checkpoint(checkpoint, drawn, options.shared, hidden=options.hidden)
        for title, images in sets.items():
            path = options.folder / f"{name}-{title}.npz"
            if not path.exists():
                write_logits(
                    path,
                    subject,
                    images.labels,
                    images.groups,
                    partial(read_images, images, preprocessing=preprocessing),
                )
            print(path, flush=True)


if __name__ == "__main__":
    main()

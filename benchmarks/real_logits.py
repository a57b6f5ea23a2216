"""Logits of the real checkpoints on Skin7 under every candidate correction, kept in files for other benchmarks.

One file for each checkpoint and set of images (folds 0 and 1, whole and cropped like the official test set, and that
set): ``labels`` (N,), ``groups`` (N,) lesions, ``base`` (N, C) and ``moved`` (K, N, C) logits for ``eps`` (K,),
``l1`` (N,) the norm ||J^T l||_1 of each image, ``norms`` and ``bias`` (C,) of the last layer. Files that are there
are left as they are: a run that was cut off goes on where it stopped.

    python benchmarks/real_logits.py FOLDER --shared SHARED
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from checkpoints import CHECKPOINTS, Checkpoint
from numpy.typing import NDArray
from PIL import Image
from subjects import CLASSES, MEAN, STD, skin7_counts, skin7_rows
from torch import Tensor

from imbalance_perturb.data.preprocessing import Preprocessing, make_geometry, select_preprocessing
from imbalance_perturb.method.perturbation import gradient_sign, step
from imbalance_perturb.method.step_strength import full_eps, prior_gradient_norms
from imbalance_perturb.method.target import target_distribution
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.last_layer import find_last_layer
from imbalance_perturb.selection.sweep import STRENGTH_GRID

#: The centre square of 200 x 150 pictures that the official test set's images show.
SQUARE = (25, 0, 175, 150)

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


def write_logits(path: Path, checkpoint: Checkpoint, images: Images, drawn: Images, shared: Path) -> None:
    """Compute one file; ``drawn`` are the images that say which eps is the full correction, the same for all sets."""
    counts = skin7_counts(shared)
    asked = checkpoint.settings
    preprocessing = select_preprocessing(type(asked)(resize=asked.resize, crop=asked.crop, mean=MEAN, std=STD))
    height, width = preprocessing.size or (224, 224)
    model = load_classifier(
        shared / "models" / checkpoint.file, arch=checkpoint.arch, input_shape=(3, height, width), outputs="logits"
    )
    target = target_distribution(counts)
    full = full_eps(prior_gradient_norms(model, _read(drawn, slice(None), preprocessing), counts), counts)
    grid = [share * full for share in STRENGTH_GRID]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    last = find_last_layer(model, _read(images, slice(0, 2), preprocessing))
    for start in range(0, len(images.paths), _BATCH):
        x = _read(images, slice(start, start + _BATCH), preprocessing)
        found = gradient_sign(model, x, target)
        with torch.no_grad():
            moved = torch.stack([model(step(x, found.sign, eps)) for eps in grid])
        parts.append((found.logits, moved, prior_gradient_norms(model, x, counts)))
    base, moved, norms = (
        torch.cat(values, dim=axis).numpy() for values, axis in zip(zip(*parts, strict=True), (0, 1, 0), strict=True)
    )
    known = {} if isinstance(last, str) else {"norms": last.norms.numpy(), "bias": last.bias.numpy()}
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial, labels=images.labels, groups=images.groups, base=base, moved=moved, eps=grid, l1=norms,
        counts=counts.counts, **known,
    )  # fmt: skip
    partial.replace(path)


def _read(images: Images, part: slice, preprocessing: Preprocessing) -> Tensor:
    geometry = make_geometry(preprocessing)
    pixels = [geometry(images.first(Image.open(path).convert("RGB"))) for path in images.paths[part]]
    return preprocessing.normalise(torch.stack(pixels)).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the files are or go")
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/skin7, data/skin7_test and models")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sets = image_sets(options.shared)
    chosen = np.random.default_rng(0).choice(len(sets["fold1"].paths), 64, replace=False)
    drawn = sets["fold1"]._replace(paths=[sets["fold1"].paths[index] for index in chosen])
    for name, checkpoint in CHECKPOINTS.items():
        for title, images in sets.items():
            path = options.folder / f"{name}-{title}.npz"
            if not path.exists():
                write_logits(path, checkpoint, images, drawn, options.shared)
            print(path, flush=True)


if __name__ == "__main__":
    main()

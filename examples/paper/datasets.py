"""The three data sets of Section 3.1, as tables of image files with labels; nothing is decoded here."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CHEST_CLASSES = ("Atelectasis", "Effusion", "Mass", "Cardiomegaly", "Emphysema", "Hernia")
SKIN_CLASSES = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
# Their names are in medmnist.INFO["octmnist"], in the order of its labels 0 to 3.
OCT_CLASSES = ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")


@dataclass(frozen=True)
class Table:
    """Images with labels, and which of them are alike.

    images: absolute paths, length N. labels: (N,) index into the classes. groups: (N,) the lesion or patient of each
    image, empty where ids do not exist. folds: (N,) the folds that the data set brings for `--folds` group or image.
    """

    images: tuple[Path, ...]
    labels: np.ndarray
    groups: tuple[str, ...] = ()
    folds: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: np.ndarray) -> Table:
        """These rows, in this order."""
        return Table(
            tuple(self.images[i] for i in indices),
            self.labels[indices],
            tuple(self.groups[i] for i in indices) if self.groups else (),
        )


@dataclass(frozen=True)
class DataSet:
    """One of the paper's data sets.

    square: images are cropped to their centre square first, as the official test set of Skin7 is. margin: they are
    resized to this times the model's input and cropped, at random in training, in the centre in testing; 1 where there
    is no crop. folded: a fold of five of `train` is tested; else `train`, `validation`, `official` are as published.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    batch_size: int
    margin: float
    square: bool
    eps: float
    train: Table
    folded: bool
    validation: Table | None = None
    official: Table | None = None

    def resized(self, size: int) -> int:
        """Side of the image before the crop, where the model takes `size` (300 for 224 on Skin7)."""
        return round(size * self.margin)

    def preprocess(self, size: int) -> dict[str, int | list[int] | str]:
        """`[preprocess]` of imbperturb.toml: the same view of a test image as in training, without chance."""
        resized = self.resized(size)
        if self.square:
            return {"resize": resized, "crop": size}
        return {"resize": [resized, resized], "crop": "none" if resized == size else size}


def skin7(root: Path, official: Path | None = None) -> DataSet:
    """Skin7 (HAM10000); `official` is laid out as `root` is and holds the ISIC 2018 Task 3 test set.

    `root` holds images/ and labels.csv with `image,label,lesion_id` and, where folds are given, `fold` (lesions kept
    together) and `fold_by_image`.
    """
    rows = read_rows(root / "labels.csv", "image", "label")
    given = {"group": "fold", "image": "fold_by_image"}
    folds = {kind: np.array([int(row[name]) for row in rows]) for kind, name in given.items() if name in rows[0]}
    table = as_table(rows, root / "images", SKIN_CLASSES, group="lesion_id", folds=folds)
    test = official and as_table(
        read_rows(official / "labels.csv", "image", "label"), official / "images", SKIN_CLASSES
    )
    return DataSet("skin7", SKIN_CLASSES, 224, 32, 300 / 224, True, 1e-3, table, True, official=test or None)


def xray6(root: Path) -> DataSet:
    """X-ray6, of NIH ChestX-ray14.

    `root` holds images/ and the metadata Data_Entry_2017*.csv, or, where the selection has been made, labels.csv of
    `image,label` and perhaps `patient`.
    """
    metadata = sorted(root.glob("Data_Entry_2017*.csv"))
    rows = (
        select_chest_images(read_rows(metadata[-1], *NIH_COLUMNS))
        if metadata
        else read_rows(root / "labels.csv", "image", "label")
    )
    return DataSet(
        "xray6",
        CHEST_CLASSES,
        224,
        32,
        1.0,
        False,
        1e-4,
        as_table(rows, root / "images", CHEST_CLASSES, group="patient"),
        True,
    )


NIH_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")


def select_chest_images(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The paper's six classes: images with exactly one finding, and that one of the six (Section 3.1)."""
    kept = (row for row in rows if row["Finding Labels"] in CHEST_CLASSES)  # several findings are joined by '|'
    return [{"image": row["Image Index"], "label": row["Finding Labels"], "patient": row["Patient ID"]} for row in kept]


def octmnist(root: Path, cache: Path | None = None, download: bool = False) -> DataSet:
    """OCTMNIST with its official split, from `root`/octmnist.npz.

    Its images are written as PNG files under `cache` (default `root`/octmnist), once, since `imbperturb predict` takes
    files.
    """
    if download:
        from medmnist import OCTMNIST  # of the extra: pip install '.[paper]'

        OCTMNIST(split="train", root=str(root), download=True)
    parts = {}
    with np.load(root / "octmnist.npz") as arrays:
        for split in ("train", "val", "test"):
            folder = (cache or root / "octmnist") / split
            labels = arrays[f"{split}_labels"].reshape(-1).astype(np.int64)
            parts[split] = Table(write_pictures(arrays[f"{split}_images"], folder), labels)
    return DataSet(
        "octmnist",
        OCT_CLASSES,
        32,
        128,
        1.0,
        False,
        1e-3,
        parts["train"],
        False,
        validation=parts["val"],
        official=parts["test"],
    )


def write_pictures(pixels: np.ndarray, folder: Path) -> tuple[Path, ...]:
    """(N, H, W) uint8 -> N PNG files, named by their number; those that are there are left."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{i:06d}.png" for i in range(len(pixels)))
    for path, array in zip(paths, pixels, strict=True):
        if not path.exists():
            part = path.with_suffix(".part")
            Image.fromarray(array).save(part, format="PNG")
            part.replace(path)
    return tuple(path.resolve() for path in paths)


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV that must have these columns."""
    if not path.is_file():
        raise SystemExit(f"{path}: not there; say with --data where the data set lies")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise SystemExit(f"{path}: no rows or no column {', '.join(missing)}")
    return rows


def as_table(
    rows: list[dict[str, str]],
    folder: Path,
    classes: tuple[str, ...],
    group: str | None = None,
    folds: dict[str, np.ndarray] | None = None,
) -> Table:
    """Rows with image and label as a table; an unknown label ends the run."""
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({row["label"] for row in rows} - set(classes))
    if unknown:
        raise SystemExit(f"labels of {folder.parent}: {unknown[0]!r} is none of {', '.join(classes)}")
    return Table(
        tuple((folder / row["image"]).resolve() for row in rows),
        np.array([index[row["label"]] for row in rows], dtype=np.int64),
        tuple(row[group] for row in rows) if group and group in rows[0] else (),
        folds or {},
    )


LOADERS: dict[str, Callable[..., DataSet]] = {"skin7": skin7, "xray6": xray6, "octmnist": octmnist}

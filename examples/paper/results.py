"""What the cells of Table 2 came to: read from their folders, evaluated by the package, summed up over folds."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import imbalance_perturb as ip
from examples.paper.networks import BACKBONES
from examples.paper.trainings import TRAININGS

NAMES = {"resnet50": "ResNet50", "mobilenet_v2": "MobileNetV2", "densenet169": "DenseNet169"}
FIGURES = ("mcr", "scr", "accuracy")


@dataclass(frozen=True)
class Scored:
    """One predictions file against its labels: figures and recalls of both kinds, standard errors of the gains."""

    eps: float
    base: dict[str, float]
    corrected: dict[str, float]
    error: dict[str, float]
    base_recalls: list[float]
    recalls: list[float]

    def gain(self, figure: str) -> float:
        """Corrected less plain."""
        return self.corrected[figure] - self.base[figure]


@dataclass(frozen=True)
class Cell:
    """One finished experiment."""

    data: str
    backbone: str
    training: str
    fold: int
    settings: dict[str, Any]
    classes: list[str]
    model_sha256: str
    parts: dict[str, Scored]
    methods: dict[str, dict[str, Any]]
    sweeps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    ratio: float = 0.25  # test images to training images

    @property
    def row(self) -> tuple[str, str, str]:
        """Of which row of Table 2 it is a fold."""
        return self.data, self.backbone, self.training


def finished(out: Path) -> Iterator[Cell]:
    """All folders that have their predictions, in the order of Table 2."""
    folders = sorted(path.parent for path in out.glob("*/*/*/fold-*/settings.json") if has_predictions(path.parent))
    if not folders:
        raise SystemExit(f"{out}: no finished experiment; run python -m examples.paper.run, and see --list")
    for folder in sorted(folders, key=table_order):
        yield read(folder)


def has_predictions(folder: Path) -> bool:
    """Whether the stages before `compare` are done."""
    wanted = ["test-tuned.csv", *(["official-tuned.csv"] if (folder / "official.csv").exists() else [])]
    return all((folder / name).exists() for name in wanted)


def table_order(folder: Path) -> tuple[str, int, int, str]:
    data, backbone, training, fold = folder.parts[-4:]
    return data, BACKBONES.index(backbone), TRAININGS.index(training), fold


def read(folder: Path) -> Cell:
    """Read and evaluate one."""
    settings = json.loads((folder / "settings.json").read_text())
    compared = folder / "compare.json"
    parts = {
        path.stem: score(path, folder / f"{path.stem.split('-')[0]}.csv")
        for path in sorted(folder.glob("*.csv"))
        if path.stem.endswith(("-paper", "-tuned"))
    }
    sweeps = {path.stem: json.loads(path.read_text())["sweep"] for path in folder.glob("figure3-*.json")}
    run = json.loads((folder / "test-paper.run.json").read_text())
    return Cell(
        *(settings[name] for name in ("data", "backbone", "training", "fold")),
        settings=settings,
        classes=list(json.loads((folder / "counts.json").read_text())),
        model_sha256=run["model"]["sha256"],
        parts=parts,
        methods=json.loads(compared.read_text())["methods"] if compared.exists() else {},
        sweeps=sweeps,
        ratio=rows_of(folder / "test.csv") / rows_of(folder / "train.csv"),
    )


def rows_of(path: Path) -> int:
    with path.open(newline="") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


def score(predictions: Path, labels: Path) -> Scored:
    """Evaluate a predictions file; intervals are by lesion or patient where the labels have them."""
    with labels.open(newline="") as stream:
        grouped = "group" in next(csv.reader(stream))
    found = ip.evaluate_files(predictions, labels, group="group" if grouped else None)
    eps = found.run["settings"]["debias"]["eps"]
    error = {}
    for figure in FIGURES:
        interval = found.differences[figure].interval
        error[figure] = (interval.high - interval.low) / 2 / stats.norm.ppf(0.975) if interval else math.nan
        if eps == 0:
            error[figure] = 0.0  # the same predictions: no other images would show a gain
    kinds = [{figure: getattr(kind, figure) for figure in FIGURES} for kind in (found.base, found.perturbed)]
    recalls = [[c.recall for c in kind.per_class] for kind in (found.base, found.perturbed)]
    return Scored(float(eps), kinds[0], kinds[1], error, recalls[0], recalls[1])


@dataclass(frozen=True)
class Gain:
    """The gain of one row in one figure over its folds.

    low, high: 95%, for networks as they were trained: folds' images are independent, so errors add up squared. p_value:
    of the paired t-test over folds, its variance made up for the shared training images (Nadeau and Bengio 2003); NaN
    for one fold.
    """

    mean: float
    low: float
    high: float
    p_value: float


def gain(cells: Sequence[Cell], part: str, figure: str) -> Gain:
    """Mean gain of a row's folds in 'test-paper', 'official-tuned', ..."""
    values = np.array([cell.parts[part].gain(figure) for cell in cells])
    errors = np.array([cell.parts[part].error[figure] for cell in cells])
    # All folds' networks are scored on the same official images: their errors do not average out.
    error = errors.mean() if part.startswith("official") else np.sqrt((errors**2).sum()) / len(errors)
    half = stats.norm.ppf(0.975) * error
    return Gain(values.mean(), values.mean() - half, values.mean() + half, corrected_t_test(values, cells[0].ratio))


def corrected_t_test(differences: np.ndarray, ratio: float) -> float:
    """Two-sided p-value of Nadeau and Bengio's corrected resampled t-test.

    2003, Eq. 9: the variance of the mean is that of the differences times 1/k + n_test/n_train.
    """
    k = len(differences)
    if k < 2:
        return math.nan
    deviation = differences.std(ddof=1)
    if not deviation:
        return 1.0 if not differences.mean() else 0.0
    t = differences.mean() / (deviation * math.sqrt(1 / k + ratio))
    return float(2 * stats.t.sf(abs(t), k - 1))


def by_row(cells: Sequence[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    """Cells of each row of Table 2."""
    rows: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        rows[cell.row].append(cell)
    return dict(rows)


def mean_sd(values: Sequence[float]) -> str:
    """Per cent, mean and, in brackets as in Table 2, standard deviation over folds."""
    numbers = 100 * np.array(values, dtype=float)
    return f"{numbers.mean():.2f}" + (f" ({numbers.std(ddof=1):.2f})" if len(numbers) > 1 else "")

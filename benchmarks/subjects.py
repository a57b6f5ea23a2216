"""What the speed benchmarks run on: varied images, and networks whose confidences are like those of trained ones.

A network with random parameters answers nearly the same for every image, so that each would be a close call, and it
magnifies the smallest change of the input beyond any difference between images. Here filters and batch norm are made
as tame as training makes them, statistics come from the images, and a logistic regression head on the features is
scaled so that the mean confidence on images it has not seen is that of a trained network.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.preprocessing import make_geometry, select_preprocessing
from imbalance_perturb.method.counts import ClassCounts

#: Classes of Skin7 and the training images of folds 2 to 4; the shares that synthetic images are drawn with.
CLASSES = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
COUNTS = (4023, 668, 659, 308, 195, 86, 69)
MEAN, STD = (0.7626, 0.5453, 0.5714), (0.1404, 0.1519, 0.1685)

#: Mean top probability on unseen images that a head is scaled to: about that of networks trained on Skin7.
CONFIDENCE = 0.85

#: Weights of the squared norm that heads are tried with.
_PENALTIES = (1e2, 1e3, 1e4, 1e5)

#: Images that go through a network at once where no time is taken.
_BATCH = 16


class Pool(NamedTuple):
    """Images as models receive them, (N, 3, H, W) normalised, with their class indices (N,); ``origin`` in words."""

    x: Tensor
    labels: Tensor
    origin: str

    def split(self, *sizes: int) -> list[Pool]:
        """Consecutive parts of these sizes."""
        parts = zip(self.x.split(sizes), self.labels.split(sizes), strict=True)
        return [Pool(x, labels, self.origin) for x, labels in parts]


#: Share of its mean over the window that each filter is moved towards, and the shift of every batch norm: with both,
#: a network of random parameters is about as sensitive to a signed step as a trained one.
_SMOOTHED, _SHIFT = 0.9, 1.0


def photograph(random: np.random.Generator, height: int, width: int, label: int) -> NDArray[np.uint8]:
    """(H, W, 3) pixels with the spectrum of a photograph: a patch on skin whose colour and grain hint at its class."""
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, width), np.linspace(-1, 1, height))
    turn, long, short = random.uniform(0, np.pi), random.uniform(0.45, 0.8), random.uniform(0.3, 0.6)
    dx, dy = x - random.normal(0, 0.15), y - random.normal(0, 0.15)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    edge = np.hypot(u / long, v / short) + 0.15 * _noise(random, height, width, 1.0, 4)
    inside = 1 / (1 + np.exp(np.clip(12 * (edge - 1), -30, 30)))[..., None]
    hue = np.array([np.cos(0.9 * label), np.sin(0.9 * label), np.cos(1.7 * label + 1)])
    skin = np.array(MEAN) + random.normal(0, 0.04, 3) + 0.04 * _noise(random, height, width, 0.7, 512)[..., None]
    patch = np.array([0.45, 0.3, 0.28]) + 0.06 * hue + random.normal(0, 0.06, 3)
    grain = _noise(random, height, width, 0.6 + 0.1 * label, 512)[..., None]
    pixels = skin + inside * (patch - skin + 0.07 * grain) + random.normal(0, 0.02, (height, width, 1))
    return np.asarray(np.clip(255 * pixels, 0, 255).astype(np.uint8))


def _noise(random: np.random.Generator, height: int, width: int, fall: float, finest: int) -> NDArray[np.floating]:
    """(H, W) smooth noise of standard deviation about 1: octaves whose amplitude falls with frequency to ``fall``."""
    total, power = np.zeros((height, width), np.float32), 0.0
    cells = 2
    while cells <= min(finest, height):
        coarse = random.standard_normal((cells, cells * width // height + 1)).astype(np.float32)
        amplitude = cells**-fall
        total += amplitude * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        power += amplitude**2
        cells *= 2
    return total / np.sqrt(power)


def draw_labels(random: np.random.Generator, n: int) -> NDArray[np.int64]:
    """(N,) class indices, as imbalanced as Skin7 but each class among the first 2 C."""
    shares = np.array(COUNTS) / sum(COUNTS)
    classes = len(CLASSES)
    first = np.tile(np.arange(classes), 2)[:n]
    return np.concatenate([first, random.choice(classes, max(0, n - len(first)), p=shares)])


def write_photographs(folder: Path, n: int, distinct: int, size: tuple[int, int]) -> ImageList:
    """A folder of ``n`` JPEGs, of which ``distinct`` differ."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index, label in enumerate(draw_labels(draw, min(n, distinct))):
        pixels = photograph(draw, *size, int(label))
        Image.fromarray(pixels).save(folder / f"{index:06d}.jpg", quality=90)
    for index in range(distinct, n):
        os.link(folder / f"{index % distinct:06d}.jpg", folder / f"{index:06d}.jpg")
    return find_images(folder)


def synthetic_pool(n: int, size: int, seed: int) -> Pool:
    """Images made up by :func:`photograph`, square."""
    random = np.random.default_rng(seed)
    labels = draw_labels(random, n)
    pixels = np.stack([photograph(random, size, size, int(label)) for label in labels])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Pool(_normalise(x, PreprocessSettings()), torch.from_numpy(labels), "synthetic images")


def skin7_pool(shared: Path, fold: int, settings: PreprocessSettings, n: int | None = None, seed: int = 0) -> Pool:
    """Images of a fold of Skin7 as ``settings`` prepares them: all, in the order of their names, or ``n`` drawn."""
    rows = sorted((r["image"], r["label"]) for r in skin7_rows(shared) if int(r["fold"]) == fold)
    if n is not None:
        rows = _draw(rows, n, seed)
    geometry = make_geometry(select_preprocessing(_skin7(settings)))
    folder = shared / "data" / "skin7" / "images"
    pixels = torch.stack([geometry(Image.open(folder / name).convert("RGB")) for name, _ in rows])
    labels = torch.tensor([CLASSES.index(label) for _, label in rows])
    return Pool(_normalise(pixels, settings), labels, f"Skin7, fold {fold}")


def _draw(rows: list[tuple[str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` of the rows at random, two of each class before all others: a head cannot do without a class."""
    shuffled = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
    first = [row for name in CLASSES for row in [row for row in shuffled if row[1] == name][:2]]
    return (first + [row for row in shuffled if row not in first])[:n]


def skin7_rows(shared: Path) -> Iterator[dict[str, str]]:
    """The lines of the table of labels."""
    with (shared / "data" / "skin7" / "labels.csv").open(newline="") as stream:
        yield from csv.DictReader(stream)


def skin7_counts(shared: Path) -> ClassCounts:
    """Training images of the checkpoints: folds 2 to 4, counted."""
    found = Counter(row["label"] for row in skin7_rows(shared) if row["fold"] in "234")
    return ClassCounts(CLASSES, tuple(found[name] for name in CLASSES))


def _skin7(settings: PreprocessSettings) -> PreprocessSettings:
    return PreprocessSettings(resize=settings.resize, crop=settings.crop, mean=MEAN, std=STD)


def _normalise(pixels: Tensor, settings: PreprocessSettings) -> Tensor:
    return select_preprocessing(_skin7(settings)).normalise(pixels).contiguous()


def make_subject(name: str, pool: Pool, seed: int = 0) -> nn.Module:
    """A torchvision network in eval mode on the CPU; batch-norm statistics and head come from the pool.

    Three quarters of the pool fit the head; the last quarter sets its scale.
    """
    torch.manual_seed(seed)
    network = torchvision.models.get_model(name, weights=None, num_classes=len(CLASSES))
    _tame(network)
    _set_statistics(network, pool.x[: 4 * _BATCH])
    network.eval()
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    features = _features(network, head, pool.x)
    fitted = 3 * len(pool.x) // 4
    mean, std = features[:fitted].mean(0), features[:fitted].std(0).clamp_min(1e-6)
    standard = ((features - mean) / std).double().numpy()
    fit = _fit_head(standard, pool.labels.numpy(), fitted)
    scale = _scale(torch.from_numpy(fit.decision_function(standard[fitted:])), CONFIDENCE)
    coefficients = torch.from_numpy(fit.coef_).float() / std
    with torch.no_grad():
        head.weight.copy_(scale * coefficients)
        head.bias.copy_(scale * (torch.from_numpy(fit.intercept_).float() - coefficients @ mean))
    return network


def _fit_head(features: NDArray[np.floating], labels: NDArray[np.integer], fitted: int) -> LogisticRegression:
    """Cross-entropy without re-balancing on the first ``fitted``, as the checkpoints were trained.

    The penalty is the one of least cross-entropy on the others. A head that fits worse has scores that must be
    magnified to be as confident, and its labels lie closer together than those of trained networks.
    """
    if len(set(labels[:fitted].tolist())) != len(CLASSES):
        raise SystemExit(f"{fitted} images do not hold all {len(CLASSES)} classes; give more with --head-images")
    found = []
    for penalty in _PENALTIES:
        fit = LogisticRegression(C=1 / penalty, max_iter=2000).fit(features[:fitted], labels[:fitted])
        loss = log_loss(labels[fitted:], fit.predict_proba(features[fitted:]), labels=range(len(CLASSES)))
        found.append((loss, penalty, fit))
    return min(found, key=lambda one: one[:2])[2]


def _tame(network: nn.Module) -> None:
    """Smooth filters, and units that are mostly on: without it the input's gradient grows with every layer."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.fill_(_SHIFT)
            elif isinstance(module, nn.Conv2d):
                module.weight.lerp_(module.weight.mean((2, 3), keepdim=True).expand_as(module.weight), _SMOOTHED)


def _set_statistics(network: nn.Module, x: Tensor) -> None:
    """Running statistics of every batch norm from these images, one average over all batches."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    with torch.no_grad():
        for batch in x.split(_BATCH):
            network(batch)


def _features(network: nn.Module, head: nn.Linear, x: Tensor) -> Tensor:
    """(N, D) what the head receives."""
    found: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for batch in x.split(_BATCH):
            network(batch)
    handle.remove()
    return torch.cat(found)


def _scale(scores: Tensor, confidence: float) -> float:
    """The factor that brings the mean top probability to ``confidence``, by bisection of its logarithm."""
    low, high = -8.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _confidence(2.0**middle * scores) > confidence else (middle, high)
    return float(2.0**low)


def _confidence(logits: Tensor) -> float:
    return torch.softmax(logits, dim=1).amax(1).mean().item()

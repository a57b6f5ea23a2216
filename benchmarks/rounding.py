"""How many images low precision has to be calibrated on, on real networks whose rounding is emulated.

Any machine can emulate it in float32: what goes into a layer with parameters, its parameters and what comes out of it
are rounded to bfloat16 or float16, forward and backward, but for the first and the last layer, as on a GPU. One file
for each Skin7 checkpoint, fold, format and eps holds the (2, N, C) logits ``full`` and ``low``, base and corrected;
files that are there are left as they are: a run that was cut off goes on. Bounds are then measured on images that are
drawn anew again and again, as `predict` measures them, and decide on all the others.

    python benchmarks/rounding.py FOLDER --shared SHARED [--write]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from checkpoints import CHECKPOINTS, EPS
from measuring import Log, command_line, progress, table, write_section
from real_logits import image_sets, open_checkpoint, read_images
from subjects import skin7_counts
from torch import Tensor, nn

from imbalance_perturb.data.image_samples import calibration_positions
from imbalance_perturb.inference.acceleration.optimisation import fold_batch_norm
from imbalance_perturb.inference.calibration import BothWays, Shortcuts
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.models.classifier import LoadedClassifier

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}

FOLDS = ("fold0", "fold1")

#: Images of runs, which decide how many may be calibrated on.
RUNS = (320, 4_000, 20_000)

#: Images between two looks at whether bounds are settled.
_LOOK = 16

_BATCH = 64


class _Round(torch.autograd.Function):
    """Rounds values on the way forward and gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype).to(grads[0].dtype), None


class Rounded(nn.Module):
    """A layer as a unit of low precision computes it: rounded factors, products added up in float32, rounded."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x."""
        return _rounded(self.layer(_rounded(x, self.dtype)), self.dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    found: Tensor = _Round.apply(x, dtype)  # type: ignore[no-untyped-call]
    return found


def emulated(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a network whose layers between the first and the last are rounded."""
    copied = copy.deepcopy(network)
    layers = [name for name, module in copied.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    for name in layers[1:-1]:
        parent, _, own = name.rpartition(".")
        setattr(copied.get_submodule(parent), own, Rounded(copied.get_submodule(name), dtype))
    return copied


def write_all(folder: Path, shared: Path) -> None:
    """Compute the files that are not there."""
    sets, counts = image_sets(shared), skin7_counts(shared)
    for name, checkpoint in CHECKPOINTS.items():
        model, preprocessing = open_checkpoint(checkpoint, shared)
        network, _ = fold_batch_norm(model.network)
        networks = {"full": network, **{word: emulated(network, dtype) for word, dtype in FORMATS.items()}}
        for fold, eps in product(FOLDS, EPS):
            left = {word: networks[word] for word in networks if not _path(folder, name, fold, word, eps).exists()}
            if not left:
                continue
            progress(f"{name}, {fold}, eps {eps}: {', '.join(left)}")
            parts: dict[str, list[Tensor]] = {word: [] for word in left}
            for start in range(0, len(sets[fold].paths), _BATCH):
                x = read_images(sets[fold], slice(start, start + _BATCH), preprocessing)
                for word, one in left.items():
                    corrected = PerturbedClassifier(LoadedClassifier(one, model.info), counts, eps=eps)
                    parts[word].append(torch.stack(corrected.predict_both(x)))
            for word, found in parts.items():
                path = _path(folder, name, fold, word, eps)
                unfinished = path.with_suffix(".partial.npy")
                np.save(unfinished, torch.cat(found, dim=1).numpy())
                unfinished.replace(path)


def _path(folder: Path, name: str, fold: str, word: str, eps: float) -> Path:
    return folder / f"{name}-{fold}-{word}-{eps:g}.npy"


class Outcome(NamedTuple):
    """What bounds from some images do: how many these are, and of all others the shares recomputed and missed.

    ``told``: share of missed labels as the images themselves tell it.
    """

    images: float
    recomputed: float
    missed: float
    told: float


def outcome(everything: BothWays, order: Tensor, shortcuts: Shortcuts, ahead: int) -> Outcome:
    """Calibrate on images in this order, as `predict` does, and decide on all others.

    Args:
        everything: the logits of all images.
        order: indices of those that may be calibrated on.
        shortcuts: of `auto`.
        ahead: images of the run.
    """
    taken = _LOOK
    while taken < len(order) and not shortcuts.settled(everything.some(order[:taken]), ahead, _LOOK):
        taken += _LOOK
    found = everything.some(order[:taken])
    bounds = shortcuts.measure(found)
    others = torch.ones(len(everything.full), dtype=torch.bool)
    others[order[:taken]] = False
    doubtful = shortcuts.doubtful(bounds, everything.base, everything.logits)
    kept, same = shortcuts.compare(found)
    return Outcome(
        taken,
        float(doubtful[others].double().mean()),
        float((_differ(everything) & ~doubtful)[others].double().mean()),
        float((kept & ~same.all(1)).double().mean()),
    )


def _differ(found: BothWays) -> Tensor:
    """Whether (N,) the plain or the corrected label is not that of the full computation."""
    return (found.base.argmax(1) != found.full_base.argmax(1)) | (found.logits.argmax(1) != found.full.argmax(1))


def rows(folder: Path, counts: ClassCounts, draws: int) -> Iterator[list[str]]:
    """Lines of the table."""
    # Close calls of the precision ask nothing of the classifier.
    shortcuts = Shortcuts(PerturbedClassifier(nn.Identity(), counts, eps=0.0), "auto", close_calls_only=False)
    for name, word, eps in product(CHECKPOINTS, FORMATS, EPS):
        sets = []
        for fold in FOLDS:
            full, low = (torch.from_numpy(np.load(_path(folder, name, fold, one, eps))) for one in ("full", word))
            sets.append(BothWays(*full, *low))
        differ = np.mean([float(_differ(found).double().mean()) for found in sets])
        for run in RUNS:
            rng, found = np.random.default_rng(0), []
            for _ in range(draws):
                for everything in sets:
                    drawn = rng.permutation(len(everything.full))[: len(calibration_positions(run))]
                    found.append(outcome(everything, torch.from_numpy(drawn), shortcuts, run))
            images, recomputed, missed, told = (np.mean(values) for values in zip(*found, strict=True))
            worst = max(one.missed for one in found)
            yield [
                f"{name}, {word}, eps {eps:g}", f"{differ:.2%}", f"{run:,}", f"{images:.0f}", f"{recomputed:.1%}",
                f"{missed:.4%}", f"{told:.4%}", f"{worst:.2%}",
            ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the files are or go")
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/skin7 and models")
    parser.add_argument("--draws", type=int, default=200, help="calibrations on each fold")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_all(options.folder, options.shared)
    log = Log()
    log.say(
        f"`{command_line((options.shared, 'SHARED'), (options.folder, 'FOLDER'))}`",
        "",
        "Low precision emulated in float32 on Skin7's folds 0 and 1, each with all its images. 'Differ': labels, plain"
        " or corrected, of low precision alone. 'Run': of so many images; 'on': images that it calibrates on until its"
        " bounds are settled, drawn anew each time; 'again': of the others, computed in float32 after all;"
        " 'missed': labels that differ from float32's even so; 'told': the same as the calibrated images tell it, each"
        " part decided by bounds from the others; 'worst': missed after the worst draw.",
        "",
        *table(("network", "differ", "run", "on", "again", "missed", "told", "worst"),
               rows(options.folder, skin7_counts(options.shared), options.draws)),
    )  # fmt: skip
    if options.write:
        write_section("rounding", "How many images low precision is calibrated on", log.lines)


if __name__ == "__main__":
    main()

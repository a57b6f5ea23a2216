"""Part of the speed benchmark: the trained Skin7 checkpoints on a whole fold, in time and in labels."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from measuring import Log, Measured, alternate, progress, ratios, table
from ours import MODES, Answer, answer, answer_with, make_ours, notes, plain, written_plainly
from sklearn.metrics import recall_score
from subjects import CLASSES, Pool, skin7_counts, skin7_pool
from torch import Tensor, nn

from imbalance_perturb.batching import usual_batch_size
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.models import load_classifier
from imbalance_perturb.settings import PreprocessSettings
from imbalance_perturb.target import target_distribution

#: Fold that is predicted, and images of it that bounds are calibrated on: a random sample, as `predict` does it.
FOLD, CALIBRATED = 0, 64

EPS = (0.001, 0.005)

PLAIN = "plain eager fp32"

#: Largest ratio to plain eager that the project asks for, by eps and contender.
ASKED = {(0.001, "ours, close calls only"): 0.6}


class Checkpoint(NamedTuple):
    """A file, its architecture where it has none of its own, and the preprocessing it was trained with."""

    title: str
    file: str
    arch: str | None
    settings: PreprocessSettings
    load: Callable[[Path], nn.Module]


def _load_script(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated upstream; users' files are in it
        return torch.jit.load(path, map_location="cpu")  # type: ignore[no-any-return]


def _load_resnet(path: Path) -> nn.Module:
    network = torchvision.models.resnet18(num_classes=len(CLASSES))
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


CHECKPOINTS = (
    Checkpoint(
        "EfficientNet-Lite0 (TorchScript), 112 px",
        "skin7_efficientnet_lite0.torchscript.pt",
        None,
        PreprocessSettings(resize=(112, 112), crop="none"),
        _load_script,
    ),
    Checkpoint(
        "ResNet18, 64 px",
        "skin7_resnet18.pth",
        "resnet18",
        PreprocessSettings(resize=64, crop=64),
        _load_resnet,
    ),
)


class Plan(NamedTuple):
    """How it is measured."""

    rounds: int
    batch_size: int
    device: torch.device


class Scores(NamedTuple):
    """Of labels on a fold: mean class recall and recall of the rarest class, in points."""

    mcr: float
    scr: float


def compare_checkpoints(shared: Path, log: Log, plan: Plan, images: int | None) -> None:
    """One table for each checkpoint and eps; ``images`` of the fold, or all where it is ``None``."""
    counts = skin7_counts(shared)
    for checkpoint in CHECKPOINTS:
        progress(f"{checkpoint.title}: decoding")
        pool = skin7_pool(shared, FOLD, checkpoint.settings, images)
        for eps in EPS:
            _compare(checkpoint, shared / "models" / checkpoint.file, pool, counts, eps, log, plan)


def _compare(
    checkpoint: Checkpoint, path: Path, pool: Pool, counts: ClassCounts, eps: float, log: Log, plan: Plan
) -> None:
    batches = [batch.to(plan.device) for batch in pool.x.split(plan.batch_size)]
    user = checkpoint.load(path).eval().to(plan.device)
    loaded = load_classifier(str(path), arch=checkpoint.arch).to(plan.device)
    made = make_ours(loaded.network, counts, eps, _calibration(pool.x, plan.device), plan.device)
    target = target_distribution(counts).float().to(plan.device)
    progress(f"{checkpoint.title}, eps {eps:g}: reference")
    base, corrected = written_plainly(user, target, eps, batches, plan.device)
    contenders: dict[str, Callable[[], Answer]] = {
        PLAIN: lambda: answer(plain(user), batches),
        "plain optimised fp32": lambda: answer(made.reference.predict_plain, batches),
    }
    # As many at once as `predict` takes together; in batches of its usual size they go through the network.
    together = pool.x.split(4 * usual_batch_size(plan.device.type, (3, pool.x.shape[2], pool.x.shape[3])))
    groups = [group.to(plan.device) for group in together]
    contenders |= {name: functools.partial(answer_with, mode, groups) for name, mode in made.modes.items()}
    for contender in contenders.values():
        contender()  # once through: long enough for TorchScript to have compiled, and for samples to be rare
    progress(f"{checkpoint.title}, eps {eps:g}: measuring")
    measured = alternate(contenders, plan.rounds, plan.device)
    scores = _score(corrected, pool)
    text = (
        f"**{checkpoint.title}, eps {eps:g}**, {len(pool.x):,} images of fold {FOLD} in batches of {plan.batch_size}"
        f" (median of {plan.rounds}); {made.path}. The reference has MCR {scores.mcr:.2f}, SCR {scores.scr:.2f} and"
        f" changes {_share_different(corrected, base):.1%} of the labels."
    )
    log.say(" ".join([text, *notes(made)]), "", *_table(measured, base, corrected, pool, eps), "")


def _calibration(x: Tensor, device: torch.device) -> list[Tensor]:
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:CALIBRATED].sort().values
    return [batch.to(device) for batch in x[drawn].split(16)]


def _table(measured: dict[str, Measured[Answer]], base: Answer, corrected: Answer, pool: Pool, eps: float) -> list[str]:
    head = (
        "contender", "ms an image", "ratio", "min-max", "asked", "labels as fp32", "MCR diff.", "SCR diff.",
        "recomputed", "corrected",
    )  # fmt: skip
    return table(head, _rows(measured, base, corrected, pool, eps))


def _rows(
    measured: dict[str, Measured[Answer]], base: Answer, corrected: Answer, pool: Pool, eps: float
) -> Iterator[list[str]]:
    n = len(pool.x)
    for name, own in measured.items():
        ratio, lowest, highest = ratios(own, measured[PLAIN])
        expected = corrected if name in MODES else base
        found = max(own.found, key=lambda one: _share_different(one, expected))  # the worst round
        mode = name in MODES
        scores, truth = _score(found, pool), _score(expected, pool)
        asked = ASKED.get((eps, name))
        yield [
            name,
            f"{1e3 * own.median / n:.2f}",
            f"{ratio:.2f}",
            f"{lowest:.2f}-{highest:.2f}",
            "" if asked is None else f"<= {asked:g}",
            f"{1 - _share_different(found, expected):.2%}",
            f"{scores.mcr - truth.mcr:+.2f}",
            f"{scores.scr - truth.scr:+.2f}",
            f"{found.recomputed / n:.1%}" if mode else "",
            f"{found.corrected / n:.1%}" if mode else "",
        ]


def _share_different(found: Answer, expected: Answer) -> float:
    return (found.preds != expected.preds).double().mean().item()


def _score(found: Answer, pool: Pool) -> Scores:
    there = pool.labels.unique().tolist()
    truth, preds = pool.labels.numpy(), found.preds.numpy()
    recall = recall_score(truth, preds, labels=[len(CLASSES) - 1], average=None, zero_division=0.0)[0]
    # Over classes with images, without a warning where a small part of the fold lacks one.
    mcr = recall_score(truth, preds, labels=there, average="macro", zero_division=0.0)
    return Scores(100 * float(mcr), 100 * float(recall))

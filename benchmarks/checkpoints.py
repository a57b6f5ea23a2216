"""Part of the speed benchmark: the trained Skin7 checkpoints on a whole fold, in time and in labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from contenders import OPTIMISED_LOW, PLAIN, Answer, Expected, Inputs, Task, count_same, expect, gather, possible
from measuring import Log, Measured, progress, ratios, table
from ours import MODES
from sklearn.metrics import recall_score
from subjects import CLASSES, Pool, skin7_counts, skin7_pool

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.inference.batching import usual_batch_size

#: Fold that is predicted, and images of it that bounds are calibrated on: a random sample, as `predict` does it.
FOLD, CALIBRATED = 0, 64

#: Images that go through before any time is taken.
SETTLING = 256

EPS = (0.001, 0.005)

#: Largest ratio to plain eager that the project asks for, by eps and contender.
ASKED = {(0.001, "ours, close calls only"): 0.6}

#: Least share of labels as in float32 that it asks of `auto`, and most points of MCR and SCR that it may be off.
ASKED_LABELS, ASKED_POINTS = 0.999, 0.2


#: Contenders about which the checkpoints say nothing that the networks do not.
_LEFT_OUT = (OPTIMISED_LOW, "ours, bf16")


class Checkpoint(NamedTuple):
    """A file, its architecture where it has none of its own, and the preprocessing it was trained with."""

    title: str
    file: str
    arch: str | None
    settings: PreprocessSettings


CHECKPOINTS = {
    "efficientnet_lite0": Checkpoint(
        "EfficientNet-Lite0 (TorchScript), 112 px",
        "skin7_efficientnet_lite0.torchscript.pt",
        None,
        PreprocessSettings(resize=(112, 112), crop="none"),
    ),
    "resnet18": Checkpoint("ResNet18, 64 px", "skin7_resnet18.pth", "resnet18", PreprocessSettings(resize=64, crop=64)),
}


class Plan(NamedTuple):
    """How it is measured; ``images`` of the fold, all where it is ``None``."""

    rounds: int
    batch_size: int
    device: torch.device
    images: int | None


class Scores(NamedTuple):
    """Of labels on a fold: mean class recall and recall of the rarest class, in points."""

    mcr: float
    scr: float


class Fold(NamedTuple):
    """What came of the fold at one eps."""

    eps: float
    labels: list[int]
    measured: dict[str, Measured[Answer]]
    expected: Expected


def compare_checkpoint(shared: Path, checkpoint: Checkpoint, log: Log, plan: Plan) -> None:
    """A table for each eps."""
    progress(f"{checkpoint.title}: decoding")
    pool = skin7_pool(shared, FOLD, checkpoint.settings, plan.images)
    drawn = torch.randperm(len(pool.x), generator=torch.Generator().manual_seed(0))[:CALIBRATED].sort().values
    inputs = Inputs([pool.x], pool.x[:SETTLING].clone(), pool.x[drawn])
    # As many at once as `predict` takes together.
    together = 4 * usual_batch_size(plan.device.type, (3, pool.x.shape[2], pool.x.shape[3]))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tuple(inputs), Path(folder) / "inputs.pt")
        for eps in EPS:
            task = Task(
                shared / "models" / checkpoint.file,
                checkpoint.arch,
                Path(folder) / "inputs.pt",
                skin7_counts(shared),
                eps,
                plan.batch_size,
                together,
                plan.device,
            )
            _compare(checkpoint, task, pool, log, plan)


def _compare(checkpoint: Checkpoint, task: Task, pool: Pool, log: Log, plan: Plan) -> None:
    progress(f"{checkpoint.title}, eps {task.eps:g}: reference")
    expected = expect(task)
    names = [name for name in possible(plan.device, ()) if name not in _LEFT_OUT]
    with gather(task, names) as team:
        progress(f"{checkpoint.title}, eps {task.eps:g}: measuring")
        fold = Fold(task.eps, pool.labels.tolist(), team.take_turns(plan.rounds), expected)
        notes = list(dict.fromkeys(note for worker in team.workers.values() for note in worker.notes))
        idle = team.idle_share
    base, corrected = expected.base[0], expected.corrected[0]
    scores = _score(corrected, fold.labels)
    n = len(fold.labels)
    log.say(
        f"**{checkpoint.title}, eps {task.eps:g}**, {n:,} images of fold {FOLD} in batches of {plan.batch_size},"
        f" ours in batches of {task.together // 4} (median of {plan.rounds}). The reference has MCR {scores.mcr:.2f},"
        f" SCR {scores.scr:.2f} and changes {1 - count_same([base], [corrected]) / n:.1%} of the labels."
        f" {'. '.join(notes)}. Waiting processes used {idle:.1%} of one core.",
        "",
        *table(HEAD, _rows(fold)),
        "",
    )


HEAD = (
    "contender", "ms an image", "ratio", "min-max", "asked", "labels as fp32", "MCR diff.", "SCR diff.",
    "recomputed", "corrected",
)  # fmt: skip


def _rows(fold: Fold) -> Iterator[list[str]]:
    n = len(fold.labels)
    for name, own in fold.measured.items():
        ratio, lowest, highest = ratios(own, fold.measured[PLAIN])
        expected = fold.expected.labels_of(name)[0]
        found = min(own.found, key=lambda one: count_same([one], [expected]))  # the worst round
        same, mode = count_same([found], [expected]) / n, name in MODES
        scores, truth = _score(found, fold.labels), _score(expected, fold.labels)
        off = (scores.mcr - truth.mcr, scores.scr - truth.scr)
        yield [
            name,
            f"{1e3 * own.median / n:.2f}",
            f"{ratio:.2f}",
            f"{lowest:.2f}-{highest:.2f}",
            _asked(name, fold.eps, ratio, same, off),
            f"{same:.2%}",
            *(f"{points:+.2f}" for points in off),
            f"{found.recomputed / n:.1%}" if mode else "",
            f"{found.corrected / n:.1%}" if mode else "",
        ]


def _asked(name: str, eps: float, ratio: float, same: float, off: tuple[float, float]) -> str:
    """What the project asks of this contender and whether it is so."""
    if name == "ours, auto":
        met = same >= ASKED_LABELS and all(abs(points) <= ASKED_POINTS for points in off)
        return f"labels {'met' if met else 'MISSED'}"
    asked = ASKED.get((eps, name))
    return "" if asked is None else f"<= {asked:g}, {'met' if ratio <= asked else 'MISSED'}"


def _score(found: Answer, labels: list[int]) -> Scores:
    recall = recall_score(labels, found.preds, labels=[len(CLASSES) - 1], average=None, zero_division=0.0)[0]
    # Over classes with images, without a warning where a small part of the fold lacks one.
    mcr = recall_score(labels, found.preds, labels=sorted(set(labels)), average="macro", zero_division=0.0)
    return Scores(100 * float(mcr), 100 * float(recall))

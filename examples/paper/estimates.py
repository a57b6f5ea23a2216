"""How long what is left will take on this machine: by what was measured here, else by a trial of a few batches."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable

import torch

from examples.paper import networks
from examples.paper.experiments import Experiment
from examples.paper.settings import Machine
from examples.paper.trainings import COSINE_HEADS, Training

# Forward passes an image of each stage, about: a prediction has one backward and two forwards; the others sweep a grid.
PASSES = {
    "tune": 15,
    "test-paper": 3,
    "test-tuned": 3,
    "official-paper": 3,
    "official-tuned": 3,
    "compare": 30,
    "figure3-eps": 12,
    "figure3-temperature": 18,
}
START = 12.0  # seconds until a command has loaded and calibrated


def list_left(experiments: list[Experiment], machine: Machine, say: Callable[[str], None]) -> None:
    """One line for each experiment, and the sum."""
    total, trials = 0.0, {}
    for experiment in experiments:
        left = experiment.left()
        label = "/".join(experiment.folder.parts[-4:])
        if not left:
            say(f"{label:44} done")
            continue
        key = (experiment.settings.backbone, experiment.settings.size)
        if key not in trials:
            trials[key] = measured(experiments, key) or trial(experiment, machine)
        seconds = sum(stage_seconds(experiment, stage, *trials[key]) for stage in left)
        total += seconds
        say(f"{label:44} {seconds / 3600:6.2f} h  left: {', '.join(left)}")
    say(f"{'in all':44} {total / 3600:6.2f} h, one after the other")


def stage_seconds(experiment: Experiment, stage: str, training: float, forward: float) -> float:
    """Seconds of a stage, from those of an image in training and in a forward pass."""
    parts = experiment.split
    if stage == "train":
        log = experiment.folder / "log.csv"
        done = len(list(csv.DictReader(log.open()))) if log.exists() else 0
        return (experiment.settings.schedule.epochs - done) * len(parts.train) * training
    official = len(experiment.data.official) if experiment.data.official else 0
    images = (
        len(parts.validation) if stage in ("tune", "compare") else official if "official" in stage else len(parts.test)
    )
    return START + PASSES[stage] * images * forward


def measured(experiments: list[Experiment], key: tuple[str, int]) -> tuple[float, float] | None:
    """Medians of seconds an image in training and in a forward pass, of what was done with this backbone and size."""
    training, forward = [], []
    for experiment in experiments:
        if (experiment.settings.backbone, experiment.settings.size) != key:
            continue
        parts, log, stages = experiment.split, experiment.folder / "log.csv", experiment.folder / "seconds.json"
        if log.exists():
            training += [float(row["seconds"]) / len(parts.train) for row in csv.DictReader(log.open())]
        if stages.exists():
            known = json.loads(stages.read_text())
            forward += [max(0.0, known[s] - START) / PASSES[s] / len(parts.test) for s in ("test-paper",) if s in known]
    if not training:
        return None
    return statistics.median(training), statistics.median(forward) if forward else statistics.median(training) / 4


def trial(experiment: Experiment, machine: Machine) -> tuple[float, float]:
    """Seconds an image in training and in a forward pass, from three batches of noise."""
    chosen = experiment.settings
    training = Training(chosen.training, torch.ones(len(experiment.data.classes)))
    network = networks.build(chosen.backbone, len(experiment.data.classes), chosen.training in COSINE_HEADS)
    network = network.to(machine.device, memory_format=machine.layout)
    images = torch.randn(min(32, chosen.schedule.batch_size), 3, chosen.size, chosen.size, device=machine.device)
    labels = torch.zeros(len(images), dtype=torch.long, device=machine.device)

    def step() -> None:
        with torch.autocast(machine.device.split(":")[0], torch.bfloat16, enabled=chosen.precision == "bf16"):
            logits = network(images)
        training.loss(logits, labels, late=False).backward()

    def look() -> None:
        with torch.inference_mode():
            network(images).sum().item()

    return tuple(median_seconds(call) / len(images) for call in (step, look))  # type: ignore[return-value]


def median_seconds(call: Callable[[], None]) -> float:
    """Of three calls after one that warms up; on a GPU each waits for its result."""
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])

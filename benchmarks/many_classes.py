"""Very many classes: what `evaluate`, and the choices of `tune-eps` and `compare`, take in time, memory and bytes.

    python benchmarks/many_classes.py [--classes 8142] [--images 20000] [--write]

Made predictions over as many classes as iNaturalist 2018 has, in a long tail; each command is a process of its own,
with one thread (Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import Log, command_line, describe_machine, progress, table, write_section
from memory import resident
from numpy.typing import NDArray

from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.writing import open_rows
from imbalance_perturb.selection.comparison.methods import METHODS
from imbalance_perturb.selection.comparison.results import MethodResult
from imbalance_perturb.selection.comparison.scoring import score_lineup
from imbalance_perturb.selection.cross_validation import select_by_cross_validation
from imbalance_perturb.selection.sweep import STRENGTH_GRID

#: What is asked of `evaluate --json --report`: seconds, MiB of memory, MB of the report.
ASKED_SECONDS, ASKED_MEMORY, ASKED_REPORT = 60, 2048, 5

Ints = NDArray[np.int64]


class Taken(NamedTuple):
    """Of one process: seconds of clock and of CPU, and peak resident memory in MiB."""

    seconds: float
    cpu: float
    memory: float

    def cells(self) -> list[str]:
        """As a table has them."""
        return [f"{self.seconds:.0f}", f"{self.cpu:.0f}", f"{self.memory:,.0f}"]


def make_counts(classes: int) -> ClassCounts:
    """Training counts from 1,000 down to 2."""
    counts = np.round(1000 * (2 / 1000) ** (np.arange(classes) / max(classes - 1, 1))).astype(int)
    return ClassCounts([f"species_{index:05d}" for index in range(classes)], counts.tolist())


def make_preds(labels: Ints, classes: int, right: float, random: np.random.Generator) -> Ints:
    """Predictions of which a share is right and the others are anything."""
    return np.where(random.random(len(labels)) < right, labels, random.integers(0, classes, len(labels)))


def write_table(folder: Path, counts: ClassCounts, images: int, probabilities: bool) -> tuple[Path, Path]:
    """Predictions and labels of so many images, three in five right and one in twenty changed."""
    random = np.random.default_rng(0)
    labels = random.integers(0, len(counts), images)
    base = make_preds(labels, len(counts), 0.6, random)
    preds = np.where(random.random(images) < 0.95, base, make_preds(labels, len(counts), 0.7, random))
    predictions, truth = folder / "predictions.csv", folder / "labels.csv"
    (folder / "counts.json").write_text(json.dumps(counts.to_json()))
    with open_rows(str(predictions), RowLayout(classes=counts.names if probabilities else ())) as write:
        for index, (one, other) in enumerate(zip(base.tolist(), preds.tolist(), strict=True)):
            probs = base_probs = ()
            if probabilities:
                probs, base_probs = (tuple(row.tolist()) for row in random.dirichlet(np.ones(len(counts)), 2))
            write(
                PredictionRow(
                    image=f"{index:06d}.jpg",
                    base_pred=counts.names[one],
                    base_confidence=0.5,
                    pred=counts.names[other],
                    confidence=0.5,
                    probs=probs,
                    base_probs=base_probs,
                )
            )
    rows = "".join(f"{index:06d}.jpg,{counts.names[label]}\n" for index, label in enumerate(labels.tolist()))
    truth.write_text(f"image,label\n{rows}")
    return predictions, truth


def run(command: list[str], folder: Path, out: Path) -> Taken:
    """Run Python with one thread in the folder; the peak is that of this one process."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    with out.open("wb") as stream:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=stream, env=os.environ | threads)
        # What the system has as the peak of a child begins with this process's own memory.
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.02)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Taken(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak)


def measure_evaluate(options: argparse.Namespace, log: Log) -> None:
    """`evaluate` without probabilities, with the figures asked for, and with them."""
    counts = make_counts(options.classes)
    rows = []
    for images, probabilities in ((options.images, False), (options.probs_images, True)):
        progress(f"evaluate: {images} images{' with probabilities' if probabilities else ''}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_table(folder, counts, images, probabilities)
            arguments = [
                "-m",
                "imbalance_perturb",
                "evaluate",
                "--labels",
                "labels.csv",
                "--counts",
                "counts.json",
                "--quiet",
            ]
            taken = run([*arguments, "--json", "--report", "report.html"], folder, folder / "out.json")
            table_taken = run(arguments, folder, folder / "out.txt")
            sizes = [(folder / file).stat().st_size / 1e6 for file in ("out.json", "report.html")]
            lines = (folder / "out.txt").read_text().count("\n")
        rows.append(
            [
                f"{images:,} images{', --probs' if probabilities else ''}",
                *taken.cells(),
                *(f"{size:.1f}" for size in sizes),
                f"{table_taken.seconds:.0f}",
                f"{lines:,}",
            ]
        )
        if not probabilities:
            met = (taken.seconds < ASKED_SECONDS, taken.memory < ASKED_MEMORY, sizes[1] < ASKED_REPORT)
    heads = (
        "evaluate --json --report",
        "s",
        "CPU, s",
        "peak, MiB",
        "JSON, MB",
        "report, MB",
        "in the terminal, s",
        "lines there",
    )
    log.say(
        *table(heads, rows),
        "",
        f"Asked of the first row: under {ASKED_SECONDS} s, {ASKED_MEMORY:,} MiB and a report of {ASKED_REPORT} MB:"
        f" {', '.join('met' if one else 'NOT met' for one in met)}.",
        "",
    )


class MadeLogits(Sequence[NDArray[np.float32]]):
    """(N, C) logits of each correction, made when they are asked for: together they would not fit in memory.

    The predicted class has the largest; as a sweep's, they are float32.
    """

    def __init__(self, preds: Ints, classes: int) -> None:
        self._preds, self._classes = preds, classes

    def __len__(self) -> int:
        return self._preds.shape[1]

    def __getitem__(self, index: Any) -> Any:
        random = np.random.default_rng(index)
        logits = random.random((len(self._preds), self._classes), dtype=np.float32)
        logits[np.arange(len(logits)), self._preds[:, index]] += random.exponential(4, len(logits)).astype(np.float32)
        return logits


def choose(labels: Ints, base: Ints, random: np.random.Generator, counts: ClassCounts) -> None:
    """The choice of `tune-eps`: Brier scores, cross-validation and the test, on every eps of its grid."""
    others = [make_preds(labels, len(counts), 0.6, random) for _ in STRENGTH_GRID]
    preds = np.stack([base, *(np.where(random.random(len(base)) < 0.9, base, other) for other in others)], axis=1)
    strengths = [0.0, *STRENGTH_GRID]
    logits = MadeLogits(preds, len(counts))
    select_by_cross_validation(
        labels, preds, strengths, num_classes=len(counts), smallest_class=int(labels[0]), logits=logits
    )


def line_up(labels: Ints, base: Ints, random: np.random.Generator, counts: ClassCounts) -> None:
    """The scores of `compare`: figures, intervals and tests of every method against the plain model."""
    preds = {
        method: np.where(random.random(len(base)) < 0.9, base, make_preds(labels, len(counts), 0.6, random))
        for method in METHODS
    }
    score_lineup([MethodResult(method) for method in METHODS], labels, preds | {"none": base}, counts)


PARTS: dict[str, Callable[[Ints, Ints, np.random.Generator, ClassCounts], None]] = {
    "tune-eps": choose,
    "compare": line_up,
}


def measure_choice(options: argparse.Namespace, log: Log) -> None:
    """The cheap half of `tune-eps` and `compare`, after the model has run, each in a process of its own."""
    rows = []
    for part in PARTS:
        progress(f"the choice of {part}")
        numbers = ["--classes", str(options.classes), "--images", str(options.images)]
        script = str(Path(__file__).resolve())
        rows.append([part, *run([script, "--part", part, *numbers], Path.cwd(), Path(os.devnull)).cells()])
    log.say(*table(("choice and scores, without the model", "s", "CPU, s", "peak, MiB"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--probs-images", type=int, default=1000, help="images of the table with probabilities")
    parser.add_argument("--only-evaluate", action="store_true", help="leave out tune-eps and compare")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.part is not None:
        random, counts = np.random.default_rng(0), make_counts(options.classes)
        labels = random.integers(0, options.classes, options.images)
        PARTS[options.part](labels, make_preds(labels, options.classes, 0.6, random), random, counts)
        return
    log = Log()
    log.say(f"`{command_line()}` on {describe_machine(torch.device('cpu'))}; one thread.", "")
    log.say(f"{options.classes:,} classes.", "")
    measure_evaluate(options, log)
    if not options.only_evaluate:
        measure_choice(options, log)
    if options.write:
        write_section("many classes on cpu", "Very many classes", log.lines)


if __name__ == "__main__":
    main()

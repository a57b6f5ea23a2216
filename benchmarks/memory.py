"""Part of the pipeline benchmark: the peak memory of the command and its workers, for few images and for many."""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from measuring import Log, progress, table
from subjects import MEAN, STD, write_photographs

#: Height and width of the JPEGs, of which there are many, and of what models receive.
SIZE, INPUT = (96, 128), "64,64"

#: By how much the peak may differ.
ASKED = 0.05


class Peak(NamedTuple):
    """Largest resident memory in MiB: of the command with its workers at one time, and of its main process."""

    tree: float
    main: float


def measure_memory(options: argparse.Namespace, model: Path, work: Path, log: Log) -> None:
    """Peak memory for few and for many images, in an order drawn anew each time."""
    if not Path("/proc/self/status").is_file():
        log.say("Peak memory is read from /proc, which this system does not have: not measured.", "")
        return
    few, many = options.memory_images
    folders = {}
    for n in (few, many):
        progress(f"making {n} small JPEGs")
        write_photographs(work / f"small-{n}", n, min(few, options.distinct), SIZE)
        folders[n] = work / f"small-{n}"
    peaks: dict[int, list[Peak]] = {few: [], many: []}
    shuffle = random.Random(0)
    for _ in range(options.memory_rounds):
        for n in shuffle.sample((few, many), 2):
            progress(f"memory for {n} images")
            peaks[n].append(_peak_of(_command(options, model, folders[n], work / f"{n}.csv")))
    rows = [
        [f"{n:,} images", *(f"{statistics.median(found):,.0f}" for found in zip(*peaks[n], strict=True))] for n in peaks
    ]
    trees = [statistics.median(peak.tree for peak in peaks[n]) for n in (few, many)]
    more = trees[1] / trees[0] - 1
    log.say(
        f"Peak resident memory of `imbperturb predict` on JPEGs of {SIZE[1]} x {SIZE[0]} pixels, inputs of"
        f" {INPUT.replace(',', ' x ')}, median of {options.memory_rounds} (shared pages count in each process):",
        "",
        *table(("", "main process and workers, MiB", "main process, MiB"), rows),
        "",
        f"{many:,} images take {more:+.1%} (asked: within {ASKED:.0%}; {'met' if abs(more) <= ASKED else 'NOT met'}).",
        "",
    )


def _command(options: argparse.Namespace, model: Path, folder: Path, out: Path) -> list[str]:
    chosen = {
        "--arch": options.network,
        "--resize": INPUT,
        "--crop": "none",
        "--mean": ",".join(map(str, MEAN)),
        "--std": ",".join(map(str, STD)),
        "--device": options.device,
        "--precision": options.precision,
        "--batch-size": options.batch_size,
        "--workers": options.workers,
        "-o": out,
    }
    command = [sys.executable, "-m", "imbalance_perturb", "predict", model, model.with_name("counts.json"), folder]
    given = [word for name, value in chosen.items() if value is not None for word in (name, value)]
    return [str(word) for word in (*command, *given, *["--close-calls-only"] * options.close_calls_only, "--quiet")]


def _peak_of(command: list[str]) -> Peak:
    """Run a command and look at its memory twenty times a second."""
    tree = main = 0.0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            held = {pid: resident(pid) for pid in family(process.pid)}
            tree, main = max(tree, sum(held.values())), max(main, held[process.pid])
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}: {' '.join(command)}")
    return Peak(tree, main)


def family(pid: int) -> set[int]:
    """A process and those it started, down to the last."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # After the name in brackets, which may hold anything: state, parent.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
    family, found = {pid}, {pid}
    while found:
        found = {child for child, parent in parents.items() if parent in found}
        family |= found
    return family


def resident(pid: int) -> float:
    """Resident memory in MiB, 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

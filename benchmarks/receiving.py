"""What the process that drives the model spends on an image that workers decoded: no model, four workers sending.

    python benchmarks/receiving.py [--images 4000] [--workers 4] [--rounds 3] [--write]

Seconds of the processor of this process alone, from the first image on, by the size of the groups that it takes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from measuring import Log, command_line, describe_machine, table, write_section
from subjects import write_photographs

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.preprocessing import select_preprocessing
from imbalance_perturb.inference.decoding import decoder_pool
from imbalance_perturb.inference.decoding.workers import in_slices, iter_decoded

#: Images that differ; more are links to these.
DISTINCT = 320


def own_seconds() -> float:
    """Of the processor, of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def receive(folder: Path, names: list[str], group: int, workers: int, *, shared: bool) -> float:
    """Milliseconds of this process an image, with pixels in shared memory or through pipes."""
    preprocessing = select_preprocessing(PreprocessSettings())
    slices: Iterator[list[str]] = in_slices(names, group)
    with nullcontext() if shared else mock.patch.object(decoder_pool, "PixelSlots", side_effect=OSError):
        decoded = iter_decoded(folder, slices, preprocessing, workers)
        next(decoded)
        began, images = own_seconds(), 0
        for batch in decoded:
            images += len(batch.names)
        seconds = own_seconds() - began
    return 1000 * seconds / images


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log, rows = Log(), []
    log.say(f"`{command_line()}`", "", describe_machine(torch.device("cpu")), "")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "images"
        write_photographs(folder, options.images, DISTINCT, (256, 256))
        names = sorted(path.name for path in folder.iterdir())
        for group in (32, 512):
            spent: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(options.rounds):
                for shared, found in spent.items():
                    found.append(receive(folder, names, group, options.workers, shared=shared))
            pipes, slots = (f"{statistics.median(spent[shared]):.3f}" for shared in (False, True))
            rows.append([str(group), pipes, slots])
    log.say(*table(["images a group", "through pipes, ms an image", "in shared memory, ms an image"], rows))
    if options.write:
        write_section("receiving", "What workers' pixels cost the process that drives the model", log.lines)


if __name__ == "__main__":
    main()

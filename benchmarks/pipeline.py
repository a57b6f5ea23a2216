"""A folder end to end, from JPEGs to the predictions file: where the time goes, and whether memory stays flat.

    python benchmarks/pipeline.py [--network mobilenet_v2] [--images 1000] [--rounds 5] [--precision auto]
                                  [--batch-size N] [--workers N] [--threads N] [--device cuda] [--parts time,memory]
                                  [--write]

The script makes JPEGs of 600 x 450 pixels that compress like photographs (quality 90) in a temporary folder; more
names than distinct files are hard links. Measured in turns: the pipeline as ``imbperturb predict`` runs it; decoding
alone, with the same workers; computing alone, on the same batches from memory. Then the peak memory of the command and
its workers for 1,000 and 10,000 (small) images, each in processes of its own (Linux only).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from joblib import cpu_count
from measuring import Log, Measured, alternate, command_line, describe_machine, progress, ratios, table, write_section
from memory import measure_memory
from subjects import CLASSES, COUNTS, MEAN, STD, make_subject, synthetic_pool, write_photographs
from torch import Tensor

from imbalance_perturb.config.machine_settings import IMAGE_TIMEOUT
from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.inference import input_stream
from imbalance_perturb.inference.allocator import keep_freed_memory
from imbalance_perturb.inference.decoding.workers import DecodedBatch, in_slices, iter_decoded
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.inference.prediction_job import predict_folder

#: Height and width of the JPEGs.
SIZE = (450, 600)

PIPELINE, DECODE, COMPUTE = "pipeline", "decode alone", "compute alone"

PARTS = ("time", "memory")

#: How many times the slower of decoding and computing alone the pipeline may take.
ASKED = 1.10


class Cost(NamedTuple):
    """Of one measurement: seconds by stage where there are stages, and seconds of all processors together."""

    stages: dict[str, float]
    processor: float


class FromMemory:
    """Stands in for :func:`iter_decoded`: the same batches, decoded beforehand."""

    def __init__(self, pipeline: Pipeline, images: ImageList) -> None:
        self._batches: dict[tuple[str, ...], DecodedBatch] = {}
        self._pixels: dict[str, Tensor] = {}
        for batch in _decode(pipeline, images):
            for positions, pixels in batch.groups:
                self._pixels |= {batch.names[position]: one for position, one in zip(positions, pixels, strict=True)}

    def __call__(
        self,
        root: Path,
        slices: Iterator[list[str]],
        preprocessing: Preprocessing,
        workers: int,
        *,
        takes_turns: bool,
        image_timeout: float = IMAGE_TIMEOUT,
        pinned: bool = False,
    ) -> Iterator[DecodedBatch]:
        """A batch for each slice; stacked the first time, kept from then on."""
        for names in slices:
            key = tuple(names)
            if key not in self._batches:
                group = list(range(len(names))), torch.stack([self._pixels[name] for name in names])
                self._batches[key] = DecodedBatch(names, [None] * len(names), [group], 0.0)
            yield self._batches[key]


def _decode(pipeline: Pipeline, images: ImageList) -> Iterator[DecodedBatch]:
    execution = pipeline.execution
    slices = in_slices(images.names, execution.group_size)
    return iter_decoded(
        images.root, slices, pipeline.preprocessing, execution.workers, takes_turns=execution.takes_turns
    )


def make_contenders(pipeline: Pipeline, images: ImageList, work: Path) -> dict[str, Callable[[], Cost]]:
    """The pipeline and its two halves, each on all images."""
    memory = FromMemory(pipeline, images)

    def run() -> Cost:
        summary = predict_folder(pipeline, images, str(work / "predictions.csv"))
        if summary.failed or summary.run is None:
            raise SystemExit(f"{summary.failed} images failed: {summary.first_errors}")
        return Cost(json.loads(Path(summary.run).read_text())["seconds"], 0.0)

    def decode() -> Cost:
        for _ in _decode(pipeline, images):
            pass
        return Cost({}, 0.0)

    def compute() -> Cost:
        # The engine's own loop, fed from memory: rows, calibration and writing are those of the pipeline.
        with mock.patch.object(input_stream, "iter_decoded", memory):
            return run()

    return {PIPELINE: _clocked(run), DECODE: _clocked(decode), COMPUTE: _clocked(compute)}


def _clocked(step: Callable[[], Cost]) -> Callable[[], Cost]:
    def clocked() -> Cost:
        before = _processor_seconds()
        return step()._replace(processor=_processor_seconds() - before)

    return clocked


def _processor_seconds() -> float:
    """Of this process and of the workers that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure_time(options: argparse.Namespace, model: Path, work: Path, log: Log) -> None:
    """Seconds of the pipeline, of its stages, and of its halves alone."""
    progress(f"making {options.images} JPEGs")
    images = write_photographs(work / "images", options.images, options.distinct, SIZE)
    sizes = [(images.root / name).stat().st_size for name in images.names]
    pipeline = _load_pipeline(options, model, images)
    progress("warming up")
    contenders = make_contenders(pipeline, images, work)
    for name in (COMPUTE, PIPELINE):
        contenders[name]()
    progress("measuring")
    measured = alternate(contenders, options.rounds, pipeline.execution.device)
    execution = pipeline.execution
    log.say(
        f"{len(images):,} JPEGs of {SIZE[1]} x {SIZE[0]} pixels ({statistics.mean(sizes) / 1024:.0f} KiB on average),"
        f" {options.network} at 224 px, {execution.describe_precision()}, batches of {execution.batch_size},"
        f" {execution.workers} worker(s) that {'take turns with' if execution.takes_turns else 'decode beside'} the"
        f" model, median of {options.rounds}.",
        "",
        *table(("", "seconds", "min-max", "images/s", "processor s"), _rows(measured, len(images))),
        "",
        *table(
            ("stage of the pipeline", "seconds", "share", f"seconds of {COMPUTE}"),
            _stages(measured[PIPELINE], measured[COMPUTE]),
        ),
        "",
        *_verdict(measured),
        "",
    )


def _rows(measured: dict[str, Measured[Cost]], n: int) -> Iterator[list[str]]:
    for name, own in measured.items():
        yield [
            name,
            f"{own.median:.2f}",
            f"{min(own.seconds):.2f}-{max(own.seconds):.2f}",
            f"{n / own.median:.1f}",
            f"{_processor(own):.1f}",
        ]


def _stages(pipeline: Measured[Cost], compute: Measured[Cost]) -> Iterator[list[str]]:
    total = _seconds(pipeline, "total")
    for stage in pipeline.found[0].stages:
        seconds = _seconds(pipeline, stage)
        # Workers decode while the model computes, so theirs is not a part of the total.
        name, share = (f"{stage} (in the workers)", "") if stage == "decode" else (stage, f"{seconds / total:.1%}")
        yield [name, f"{seconds:.2f}", share, f"{_seconds(compute, stage):.2f}"]


def _seconds(measured: Measured[Cost], stage: str) -> float:
    return statistics.median(cost.stages.get(stage, 0.0) for cost in measured.found)


def _verdict(measured: dict[str, Measured[Cost]]) -> Iterator[str]:
    slower = max((DECODE, COMPUTE), key=lambda name: measured[name].median)
    ratio, lowest, highest = ratios(measured[PIPELINE], measured[slower])
    cores = cpu_count()
    bound = sum(_processor(measured[name]) for name in (DECODE, COMPUTE)) / cores
    yield (
        f"The pipeline takes {ratio:.2f} times ({lowest:.2f}-{highest:.2f}) as long as the slower of its halves,"
        f" {slower} (asked: at most {ASKED:.2f}; {'met' if ratio <= ASKED else 'NOT met'}). Where both halves"
        f" share {cores} core(s), nothing can be faster than their processor time over the cores, {bound:.2f} s"
        f" ({bound / measured[slower].median:.2f} times the slower half); the pipeline takes"
        f" {measured[PIPELINE].median / bound:.2f} times that."
    )


def _processor(measured: Measured[Cost]) -> float:
    return statistics.median(cost.processor for cost in measured.found)


def _load_pipeline(options: argparse.Namespace, model: Path, images: ImageList) -> Pipeline:
    settings = Settings(
        model=ModelSettings(model=str(model), counts=str(model.with_name("counts.json")), arch=options.network),
        preprocess=PreprocessSettings(mean=MEAN, std=STD),
        run=RunSettings(
            device=options.device,
            batch_size=options.batch_size,
            workers=options.workers,
            precision=options.precision,
            close_calls_only=options.close_calls_only,
        ),
    )
    return load_pipeline(settings, images)


def main() -> None:
    options = _parser().parse_args()
    keep_freed_memory()  # as the command line does
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the commands whose memory is measured
    log = Log()
    log.say(f"`{command_line()}` on {describe_machine(torch.device(options.device))}.", "")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        progress(f"{options.network}: head")
        network = make_subject(options.network, synthetic_pool(options.head_images, 224, seed=0))
        model = work / "model.pth"
        torch.save(network.state_dict(), model)
        model.with_name("counts.json").write_text(json.dumps(dict(zip(CLASSES, COUNTS, strict=True))))
        if "time" in options.parts:
            measure_time(options, model, work, log)
        if "memory" in options.parts:
            measure_memory(options, model, work, log)
    if options.write:
        kind = torch.device(options.device).type
        threads = f", {options.threads} thread(s)" if options.threads else ""
        words = f"{options.network} end to end on a {kind.upper()}{threads}"
        write_section(f"pipeline of {options.network} on {kind}{threads}", f"A folder with {words}", log.lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = functools.partial(parser.add_argument, type=int)
    parser.add_argument("--network", default="mobilenet_v2", help="torchvision name (default: mobilenet_v2)")
    parser.add_argument("--parts", type=_parts, default=PARTS, help="what to measure (default: time,memory)")
    add("--images", default=1000, help="of 600 x 450 pixels (default: 1000)")
    add("--distinct", default=300, help="different files among them (default: 300)")
    add("--head-images", default=384, help="that the network's head is fitted on (default: 384)")
    add("--rounds", default=5, help="measurements of time (default: 5)")
    parser.add_argument(
        "--memory-images", type=_two_numbers, default=(1000, 10000), help="FEW,MANY (default: 1000,10000)"
    )
    add("--memory-rounds", default=1, help="measurements of memory (default: 1)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: auto)")
    parser.add_argument("--close-calls-only", action="store_true", help="correct only close calls")
    add("--batch-size", help="(default: the package's own choice)")
    add("--workers", help="(default: the package's own choice)")
    add("--threads", help="of torch (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/RESULTS.md")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    return parts


def _two_numbers(text: str) -> tuple[int, int]:
    few, many = (int(part) for part in text.split(","))
    return few, many


if __name__ == "__main__":
    main()

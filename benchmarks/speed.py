"""What a corrected prediction costs, as a ratio to the plain eager float32 prediction that users run today.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py [--shared SHARED] [--networks resnet50,mobilenet_v2,densenet169] [--batch-sizes 8,32]
                               [--rounds 5] [--images 64] [--threads N] [--device cuda] [--write]

Side by side in one run: plain, plain optimised, the authors' loop, the same step by other libraries, and every mode
of this package. Each round measures each contender once, in a random order; figures are medians, ranges those of the
ratios within a round. Labels are checked in the same run against a plain float32 transcription of the paper. With
``--shared`` (the folder with ``data/skin7`` and ``models``) the images are Skin7's and the trained checkpoints follow
on a whole fold; without it images are made up. ``--write`` puts what is printed into RESULTS.md.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sweeping
import torch
from checkpoints import Plan, compare_checkpoints
from measuring import (
    Log,
    Measured,
    alternate,
    best_case,
    command_line,
    describe_machine,
    progress,
    ratios,
    table,
    write_section,
)
from ours import MODES, Answer, Ours, answer, answer_with, make_ours, notes, plain, written_plainly
from peers import AUTHORS, PEERS
from subjects import CLASSES, COUNTS, Pool, make_subject, skin7_pool, synthetic_pool
from torch import Tensor, nn

from imbalance_perturb.batching import usual_batch_size
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.settings import PreprocessSettings
from imbalance_perturb.target import target_distribution

NETWORKS = ("resnet50", "mobilenet_v2", "densenet169")

#: Height and width of the images, and the step: those of the paper.
SIZE, EPS = 224, 0.001

#: Images that modes are calibrated on, as `predict` does.
CALIBRATED = 64

PLAIN, OPTIMISED, OPTIMISED_LOW = "plain eager fp32", "plain optimised fp32", "plain optimised bf16"

#: Largest ratios to plain eager that the project asks for on a CPU with bf16 instructions.
ASKED = {
    ("resnet50", "ours, auto"): 0.9,
    ("mobilenet_v2", "ours, auto"): 0.95,
    ("densenet169", "ours, auto"): 1.5,
    ("resnet50", "ours, fp32"): 1.25,
    ("mobilenet_v2", "ours, fp32"): 1.0,
    ("densenet169", "ours, fp32"): 2.5,
}

#: Smallest throughput of `auto` that it asks for, in that of the authors' loop.
ASKED_OF_AUTHORS = 2.5


@dataclass(frozen=True)
class Case:
    """A network and its images: ``timed`` are measured on, ``settling`` only run through before."""

    name: str
    network: nn.Module
    timed: Pool
    settling: Tensor
    calibration: Tensor
    device: torch.device
    peers: bool

    @property
    def target(self) -> Tensor:
        """p* (C,)."""
        return target_distribution(ClassCounts(CLASSES, COUNTS)).float().to(self.device)

    def fresh(self) -> nn.Module:
        """A copy of the network on the device, as a user has it: parameters ask for gradients, eval mode."""
        return copy.deepcopy(self.network).to(self.device)


@dataclass(frozen=True)
class Expected:
    """Labels of the float32 reference."""

    base: Answer
    corrected: Answer

    def of(self, contender: str) -> Answer:
        """Those that a contender's labels should be."""
        return self.base if contender.startswith("plain") else self.corrected


def make_case(name: str, options: argparse.Namespace, device: torch.device) -> Case:
    """The network with a head fitted on images that it is not timed on."""
    progress(f"{name}: images and head")
    sizes = (options.head_images, options.images, options.settle, CALIBRATED)
    if options.shared is None:
        pool = synthetic_pool(sum(sizes), SIZE, seed=0)
    else:
        pool = skin7_pool(options.shared, 1, PreprocessSettings(resize=(SIZE, SIZE), crop="none"), sum(sizes))
    if len(pool.x) < sum(sizes):
        raise SystemExit(f"{sum(sizes)} images are asked for; {pool.origin} has {len(pool.x)}: ask for fewer")
    head, timed, settling, calibration = pool.split(*sizes)
    return Case(name, make_subject(name, head), timed, settling.x, calibration.x, device, not options.no_peers)


def measure_case(case: Case, batch_sizes: list[int], rounds: int, log: Log) -> None:
    """A table for each batch size, and what is possible at best."""
    device = case.device
    made = make_ours(
        case.fresh(),
        ClassCounts(CLASSES, COUNTS),
        EPS,
        [batch.to(device) for batch in case.calibration.split(16)],
        device,
    )
    progress(f"{case.name}: settling")
    for mode in made.modes.values():
        # Samples are taken more often among a run's first images: measured is the long run.
        answer_with(mode, [batch.to(device) for batch in case.settling.split(max(batch_sizes))])
    log.say(f"### {case.name}", "", " ".join([f"Ours: {made.path}.", *notes(made)]), "")
    for batch_size in batch_sizes:
        batches = [batch.to(device) for batch in case.timed.x.split(batch_size)]
        progress(f"{case.name}, batches of {batch_size}: reference and warming up")
        expected = Expected(*written_plainly(case.fresh(), case.target, EPS, batches, device))
        contenders = make_contenders(case, made, batches)
        for contender in make_contenders(case, made, batches[:1]).values():
            contender()
        progress(f"{case.name}, batches of {batch_size}: measuring")
        measured = alternate(contenders, rounds, device)
        report(case, batch_size, rounds, measured, expected, log)


def make_contenders(case: Case, made: Ours, batches: list[Tensor]) -> dict[str, Callable[[], Answer]]:
    """What is measured, in the order of the table; peers that are not installed are missing."""
    eager, trained = case.fresh(), case.fresh()
    # As `predict` does where no batch size is asked for: the batches of others, in parts that suit the machine.
    parts = [part for batch in batches for part in batch.split(usual_batch_size(case.device.type))]
    contenders: dict[str, Callable[[], Answer]] = {
        PLAIN: functools.partial(answer, plain(eager), batches),
        OPTIMISED: functools.partial(answer, made.reference.predict_plain, parts),
    }
    if made.low is not None:
        contenders[OPTIMISED_LOW] = functools.partial(answer, made.low.predict_plain, parts)
    for peer in PEERS if case.peers else ():
        if peer.installed:
            step = functools.partial(_step_of, peer.step, trained, case.target)
            contenders[peer.title] = functools.partial(answer, step, batches)
    for name, mode in made.modes.items():
        contenders[name] = functools.partial(answer_with, mode, batches)
    return contenders


def _step_of(
    step: Callable[[nn.Module, Tensor, Tensor, float], Tensor], model: nn.Module, target: Tensor, x: Tensor
) -> Tensor:
    return step(model, x, target, EPS)


def report(
    case: Case, batch_size: int, rounds: int, measured: dict[str, Measured[Answer]], expected: Expected, log: Log
) -> None:
    """The table of one network and batch size, and the sentences below it."""
    n = len(case.timed.x)
    changed = (expected.base.preds != expected.corrected.preds).double().mean().item()
    log.say(
        f"Batches of {batch_size}, {n} images a measurement, median of {rounds}; the reference's correction changes"
        f" {changed:.1%} of the labels.",
        "",
        *table(
            ("contender", "ms an image", "ratio", "min-max", "asked", "labels as fp32", "recomputed", "corrected"),
            rows(case, measured, expected),
        ),
        "",
        *_against_peers(measured),
        best_case(case.fresh(), case.timed.x[:1].to(case.device), measured[PLAIN].median / n),
        "",
    )


def rows(case: Case, measured: dict[str, Measured[Answer]], expected: Expected) -> Iterator[list[str]]:
    """Cells of the table: measured contenders, and those that could not be with the reason."""
    n = len(case.timed.x)
    for name in _order(measured):
        if name not in measured:
            if not case.peers and name in {peer.title for peer in PEERS}:
                continue
            reason = "not installed" if name not in MODES and name != OPTIMISED_LOW else "no fast bf16 on this device"
            yield [name, reason, *[""] * 6]
            continue
        own = measured[name]
        ratio, lowest, highest = ratios(own, measured[PLAIN])
        found = min(own.found, key=lambda one: _same(one, expected.of(name)))  # the worst round
        asked = ASKED.get((case.name, name)) if case.device.type == "cpu" else None
        yield [
            name,
            f"{1e3 * own.median / n:.1f}",
            f"{ratio:.2f}",
            f"{lowest:.2f}-{highest:.2f}",
            "" if asked is None else f"<= {asked:g}",
            f"{_same(found, expected.of(name))}/{n}",
            f"{found.recomputed / n:.1%}" if name in MODES else "",
            f"{found.corrected / n:.1%}" if name in MODES else "",
        ]


def _order(measured: dict[str, Measured[Answer]]) -> list[str]:
    return [PLAIN, OPTIMISED, OPTIMISED_LOW, *(peer.title for peer in PEERS), *MODES]


def _same(found: Answer, expected: Answer) -> int:
    return int((found.preds == expected.preds).sum())


def _against_peers(measured: dict[str, Measured[Answer]]) -> Iterator[str]:
    ours = measured.get("ours, auto")
    others = {peer.title: measured[peer.title] for peer in PEERS if peer.title in measured}
    if ours is None or AUTHORS.title not in others:
        return
    times = {name: other.median / ours.median for name, other in others.items()}
    authors = times.pop(AUTHORS.title)
    text = f"`auto` has {authors:.1f} times the throughput of the authors' loop (asked: {ASKED_OF_AUTHORS})"
    yield text + "".join(f", {factor:.1f} times that of {name}" for name, factor in times.items()) + "."


def introduce(options: argparse.Namespace, device: torch.device, log: Log) -> None:
    """What was run where, and how to read it."""
    what = "synthetic images" if options.shared is None else "Skin7 images of fold 1"
    log.say(
        f"`{command_line((options.shared, 'SHARED'))}` on {describe_machine(device)}.",
        "",
        "Ratios are to the plain eager float32 forward pass of the same images in the same round"
        + (" (with torch's own defaults: TF32 in convolutions)" if device.type == "cuda" else "")
        + f"; optimised and ours go through each batch in parts of {usual_batch_size(device.type)}, `predict`'s usual"
        " batch at this size, everyone else at once"
        f"; networks have random parameters, tame filters and a head fitted on {what}, {SIZE} px, eps {EPS:g}."
        " Calibration of `auto` and close calls comes once a run and is not in the time; the random samples they are"
        " checked on are. 'asked' is the project's aim on a CPU with bf16 instructions. Labels: of the worst round,"
        " against a float32 transcription of the paper. Peers do the method's own step: "
        + "; ".join(f"{peer.title}: {peer.note}" for peer in PEERS)
        + ".",
        "",
    )


def main() -> None:
    options = _parser().parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    log = Log()
    introduce(options, device, log)
    for index, name in enumerate(options.networks):
        case = make_case(name, options, device)
        measure_case(case, options.batch_sizes, options.rounds, log)
        if index == 0 and not options.no_sweep:
            sweep = {"rounds": options.rounds, "images": options.sweep_images, "batch_size": options.batch_sizes[0]}
            sweeping.measure_sweep(case.network, name, log, **sweep, device=device)
    if options.shared is not None and not options.no_checkpoints:
        log.say("### Checkpoints trained on Skin7", "")
        plan = Plan(options.rounds, max(options.batch_sizes), device)
        compare_checkpoints(options.shared, log, plan, options.skin7_images)
    if options.write:
        kind = "a GPU" if device.type == "cuda" else "a CPU"
        write_section(f"speed on {device.type}", f"Speed on {kind}", log.lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser.add_argument("--networks", type=words, default=list(NETWORKS), help="torchvision names (default: three)")
    parser.add_argument("--batch-sizes", type=_numbers, default=[8, 32], help="a table for each (default: 8,32)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender (default: 5)")
    parser.add_argument("--images", type=int, default=64, help="in each measurement (default: 64)")
    parser.add_argument("--head-images", type=int, default=384, help="that heads are fitted on (default: 384)")
    parser.add_argument("--settle", type=int, default=256, help="predicted before any time is taken (default: 256)")
    parser.add_argument("--sweep-images", type=int, default=64, help="of the sweep (default: 64)")
    parser.add_argument("--skin7-images", type=int, help="of the checkpoints' fold (default: all)")
    parser.add_argument("--shared", type=Path, help="folder with data/skin7 and models")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    parser.add_argument(
        "--no-peers",
        action="store_true",
        help="leave other libraries out: a process that has run them allocates otherwise, and plain eager gains by it",
    )
    parser.add_argument("--no-sweep", action="store_true", help="leave the sweep out")
    parser.add_argument("--no-checkpoints", action="store_true", help="leave the trained checkpoints out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/RESULTS.md")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()

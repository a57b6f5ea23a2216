"""What a corrected prediction costs, as a ratio to the plain eager float32 prediction that users run today.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py [--shared SHARED] [--parts networks,sweep,checkpoints]
                               [--networks resnet50,mobilenet_v2,densenet169] [--batch-size 32] [--rounds 5]
                               [--checkpoints efficientnet_lite0,resnet18] [--threads N] [--device cuda] [--write]

Side by side in one run: plain, plain optimised, the authors' loop, the same step by other libraries, and the modes
of this package, each in a process of its own that lives through the whole run, as its user has it. The processes are
asked one at a time. In each round each contender predicts the same batch once, in a random order, each round another
batch; figures are medians, ranges those of the ratios within a round. Labels of all batches are checked in the same
run, against a plain float32 transcription of the paper and against the authors' loop.

With ``--shared`` (the folder with ``data/skin7`` and ``models``) the images are Skin7's and the trained checkpoints
follow on a whole fold; without it images are made up. DenseNet169's processes hold 24 GB together; where there is
less memory, two runs with half of the ``--peers`` each do. ``--write`` puts what is printed into RESULTS.md, a section
for each network.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sweeping
import torch
from checkpoints import CHECKPOINTS, Plan, compare_checkpoint
from contenders import (
    OPTIMISED,
    OPTIMISED_LOW,
    PLAIN,
    Answer,
    Expected,
    Inputs,
    Task,
    count_same,
    expect,
    gather,
    possible,
)
from measuring import (
    Log,
    Measured,
    best_case,
    command_line,
    describe_machine,
    progress,
    ratios,
    table,
    write_section,
)
from ours import MODES
from peers import AUTHORS, PEERS, Peer
from subjects import CLASSES, COUNTS, make_subject, skin7_pool, synthetic_pool
from torch import nn

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.inference.batching import usual_batch_size
from imbalance_perturb.method.counts import ClassCounts

NETWORKS = ("resnet50", "mobilenet_v2", "densenet169")
PARTS = ("networks", "sweep", "checkpoints")

#: Height and width of the images, and the step: those of the paper.
SIZE, EPS = 224, 0.001

#: Images that modes are calibrated on, as `predict` does, and that go through before any time is taken.
CALIBRATED, SETTLING = 64, 128

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

#: What is not measured here but on the checkpoints, which it is about.
_ELSEWHERE = "ours, close calls only"


@dataclass(frozen=True)
class Found:
    """What came of one network; ``n`` images a measurement."""

    name: str
    measured: dict[str, Measured[Answer]]
    expected: Expected
    n: int
    device: torch.device
    peers: tuple[Peer, ...]


def make_inputs(options: argparse.Namespace, name: str) -> tuple[nn.Module, Inputs]:
    """The network, with a head fitted on images that it is not timed on, and images that none of it has seen."""
    progress(f"{name}: images and head")
    sizes = (options.head_images, options.rounds * options.batch_size, SETTLING, CALIBRATED)
    if options.shared is None:
        pool = synthetic_pool(sum(sizes), SIZE, seed=0)
    else:
        pool = skin7_pool(options.shared, 1, PreprocessSettings(resize=(SIZE, SIZE), crop="none"), sum(sizes))
    if len(pool.x) < sum(sizes):
        raise SystemExit(f"{sum(sizes)} images are asked for; {pool.origin} has {len(pool.x)}: ask for fewer")
    head, timed, settling, calibration = pool.split(*sizes)
    return make_subject(name, head), Inputs(
        [x.clone() for x in timed.x.split(options.batch_size)], settling.x.clone(), calibration.x.clone()
    )


def measure_network(options: argparse.Namespace, name: str, log: Log) -> nn.Module:
    """The table of one network and the sentences below it; returns the network."""
    network, inputs = make_inputs(options, name)
    device = torch.device(options.device)
    n, image = options.batch_size, inputs.timed[0][:1].to(device)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.save(network.state_dict(), work / "model.pth")
        torch.save(tuple(inputs), work / "inputs.pt")
        counts = ClassCounts(CLASSES, COUNTS)
        task = Task(work / "model.pth", name, work / "inputs.pt", counts, EPS, n, n, device)
        del inputs
        progress(f"{name}: labels of the reference")
        expected = expect(task)
        peers = tuple(peer for peer in PEERS if peer.word in options.peers)
        names = [one for one in possible(device, peers) if one != _ELSEWHERE]
        with gather(task, names) as team:
            progress(f"{name}: measuring")
            measured = team.take_turns(options.rounds)
            idle, notes = team.idle_share, {one: worker.notes for one, worker in team.workers.items()}
    found = Found(name, measured, expected, n, device, peers)
    report(found, notes, idle, log)
    log.say(best_case(network.to(device), image, measured[PLAIN].median / n), "")
    return network


def report(found: Found, notes: dict[str, list[str]], idle: float, log: Log) -> None:
    """The table, and what is to be known of how it came about."""
    rounds = len(found.measured[PLAIN].seconds)
    images = sum(len(one.preds) for one in found.expected.base)
    changed = 1 - count_same(found.expected.base, found.expected.corrected) / images
    last = notes["ours, auto" if "ours, auto" in notes else "ours, fp32"]
    log.say(
        f"Batches of {found.n}, another in each of {rounds} rounds; the reference's correction changes {changed:.1%} of"
        f" the {images} labels. Ours: {'. '.join(last)}. Waiting processes used {idle:.1%} of one core.",
        "",
        *table(HEAD, rows(found)),
        "",
        *_against_peers(found.measured),
    )


HEAD = ("contender", "ms an image", "ratio", "min-max", "asked", "labels as fp32", "as authors'", "recomputed")


def rows(found: Found) -> Iterator[list[str]]:
    """Cells of the table: measured contenders, and those that could not be with the reason."""
    measured = found.measured
    authors = measured.get(AUTHORS.title)
    for name in (PLAIN, OPTIMISED, OPTIMISED_LOW, *(peer.title for peer in found.peers), *MODES):
        if name == _ELSEWHERE:
            continue
        if name not in measured:
            reason = "not installed" if name not in MODES and name != OPTIMISED_LOW else "no fast bf16 on this device"
            yield [name, reason, *[""] * (len(HEAD) - 2)]
            continue
        own = measured[name]
        ratio, lowest, highest = ratios(own, measured[PLAIN])
        asked = ASKED.get((found.name, name)) if found.device.type == "cpu" else None
        images = sum(len(one.preds) for one in own.found)
        corrects = not name.startswith("plain")
        yield [
            name,
            f"{1e3 * own.median / found.n:.1f}",
            f"{ratio:.2f}",
            f"{lowest:.2f}-{highest:.2f}",
            "" if asked is None else f"<= {asked:g}, {_verdict(ratio <= asked)}",
            f"{count_same(own.found, found.expected.labels_of(name))}/{images}",
            f"{count_same(own.found, authors.found)}/{images}" if authors and corrects else "",
            f"{sum(one.recomputed for one in own.found) / images:.1%}" if name in MODES else "",
        ]


def _against_peers(measured: dict[str, Measured[Answer]]) -> Iterator[str]:
    ours = measured.get("ours, auto")
    others = [peer for peer in PEERS if peer.title in measured]
    if ours is None or not others:
        return
    parts = []
    for peer in others:
        factor = measured[peer.title].median / ours.median
        asked = ASKED_OF_AUTHORS if peer is AUTHORS else 1.0
        parts.append(f"{factor:.1f} times that of {peer.title} (asked: {asked:g}, {_verdict(factor > asked)})")
    yield f"Throughput of `auto`: {', '.join(parts)}."


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> None:
    options = _parser().parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    networks = options.networks if "networks" in options.parts else []
    for name in networks:
        log = _begin(options, device)
        measure_network(options, name, log)
        some = "" if len(options.peers) == len(PEERS) else f", {','.join(options.peers)}"
        _end(options, f"speed of {name} on {device.type}{some}", f"Speed of {name} on {_kind(device)}", log)
    if "sweep" in options.parts:
        log = _begin(options, device)
        network, _ = make_inputs(options, options.networks[0])
        sweep = {"rounds": options.rounds, "images": options.sweep_images, "batch_size": usual_batch_size(device.type)}
        sweeping.measure_sweep(network, options.networks[0], log, **sweep, device=device)
        _end(options, f"sweep on {device.type}", f"Cost of a sweep on {_kind(device)}", log)
    if "checkpoints" in options.parts and options.shared is not None:
        plan = Plan(options.rounds, options.batch_size, device, options.skin7_images)
        for name in options.checkpoints:
            log = _begin(options, device)
            compare_checkpoint(options.shared, CHECKPOINTS[name], log, plan)
            _end(options, f"speed of checkpoint {name} on {device.type}", f"Skin7's {name} on {_kind(device)}", log)


def _begin(options: argparse.Namespace, device: torch.device) -> Log:
    log = Log()
    log.say(f"`{command_line((options.shared, 'SHARED'))}` on {describe_machine(device)}.", "")
    return log


def _end(options: argparse.Namespace, section: str, title: str, log: Log) -> None:
    if options.write:
        write_section(section, title, log.lines[:-1])


def _kind(device: torch.device) -> str:
    return "a GPU" if device.type == "cuda" else "a CPU"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser.add_argument("--parts", type=words, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--networks", type=words, default=list(NETWORKS), help="torchvision names (default: three)")
    parser.add_argument("--checkpoints", type=words, default=list(CHECKPOINTS), help="of Skin7 (default: both)")
    parser.add_argument("--batch-size", type=int, default=32, help="of everyone but ours (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender (default: 5)")
    parser.add_argument("--head-images", type=int, default=384, help="that heads are fitted on (default: 384)")
    parser.add_argument("--sweep-images", type=int, default=64, help="of the sweep (default: 64)")
    parser.add_argument("--skin7-images", type=int, help="of the checkpoints' fold (default: all)")
    parser.add_argument("--shared", type=Path, help="folder with data/skin7 and models")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    known = [peer.word for peer in PEERS]
    parser.add_argument("--peers", type=words, default=known, help=f"of {','.join(known)} (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/RESULTS.md")
    return parser


if __name__ == "__main__":
    main()

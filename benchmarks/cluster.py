"""A run over a Ray cluster: what it costs beside one machine's, and what is left when a node goes.

    python benchmarks/cluster.py [--images 600] [--parts cost,scheduling,names,node] [--write]

Clusters are on this machine's loopback. ``cost`` predicts JPEGs by a network of torchvision locally and over 1 and
2 workers of one core each; ``scheduling`` hands slices to workers that sleep; ``names`` has a list of a million images;
``node`` ends one of two nodes. (Not called ray.py, which would be taken for Ray itself.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import torch
from handing_out import QUIET, hand_out, own_cluster
from measuring import Log, command_line, describe_machine, progress, table, write_section
from subjects import write_photographs
from torchvision.models import get_model

#: What is asked for: CPU seconds beyond the local engine's, busy share of a worker, time beyond linear, MB of names.
ASKED_CPU, ASKED_BUSY, ASKED_LINEAR, ASKED_NAMES = 0.05, 0.97, 0.10, 200


def measure_scheduling(options: argparse.Namespace, log: Log) -> None:
    """Work that sleeps, as much for each worker, at more and more workers; and how busy a worker is."""
    os.environ["SLEEPER"] = "0.01"
    rows, first = [], 0.0
    with own_cluster(max(options.workers)) as ray:
        for workers in options.workers:
            progress(f"{workers} workers that sleep")
            names = [f"{index:07d}.png" for index in range(2000 * workers)]
            found = hand_out(ray, names, workers, 100, 1.0)
            first = first or found.wall
            rows.append([f"{workers}", f"{len(found.begun)}", f"{found.wall:.1f}", f"{found.wall / first - 1:+.1%}"])
        progress("slices of 10 s")
        names = [f"{index:07d}.png" for index in range(8000)]
        found = hand_out(ray, names, 1, 1000, 10.0)
        began = min(begin for begin, _ in found.begun)
        ended = max(begin + seconds for begin, seconds in found.begun)
        busy = sum(seconds for _, seconds in found.begun) / (ended - began)
    log.say(
        "Work that sleeps, 20 s for each worker, in slices of some seconds and shorter ones at the end:",
        "",
        *table(("workers", "slices", "seconds", f"beyond one worker's (asked: within {ASKED_LINEAR:.0%})"), rows),
        "",
        f"With slices of 10 s a worker is busy for {busy:.2%} of the time (asked: at least {ASKED_BUSY:.0%}).",
        "",
    )


def measure_names(log: Log) -> None:
    """Memory of the leading process for a list of a million names, in a process of its own."""
    code = "import json, handing_out; print(json.dumps(handing_out.names_in_memory(1_000_000)))"
    progress("a million names")
    here = Path(__file__).parent
    ended = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    before, listed, after = json.loads(ended.stdout.splitlines()[-1])
    log.say(
        f"A million names: the leading process has {before:.0f} MB with Ray connected, {listed:.0f} MB more with"
        f" the names, {after:.0f} MB more at its peak, when all slices have gone out and come back (asked: under"
        f" {ASKED_NAMES} MB).",
        "",
    )


def make_subject(work: Path, images: int) -> list[str]:
    """A network with random parameters, counts and JPEGs; the command that predicts them."""
    torch.manual_seed(0)
    network = get_model("efficientnet_b0", weights=None, num_classes=7)
    torch.save(network.state_dict(), work / "model.pth")
    counts = {"nv": 4023, "mel": 668, "bkl": 659, "bcc": 308, "akiec": 195, "vasc": 86, "df": 69}
    (work / "counts.json").write_text(json.dumps(counts))
    write_photographs(work / "images", images, min(images, 100), (450, 600))
    files = (str(work / name) for name in ("model.pth", "counts.json", "images"))
    return [sys.executable, "-m", "imbalance_perturb", "predict", *files, "--batch-size", "8", "--no-resume"]


def measure_cost(options: argparse.Namespace, work: Path, log: Log) -> None:
    """Wall clock and CPU seconds of one machine and of workers, each with one thread."""
    command = make_subject(work, options.images)
    rows, reference = [], 0.0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    for workers in (0, 1, 2):
        progress(f"{options.images} images, {workers or 'no'} workers on a cluster")
        out = work / f"{workers}.csv"
        more = ["-o", str(out)]
        more += ["--engine", "ray", "--ray-workers", str(workers), "--ray-worker-cpus", "1"] if workers else []
        start = time.perf_counter()
        subprocess.run([*command, *more], env=environment, check=True, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        run = json.loads(out.with_suffix(".run.json").read_text())["seconds"]
        predicting = sum(run[stage] for stage in ("gradient pass", "final pass", "normalise", "decode"))
        reference = reference or predicting
        rows.append(
            [
                f"Ray, {workers} worker(s)" if workers else "one machine, one thread",
                f"{wall:.1f}",
                f"{run['total']:.1f}",
                f"{predicting:.1f}",
                f"{predicting / reference - 1:+.1%}",
            ]
        )
        assert out.read_bytes() == (work / "0.csv").read_bytes()
    head = ("", "wall, s", "of it the run", "decoding and passes, s", f"beyond (asked: within {ASKED_CPU:.0%})")
    log.say(
        f"{options.images} JPEGs of 600 x 450 pixels, EfficientNet-B0 with random parameters at 224 px; the same bytes"
        " each time:",
        "",
        *table(head, rows),
        "",
    )


def measure_node(options: argparse.Namespace, work: Path, log: Log) -> None:
    """A head without CPUs and two nodes of one each, of which one is killed: the bytes, and how long it took."""
    import ray
    from ray._private import services
    from ray.cluster_utils import Cluster

    from imbalance_perturb.cli.app import main

    command = make_subject(work, options.images)[3:]
    os.environ["OMP_NUM_THREADS"] = "1"
    subprocess.run([sys.executable, "-m", "imbalance_perturb", *command, "-o", str(work / "one.csv")], check=True)
    # Else Ray turns the loopback into the machine's own address, and listens to all.
    with mock.patch.object(services, "resolve_ip_for_localhost", lambda host: host):
        store = {"object_store_memory": 100_000_000}
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False, **store}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", **store) for _ in range(2)]
        ray.init(address=cluster.address, **{**QUIET, "include_dashboard": None})
        out = work / "many.csv"

        def kill() -> None:
            while not (out.with_name("many.csv.partial").exists() and out.with_name("many.csv.partial").stat().st_size):
                time.sleep(0.1)
            progress("one node is killed")
            cluster.remove_node(nodes[1], allow_graceful=False)

        thread = threading.Thread(target=kill)
        thread.start()
        start = time.perf_counter()
        code: object = None
        try:
            main([*command, "-o", str(out), "--engine", "ray"])
        except SystemExit as ended:
            code = ended.code
        seconds = time.perf_counter() - start
        thread.join()
        ray.shutdown()
        cluster.shutdown()
    same = out.read_bytes() == (work / "one.csv").read_bytes()
    log.say(
        f"Two nodes, one killed while {options.images} images were predicted: exit code {code or 0} after {seconds:.0f}"
        f" s, the file {'is' if same else 'IS NOT'} that of one machine.",
        "",
    )


def main() -> int:
    """Measure, and print or write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=600, help="for cost and node (default: 600)")
    parser.add_argument("--workers", type=lambda text: [*map(int, text.split(","))], default=[1, 2, 4, 8])
    parser.add_argument("--parts", default="cost,scheduling,names,node", help="what to measure (default: all)")
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    options = parser.parse_args()
    log, parts = Log(), options.parts.split(",")
    log.say(f"`{command_line()}` on {describe_machine(torch.device('cpu'))}.", "")
    with tempfile.TemporaryDirectory() as name:
        for part in parts:
            work = Path(name, part)
            work.mkdir()
            if part == "cost":
                measure_cost(options, work, log)
            elif part == "scheduling":
                measure_scheduling(options, log)
            elif part == "names":
                measure_names(log)
            elif part == "node":
                measure_node(options, work, log)
            else:
                parser.error(f"{part}: expected cost, scheduling, names or node")
    if options.write:
        write_section("cluster", "A run over a Ray cluster", log.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())

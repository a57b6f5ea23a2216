"""Runs killed at random moments and resumed: the file must be that of a run that nobody touched, byte for byte.

``python -m tests.faults.kill_runs --kills 20`` does it as often as asked. A process that has imported everything once
forks one child for each run, so that a kill hits the run rather than the imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

IMAGES, BROKEN = 240, 8

COMMAND = ("predict", "model.pth", "counts.json", "images", "--resize", "32", "--crop", "32", "--batch-size", "8")


class Task(NamedTuple):
    """A command, and what is done to it: a signal after seconds or once a file has rows, a limit on files' bytes."""

    arguments: tuple[str, ...]
    kill_after: float | None = None
    kill_when: str | None = None
    number: int = signal.SIGKILL
    file_limit: int | None = None


class Ended(NamedTuple):
    """How a run ended: its exit code, negative for a signal, and what it said on stderr."""

    code: int
    err: str


def make_workplace(folder: Path, images: int = IMAGES) -> None:
    """A model, its counts and a folder of images, some of them broken."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    torch.nn.init.normal_(network.fc.weight, std=0.5)
    torch.save(network.state_dict(), folder / "model.pth")
    (folder / "counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 3}))
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(images):
        pixels = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:04d}.png")
    for index in range(0, images, max(1, images // BROKEN)):
        (folder / "images" / f"{index:04d}-broken.png").write_bytes(b"broken")


@contextmanager
def command_line(folder: Path) -> Iterator[Callable[..., Ended]]:
    """A function that runs ``imbperturb`` in the folder, and kills it after some seconds if asked to."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(there, str(folder)))
    server.start()

    def run(
        *arguments: str,
        kill_after: float | None = None,
        kill_when: str | None = None,
        number: int = signal.SIGKILL,
        file_limit: int | None = None,
    ) -> Ended:
        here.send(Task(arguments, kill_after, kill_when, number, file_limit))
        if not here.poll(120):
            raise AssertionError(f"no end of {arguments} within 120 s")
        return Ended(*here.recv())

    try:
        assert here.recv() == "ready"
        yield run
    finally:
        here.send(None)
        server.join()


def _serve(pipe: Connection, folder: str) -> None:
    import torch
    import torchvision  # noqa: F401 - imported so that the runs need not

    from imbalance_perturb.cli.app import main  # noqa: F401 - as above

    os.chdir(folder)
    # Threads of OpenMP do not live through a fork; one is none.
    torch.set_num_threads(1)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        pipe.send(_run_child(task))


def _run_child(task: Task) -> tuple[int, str]:
    with tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            if task.file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (task.file_limit, task.file_limit))
            _be_child(task.arguments, err.fileno())
        if task.kill_after is not None:
            time.sleep(task.kill_after)
            os.kill(child, task.number)
        if task.kill_when is not None:
            # On a busy machine a run may be through before it is looked at again; its exit code then tells.
            ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while _rows_done(Path(task.kill_when)) == 0 and os.waitid(os.P_PID, child, ended) is None:
                time.sleep(0.002)
            os.kill(child, task.number)
        _, status = os.waitpid(child, 0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), err.read().decode()


def _be_child(arguments: tuple[str, ...], err: int) -> None:
    from imbalance_perturb.cli.app import main

    os.dup2(err, 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
    code = 1
    try:
        main(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def kill_and_resume(run: Callable[..., Ended], folder: Path, kills: int, seed: int, *more: str) -> list[int]:
    """Kill one run ``kills`` times, each time resumed, and compare it with one that nobody touched.

    Returns:
        the rows that were done at each kill.
    """
    source = random.Random(seed)
    (suffix,) = [Path(word).suffix for word in more if word.startswith("killed.")]
    whole = [word.replace("killed.", "whole.") for word in more]
    start = time.perf_counter()
    ended = run(*COMMAND, *whole)
    seconds = time.perf_counter() - start
    assert ended.code == 3, ended.err
    expected, done = (folder / f"whole{suffix}").read_bytes(), []
    for _ in range(kills):
        ended = run(*COMMAND, "--resume", *more, kill_after=source.uniform(0, seconds))
        assert ended.code in (-signal.SIGKILL, 3), ended.err
        if ended.code == 3:  # it was done before it could be killed: the next kill gets a new run
            _compare(folder, suffix, expected)
            for path in folder.glob("killed.*"):
                path.unlink()
        done.append(_rows_done(folder / f"killed{suffix}"))
    if not any(done):
        # On a busy machine a few random moments may all fall before the first rows: one more, when there are some.
        run(*COMMAND, "--resume", *more, kill_when=str(folder / f"killed{suffix}"))
        done.append(_rows_done(folder / f"killed{suffix}"))
    ended = run(*COMMAND, "--resume", *more)
    assert ended.code == 3, ended.err
    _compare(folder, suffix, expected)
    return done


def _compare(folder: Path, suffix: str, expected: bytes) -> None:
    from imbalance_perturb.predictions.run_file import run_path

    assert (folder / f"killed{suffix}").read_bytes() == expected
    left = sorted(path.name for path in folder.glob("killed.*"))
    assert left == sorted([f"killed{suffix}", run_path(Path(f"killed{suffix}")).name])
    runs = [json.loads(run_path(folder / f"{name}{suffix}").read_text()) for name in ("whole", "killed")]
    assert runs[0]["images"] == runs[1]["images"]
    assert runs[0]["predictor"] == runs[1]["predictor"]


def _rows_done(path: Path) -> int:
    from imbalance_perturb.predictions.progress_file import read_unfinished

    unfinished = read_unfinished(path)
    return 0 if unfinished is None else unfinished.mark.rows


def main() -> int:
    """Kill runs as often as asked; 1 if a file is not what it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="at which moments (default: 0)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"in the folder (default: {IMAGES})")
    parser.add_argument("--format", default=".csv", help=".csv, .jsonl or .parquet (default: .csv)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_workplace(folder, options.images)
        with command_line(folder) as run:
            done = kill_and_resume(run, folder, options.kills, options.seed, "-o", f"killed{options.format}")
    print(f"{options.kills} kills with {done} rows done: resumed to the same bytes each time")
    return 0


if __name__ == "__main__":
    sys.exit(main())

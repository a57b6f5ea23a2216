"""What fuzzing of any kind of file shares: damage, a worker that a crash or a hang does not outlive, the count."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

#: What one file may take.
SECONDS = 10

_EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\1", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")
_EXTREMES += (b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\1\0\0", b"\x40\0", b"\0\x40", b"\xff\xd8", b"nan ", b"1e9 ")


class Edit(NamedTuple):
    """One damage: its kind, where it begins and how far it goes as shares of the file, and a number to draw from."""

    kind: str
    start: float
    length: float
    number: int


KINDS = ("flip", "extreme", "cut", "delete", "repeat", "insert", "swap")


def damage(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The file with the edits done to it one after the other."""
    for kind, start, length, number in edits:
        first = int(start * len(data))
        # Long damage is rare, or nothing of the structure would be left to get lost in.
        last = min(len(data), first + 1 + int(length**4 * len(data)))
        head, middle, tail = data[:first], data[first:last], data[last:]
        if kind == "flip" and middle:
            data = head + bytes([middle[0] ^ (number % 255 + 1)]) + middle[1:] + tail
        elif kind == "extreme":
            value = _EXTREMES[number % len(_EXTREMES)]
            data = head + value + data[first + len(value) :]
        elif kind == "cut":
            data = head
        elif kind == "delete":
            data = head + tail
        elif kind == "repeat":
            data = head + middle * (2 + number % 20) + tail
        elif kind == "insert":
            data = head + number.to_bytes(8, "big") + middle + tail
        elif kind == "swap":
            data = head + middle[::-1] + tail
    return data


def draw(seed: int, index: int, names: Sequence[str], choices: int) -> tuple[str, list[Edit], int]:
    """Name of a sample, edits and a number below ``choices`` for one damaged file, the same for the same numbers."""
    source = random.Random(f"{seed} {index}")
    edits = [
        Edit(source.choice(KINDS), source.random(), source.random(), source.getrandbits(64))
        for _ in range(source.choice((1, 1, 2, 3, 6)))
    ]
    return names[index % len(names)], edits, source.randrange(choices)


class Target(NamedTuple):
    """A kind of files to fuzz.

    ``samples`` makes whole files by name;
    ``damaged`` makes one bad, from the sample, edits and a number below ``choices``; ``check`` uses it and says how it
    went, in a word of ``fine``, or raises; ``start`` prepares the process. All are found by name in a child process.
    """

    word: str
    samples: Callable[[], dict[str, bytes]]
    damaged: Callable[[bytes, Sequence[Edit], int], bytes]
    check: Callable[[Path, int], str]
    choices: int
    fine: tuple[str, ...]
    start: Callable[[], Any]


def _work(sender: Connection, target: Target, files: dict[str, bytes], seed: int, first: int, last: int) -> None:
    # Native libraries write messages of their own; they would bury the findings.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    target.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.word
        for index in range(first, last):
            name, edits, number = draw(seed, index, list(files), target.choices)
            path.write_bytes(target.damaged(files[name], edits, number))
            started = time.perf_counter()
            try:
                result = target.check(path, number)
            except Exception as error:  # noqa: BLE001 - what fuzzing is there to find
                result = f"{type(error).__name__}: {error}"[:200]
            taken = time.perf_counter() - started
            sender.send((result, taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def run(target: Target) -> int:
    """Try damaged files until the number asked for is reached; 1 if any did what none may."""
    parser = argparse.ArgumentParser(description=f"Try {target.word}s damaged at random, and keep those that do harm.")
    parser.add_argument(f"--{target.word}s", dest="count", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="which (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    options = parser.parse_args()
    files = target.samples()
    results: Counter[str] = Counter()
    slowest, memory, index = 0.0, 0, 0
    # Not a fork: its memory would count that of this process.
    context = multiprocessing.get_context("spawn")
    while index < options.count:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(
            target=_work, args=(sender, target, files, options.seed, index, options.count), daemon=True
        )
        worker.start()
        sender.close()
        limit = 60.0  # the first answer comes after the imports
        while index < options.count:
            try:
                if not receiver.poll(limit):
                    finding = f"no answer after {limit:.0f} s"
                    break
                result, taken, held = receiver.recv()
            except EOFError:
                worker.join()
                finding = f"the process ended with {worker.exitcode}"
                break
            limit, slowest, memory = SECONDS, max(slowest, taken), max(memory, held)
            finding = "" if result in target.fine else result
            results[finding or result] += 1
            if finding:
                _keep(options.keep, index, finding, options.seed, files, target)
            index += 1
        else:
            break
        results[finding] += 1
        _keep(options.keep, index, finding, options.seed, files, target)
        worker.kill()
        index += 1
    print(f"{options.count:,} files: slowest {slowest:.2f} s, most memory {memory / 1e6:,.0f} MB")
    for result, count in results.most_common():
        print(f"{count:>9,}  {result}")
    return int(any(result not in target.fine for result in results))


def _keep(folder: Path, index: int, finding: str, seed: int, files: dict[str, bytes], target: Target) -> None:
    folder.mkdir(exist_ok=True)
    name, edits, number = draw(seed, index, list(files), target.choices)
    (folder / f"{seed}-{index}-{name}").write_bytes(target.damaged(files[name], edits, number))
    print(f"{target.word} {index} ({name}, options {number}): {finding}", file=sys.stderr)

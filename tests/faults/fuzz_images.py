"""Image files damaged at random: decoding ends in an ImageError or in valid pixels, in bounded time and memory.

``python -m tests.faults.fuzz_images --images 10000`` runs longer than the tests do, in a process of its own, which a
crash or a hang does not outlive. Findings are kept as files.
"""

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
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imbalance_perturb.errors import ImageError
from imbalance_perturb.images import decode_image
from tests.image_samples import dicom_samples, samples

#: What one file may take: seconds to decode.
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


def check(path: Path, options: int = 0) -> str:
    """Decode a file: ``pixels``, or the reason why there are none; anything else raises.

    Args:
        path: the file.
        options: from 0 to 7, which of the options of decoding are on.
    """
    color = "gray" if options & 1 else "rgb"
    try:
        pixels = decode_image(path, color, max_value=4095 if options & 2 else None, exif_orientation=bool(options & 4))
    except ImageError as error:
        message = str(error)
        assert message, "no reason is given"
        assert message.isprintable(), f"more than one line: {message!r}"
        assert len(message) < 300, f"a long message: {message!r}"
        return message
    planes = pixels if isinstance(pixels, tuple) else (pixels,)
    assert len({plane.size for plane in planes}) == 1
    for plane in planes:
        assert plane.mode in (("L", "F") if color == "gray" else ("RGB", "F"))
        assert min(plane.size) > 0
        values = np.asarray(plane)
        assert values.dtype == (np.float32 if plane.mode == "F" else np.uint8)
        assert np.isfinite(values).all()
        assert 0 <= values.min() <= values.max() <= 255
    return "pixels"


def draw(seed: int, index: int, names: Sequence[str]) -> tuple[str, list[Edit], int]:
    """Name of a sample, edits and options of one damaged file, the same for the same numbers."""
    source = random.Random(f"{seed} {index}")
    edits = [
        Edit(source.choice(KINDS), source.random(), source.random(), source.getrandbits(64))
        for _ in range(source.choice((1, 1, 2, 3, 6)))
    ]
    return names[index % len(names)], edits, source.randrange(8)


def _work(sender: Connection, seed: int, first: int, last: int) -> None:
    # libtiff writes its own messages; they would bury the findings.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    files = {**samples(), **dicom_samples()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        for index in range(first, last):
            name, edits, options = draw(seed, index, list(files))
            path.write_bytes(damage(files[name], edits))
            started = time.perf_counter()
            try:
                result = "pixels" if check(path, options) == "pixels" else "error"
            except Exception as error:  # noqa: BLE001 - what fuzzing is there to find
                result = f"{type(error).__name__}: {error}"[:200]
            taken = time.perf_counter() - started
            sender.send((result, taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def main() -> int:
    """Decode damaged files until their number is reached; 1 if any did what none may."""
    parser = argparse.ArgumentParser(description="Decode images damaged at random, and keep those that do harm.")
    parser.add_argument("--images", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="which (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    options = parser.parse_args()
    files = {**samples(), **dicom_samples()}
    results: Counter[str] = Counter()
    slowest, memory, index = 0.0, 0, 0
    # Not a fork: its memory would count that of this process.
    context = multiprocessing.get_context("spawn")
    while index < options.images:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(sender, options.seed, index, options.images), daemon=True)
        worker.start()
        sender.close()
        limit = 60.0  # the first answer comes after the imports
        while index < options.images:
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
            finding = "" if result in ("pixels", "error") else result
            results[finding or result] += 1
            if finding:
                _keep(options.keep, index, finding, options.seed, files)
            index += 1
        else:
            break
        results[finding] += 1
        _keep(options.keep, index, finding, options.seed, files)
        worker.kill()
        index += 1
    print(f"{options.images:,} files: slowest {slowest:.2f} s, most memory {memory / 1e6:,.0f} MB")
    for result, count in results.most_common():
        print(f"{count:>9,}  {result}")
    return int(any(result not in ("pixels", "error") for result in results))


def _keep(folder: Path, index: int, finding: str, seed: int, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    name, edits, options = draw(seed, index, list(files))
    (folder / f"{seed}-{index}-{name}").write_bytes(damage(files[name], edits))
    print(f"image {index} ({name}, options {options}): {finding}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

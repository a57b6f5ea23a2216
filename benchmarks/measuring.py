"""What the speed benchmarks share: measurements in turns, tables of ratios, the machine, and the section they write."""

from __future__ import annotations

import datetime
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imbalance_perturb.method.module_state import full_precision

T = TypeVar("T")

RESULTS = Path(__file__).with_name("RESULTS.md")

#: Of the instructions a CPU lists, those that decide how fast it is in each number format.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimd", "bf16")


@dataclass
class Measured(Generic[T]):
    """What one contender did in each round: ``seconds`` of wall clock and what it returned."""

    seconds: list[float] = field(default_factory=list)
    found: list[T] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of the rounds."""
        return statistics.median(self.seconds)


def alternate(
    contenders: Mapping[str, Callable[[], T]], rounds: int, device: torch.device, seed: int = 0
) -> dict[str, Measured[T]]:
    """One measurement of every contender in each round, in an order that is drawn anew: a slow minute hits all alike.

    Contenders are to be warm already.
    """
    order, shuffle = list(contenders), random.Random(seed)
    measured: dict[str, Measured[T]] = {name: Measured() for name in contenders}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            synchronise(device)
            start = time.perf_counter()
            found = contenders[name]()
            synchronise(device)
            measured[name].seconds.append(time.perf_counter() - start)
            measured[name].found.append(found)
    return measured


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue, where it has one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(measured: Measured[T], unit: Measured[T]) -> tuple[float, float, float]:
    """Median seconds over the unit's median, and the smallest and largest ratio within one round."""
    rounds = [own / one for own, one in zip(measured.seconds, unit.seconds, strict=True)]
    return measured.median / unit.median, min(rounds), max(rounds)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its first column of words and the others of figures."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


@dataclass
class Log:
    """Lines as they are found: printed at once, and kept for the section of RESULTS.md."""

    lines: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """Print lines and keep them."""
        for line in lines:
            print(line, flush=True)
        self.lines += lines


def progress(text: str) -> None:
    """What is going on, for whoever waits: on stderr, not among the results."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second in products of square matrices, the median of some."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with full_precision(device):
        a @ b
        measured = alternate({"product": lambda: a @ b}, 7, device)
    return float(2 * size**3 / measured["product"].median)


def best_case(network: nn.Module, x: Tensor, seconds: float) -> str:
    """A sentence: what three passes would cost at the rate of large matrix products.

    Args:
        network: on the device of ``x``.
        x: one image (1, C, H, W).
        seconds: of the plain forward pass of one image, that the cost is compared with.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    operations = counter.get_total_flops()
    parts = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        rate = matrix_rate(dtype, x.device)
        parts.append(f"{3 * operations / rate / seconds:.2f} in {name} ({rate / 1e9:,.0f} GFLOP/s)")
    return (
        f"At best: {operations / 2e9:.2f} billion multiply-adds an image; three passes (forward, input gradient,"
        f" forward) at the rate of 2048 x 2048 matrix products cost {' and '.join(parts)} of plain eager."
    )


def describe_machine(device: torch.device) -> str:
    """Processor with its cores and the instructions that matter, the GPU where it is used, threads, versions."""
    model, flags = _cpu()
    parts = [f"{model}, {os.cpu_count()} cores ({', '.join(flags) or 'no known vector instructions'})"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    parts += [
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    return ", ".join(parts)


def _cpu() -> tuple[str, list[str]]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine(), []
    entries: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    there = (entries.get("flags") or entries.get("Features") or "").split()
    return entries.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in there]


def command_line(*private: tuple[Path | None, str]) -> str:
    """The command as it was typed, with the user's own paths replaced by a word."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    for path, word in private:
        words = [w.replace(str(path), word) if path is not None else w for w in words]
    return " ".join(word for word in words if word != "--write")


def write_section(name: str, title: str, lines: Sequence[str], path: Path = RESULTS) -> None:
    """Put a dated section between its markers in a Markdown file, in the place of what stood there before.

    Without markers it is added at the end; everything else is left as it is.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    heading = f"## {title} ({datetime.date.today():%Y-%m-%d})"
    section = "\n".join([begin, "", heading, "", *lines, "", end])
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    if found:
        _, closed, after = rest.partition(end)
        if not closed:
            raise SystemExit(f"{path}: '{begin}' without '{end}'; put the end marker back or remove the begin marker")
        text = before + section + after
    else:
        text = text.rstrip("\n") + "\n\n" + section + "\n"
    path.write_text(text, encoding="utf-8")

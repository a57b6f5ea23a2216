"""Run ``imbperturb`` on a pretended CUDA device and write what was seen: ``driver.py SEEN OPTIONS -- ARGUMENTS``.

The device is the file ``pretend_cuda.py``, which lies outside the project and has to be importable; this adds what the
package uses and it does not have. ``SEEN`` gets JSON: by kind, by line of the package, how often.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretend_cuda
import torch
from torch import fx, nn


@contextlib.contextmanager
def _current(device: torch.device | int) -> Iterator[None]:
    """``torch.cuda.device``, which asks the driver."""
    before = pretend_cuda.opt.current
    pretend_cuda.opt.current = device if isinstance(device, int) else device.index or 0
    try:
        yield
    finally:
        pretend_cuda.opt.current = before


class _Event:
    """``torch.cuda.Event``: the clock, when it is recorded."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.monotonic()

    def synchronize(self) -> None:
        pretend_cuda.note("event waited for")

    def elapsed_time(self, other: _Event) -> float:
        """Milliseconds."""
        return 1000 * (other.at - self.at)


def _have_pinned_memory() -> None:
    """``torch.empty(..., pin_memory=True)``, which asks the driver."""
    empty = torch.empty

    def pinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **kwargs)
        if pin_memory:
            pretend_cuda.note("pinned")
            made._pinned = True  # type: ignore[attr-defined]
        return made

    torch.empty = pinned  # type: ignore[assignment]


def _move_what_scripts_hold() -> None:
    """What leaves TorchScript lies where the module's parameters do, but for the pretence."""
    from imbalance_perturb.inference.acceleration import conversion, optimisation
    from imbalance_perturb.inference.hidden_stage import layer_graph

    convert = conversion.convert

    def converted(network: torch.jit.ScriptModule | fx.GraphModule) -> fx.GraphModule:
        found: fx.GraphModule = convert(network)
        first = next(iter(network.parameters()), None)
        if isinstance(first, pretend_cuda.OnCuda) and isinstance(network, torch.jit.ScriptModule):
            nn.Module.to(found, torch.device("cuda", first._idx))
        return found

    optimisation.convert = layer_graph.convert = converted  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seen", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--oom-above", type=int)
    parser.add_argument("--oom-call", type=int)
    parser.add_argument("--oom-kind", default="torch")
    parser.add_argument("rest", nargs="+")
    options = vars(parser.parse_args())
    seen, rest = options.pop("seen"), options.pop("rest")
    pretend_cuda.install(quiet=True, **options)
    torch.cuda.device = _current  # type: ignore[assignment, misc]
    torch.cuda.Event = _Event  # type: ignore[assignment, misc]
    # Awake from the first tensor on.
    torch.cuda.is_initialized = lambda: bool(pretend_cuda.seen)  # type: ignore[assignment]
    atexit.register(lambda: seen.write_text(json.dumps(pretend_cuda.seen)))
    _have_pinned_memory()
    _move_what_scripts_hold()
    sys.argv = ["imbperturb", *rest]
    from imbalance_perturb.cli.app import main as run

    run()


if __name__ == "__main__":
    main()

"""Where a run takes place: device, batch size, workers, and torch's own switches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from imbalance_perturb.errors import DeviceError
from imbalance_perturb.settings import RunSettings

_CPU_BATCH, _CUDA_BATCH = 32, 128
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Execution:
    """Settled choices of a run: nothing is ``auto`` any more."""

    device: torch.device
    batch_size: int
    workers: int
    precision: str
    deterministic: bool

    @property
    def device_name(self) -> str:
        """The device as people know it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"


def select_execution(settings: RunSettings, n_images: int) -> Execution:
    """Settle what the settings leave to the machine.

    Raises:
        DeviceError: if the device asked for is not there.
    """
    device = select_device(settings.device)
    batch_size = settings.batch_size or (_CUDA_BATCH if device.type == "cuda" else _CPU_BATCH)
    workers = settings.workers
    if workers is None:
        # On a CPU the passes need the cores more than decoding does; a handful of images needs no workers.
        spare = _cores() // 2 if device.type == "cpu" else _cores() - 1
        workers = 0 if n_images <= batch_size else max(1, min(_MOST_WORKERS, spare))
    return Execution(device, batch_size, workers, "fp32", settings.deterministic)


def select_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f"device {name}: no CUDA GPU is available to this installation of torch; use --device cpu"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(
                f"device {name}: this machine has {torch.cuda.device_count()} GPU(s), counted from cuda:0"
            )
    return device


@contextmanager
def applied(execution: Execution) -> Iterator[None]:
    """Inside: torch's global switches as the execution wants them; outside: as before.

    Raises:
        DeviceError: if the device's memory does not suffice inside.
    """
    with _deterministic() if execution.deterministic else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise DeviceError(
                f"the memory of {execution.device} does not suffice for batches of {execution.batch_size};"
                " give a smaller --batch-size"
            ) from error


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # cuBLAS reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _cores() -> int:
    # A batch system or container may grant fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

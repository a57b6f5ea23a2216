"""Where a run takes place: device, batch size, workers, and torch's own switches."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from imbalance_perturb.config.machine_settings import IMAGE_TIMEOUT
from imbalance_perturb.config.settings import RunSettings
from imbalance_perturb.errors import DeviceError, SettingsError
from imbalance_perturb.inference.batching import usual_batch_size
from imbalance_perturb.method.device_errors import is_out_of_memory
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.method.private_torch import find, has

#: Fewest images for which measuring what low precision or close calls would save costs less than they save.
FEWEST_IMAGES = 256

_LOW_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_WORKERS = 16
_BATCHES_TOGETHER = 4

#: Most bytes of the float32 images of a group: large ones are decoded and predicted fewer batches at a time.
_GROUP_BYTES = 1 << 30

#: So many images are decoded before a second worker process has started.
_FEW = 32


@dataclass(frozen=True)
class Execution:
    """Settled choices of a run.

    ``precision``: ``fp32``; ``bf16`` or ``fp16`` throughout; or ``auto``, ``low_dtype`` with close calls in fp32.
    ``takes_turns``: whether decoding and computing, which both need all cores, take turns at them; else workers decode
    while the model computes. ``notes`` say why precision or close calls are other than asked for. ``image_timeout``:
    seconds that a worker may take for one image. ``batches_together``: that are decoded and predicted in one group.
    """

    device: torch.device
    batch_size: int
    workers: int
    precision: str
    deterministic: bool
    low_dtype: torch.dtype | None = None
    close_calls_only: bool = False
    takes_turns: bool = False
    notes: tuple[str, ...] = ()
    image_timeout: float = IMAGE_TIMEOUT
    batches_together: int = _BATCHES_TOGETHER

    @property
    def device_name(self) -> str:
        """The device as people know it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def group_size(self) -> int:
        """Images that are decoded and predicted together, several batches of them: close calls are few in each."""
        return self.batches_together * self.batch_size

    def for_images(self, shape: tuple[int, int, int]) -> Execution:
        """The same for images of ``shape`` (C, H, W), of which fewer batches may go together."""
        most = _GROUP_BYTES // (4 * math.prod(shape) * self.batch_size)
        return replace(self, batches_together=max(1, min(_BATCHES_TOGETHER, most)))

    @property
    def low_name(self) -> str | None:
        """``bf16``, ``fp16`` or ``None``."""
        return next((name for name, dtype in _LOW_DTYPES.items() if dtype == self.low_dtype), None)

    def describe_precision(self) -> str:
        """Describe the precision, with the notes on it."""
        words = f"{self.low_name}, close calls in fp32" if self.precision == "auto" else self.precision
        if self.close_calls_only:
            words += ", only close calls corrected"
        return words + (f" ({'; '.join(self.notes)})" if self.notes else "")


def select_execution(
    settings: RunSettings, n_images: int | None, *, exact: bool = False, cores: int | None = None
) -> Execution:
    """Settle what the settings leave to the machine.

    Args:
        settings: what is asked for.
        n_images: in the run; ``None`` where that is not known, and taken for many.
        exact: for a choice between corrections, which must not depend on rounding: ``auto`` is fp32.
        cores: of the machine that the run may use; by default those that this process has.

    Raises:
        DeviceError: if the device asked for is not there.
        SettingsError: if it has no such precision, or an exact run is asked for a low one.
    """
    device = select_device(settings.device)
    if settings.deterministic and device.type == "cuda":
        _settle_workspace()
    batch_size = settings.batch_size or usual_batch_size(device.type)
    workers, takes_turns = _settle_workers(settings.workers, device, n_images, cores or _cores())
    if exact:
        _check_exact(settings)
        return Execution(
            device,
            batch_size,
            workers,
            "fp32",
            settings.deterministic,
            takes_turns=takes_turns,
            image_timeout=settings.image_timeout,
        )
    precision, low_dtype, notes = _settle_precision(settings.precision, device, n_images)
    close_calls_only = settings.close_calls_only
    if close_calls_only and n_images is not None and n_images < FEWEST_IMAGES:
        close_calls_only = False
        notes = (*notes, f"all images corrected: fewer than {FEWEST_IMAGES}")
    return Execution(
        device,
        batch_size,
        workers,
        precision,
        settings.deterministic,
        low_dtype,
        close_calls_only,
        takes_turns,
        notes,
        settings.image_timeout,
    )


def _settle_workers(wanted: int | None, device: torch.device, n_images: int | None, cores: int) -> tuple[int, bool]:
    """Choose the number of worker processes, and whether decoding and computing take turns."""
    if device.type == "cuda":
        if device.index is not None:  # one of several by its number: the others have runs of their own
            cores = max(2, cores // torch.cuda.device_count())
        spare, takes_turns = cores - 1, False
    else:
        # The threads of a pass wait for the slowest of them: a worker that takes the core of one stops them all.
        spare = cores - torch.get_num_threads()
        takes_turns = spare < (wanted or 1)
    if wanted is not None:
        return wanted, takes_turns and wanted > 0
    if n_images is not None and n_images <= _FEW:
        # Not 0, even so: an image that ends the process decoding it must not end the run.
        return 1, False
    return max(1, min(_MOST_WORKERS, cores if takes_turns else spare)), takes_turns


def _check_exact(settings: RunSettings) -> None:
    if settings.precision in _LOW_DTYPES:
        raise SettingsError(
            f"precision is {settings.precision}; a choice between corrections must not depend on rounding: use fp32"
            " (predict takes any)"
        )


def _settle_precision(
    wanted: str, device: torch.device, n_images: int | None
) -> tuple[str, torch.dtype | None, tuple[str, ...]]:
    if wanted == "fp32":
        return "fp32", None, ()
    fast = fast_dtype(device)
    if wanted == "auto":
        if fast is None:
            return "fp32", None, ("auto: this CPU has no bf16 instructions",)
        if n_images is not None and n_images < FEWEST_IMAGES:
            return "fp32", None, (f"auto: fewer than {FEWEST_IMAGES} images",)
        return "auto", fast, ()
    if wanted == "fp16" and device.type == "cpu":
        raise SettingsError("precision is fp16, which is for CUDA; on a CPU use auto, fp32 or bf16")
    slow = device.type == "cpu" and fast is None
    return wanted, _LOW_DTYPES[wanted], ("slow: this CPU has no bf16 instructions",) if slow else ()


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Find the low-precision format that the device computes faster than float32, or ``None``."""
    if device.type == "cuda":
        # As fast as bfloat16 on all cards that torch runs on, and with three more digits: a third of the close calls.
        return torch.float16
    asked = ("torch.cpu._is_avx512_bf16_supported", "torch.cpu._is_amx_tile_supported")
    return torch.bfloat16 if any(has(name) and find(name)() for name in asked) else None


def select_device(name: str) -> torch.device:
    """Select ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

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


#: By which cuBLAS is told to compute the same each time.
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def enough_memory(device: torch.device, purpose: str) -> Iterator[None]:
    """Inside: memory that runs out is an error of one line.

    Raises:
        DeviceError: naming the device and the purpose.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"the memory of {device} does not suffice for {purpose}") from error


@contextmanager
def applied(execution: Execution) -> Iterator[None]:
    """Inside: torch's global switches as the execution wants them, TF32 off; outside: as before.

    Raises:
        DeviceError: if the device's memory does not suffice inside.
    """
    purpose = f"batches of {execution.batch_size}; give a smaller --batch-size"
    with (
        _deterministic() if execution.deterministic else nullcontext(),
        full_precision(execution.device),
        enough_memory(execution.device, purpose),
    ):
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _settle_workspace() -> None:
    """Have cuBLAS compute the same each time, which torch reads once, before the first product of all.

    Raises:
        DeviceError: if it may be too late.
    """
    if _WORKSPACE not in os.environ and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise DeviceError(
            f"deterministic is true, but this process has used CUDA already: export {_WORKSPACE}=:4096:8 and start anew"
        )
    os.environ.setdefault(_WORKSPACE, ":4096:8")


def _cores() -> int:
    # A batch system or container may grant fewer than the machine has, by affinity or by a quota of CPU time.
    from joblib import cpu_count

    return int(cpu_count(only_physical_cores=False))

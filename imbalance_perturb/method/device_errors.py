"""What torch and a GPU's libraries raise where memory runs out or a device fails, apart from faults of a network."""

from __future__ import annotations

import re

import torch

from imbalance_perturb.errors import DeviceError, first_line

#: Each library has a name of its own for it; cuDNN finds no way to compute where it has no room for any.
_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CU(DNN|BLAS|FFT|SOLVER)_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_NOT_SUPPORTED|unable to find an engine",
    re.IGNORECASE,
)

_DEVICE = re.compile(
    r"\b(CUDA|HIP) (driver )?error|no kernel image|device-side assert|CU(DNN|BLAS)_STATUS_|NVIDIA driver"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the machine."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None
    )


def pass_on_device_errors(error: BaseException, device: torch.device | None = None) -> None:
    """Raise what is no fault of the network that was run: to be called first where such a fault is looked into.

    Args:
        error: what the run raised.
        device: that it was on, where that is known: on a CPU an error of CUDA is one of the network, which names a GPU.

    Raises:
        RuntimeError: the error itself, where memory ran out.
        DeviceError: if the device failed.
    """
    if is_out_of_memory(error):
        raise error
    on_gpu = device is not None and device.type != "cpu"
    if on_gpu and isinstance(error, RuntimeError) and _DEVICE.search(str(error)):
        raise DeviceError(f"the GPU does not compute: {first_line(error)}; use --device cpu") from error

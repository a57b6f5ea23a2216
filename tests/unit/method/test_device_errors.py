"""imbalance_perturb.method.device_errors: memory that runs out and GPUs that fail are no fault of a network."""

from __future__ import annotations

import pytest
import torch

from imbalance_perturb.errors import DeviceError
from imbalance_perturb.method.device_errors import is_out_of_memory, pass_on_device_errors

#: As torch says them.
MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
)
DEVICE = (
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("Found no NVIDIA driver on your system."),
)
NETWORK = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x512 and 2048x7)"),
    ValueError("out of memory"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
)


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:40])
def test_memory_has_many_names(error: RuntimeError) -> None:
    """Whichever library ran out of it: the error is raised on, for who halves batches."""
    assert is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        pass_on_device_errors(error)
    assert caught.value is error


@pytest.mark.parametrize("error", DEVICE, ids=lambda error: str(error)[:40])
def test_a_device_that_fails_is_named(error: RuntimeError) -> None:
    """One line with what it said."""
    assert not is_out_of_memory(error)
    with pytest.raises(DeviceError, match=r"^the GPU does not compute: .*; use --device cpu$"):
        pass_on_device_errors(error, torch.device("cuda:1"))
    # On a CPU it is the network that asks for a GPU.
    pass_on_device_errors(error, torch.device("cpu"))


@pytest.mark.parametrize("error", NETWORK, ids=lambda error: str(error)[:40])
def test_a_networks_own_faults_are_left_to_be_told(error: Exception) -> None:
    """Shapes, devices as constants: no fault of the device."""
    assert not is_out_of_memory(error)
    pass_on_device_errors(error, torch.device("cuda"))

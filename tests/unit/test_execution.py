from __future__ import annotations

import pytest
import torch

from imbalance_perturb.errors import DeviceError
from imbalance_perturb.execution import Execution, applied, select_device, select_execution
from imbalance_perturb.modes import full_precision
from imbalance_perturb.settings import RunSettings


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    """auto is CUDA where torch has it and the CPU otherwise; cpu is always the CPU."""
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert select_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_missing_gpu_is_an_error() -> None:
    """Asking for CUDA without a GPU is an error with the remedy, not a silent fall back to the CPU."""
    with pytest.raises(DeviceError, match=r"device cuda:1: no CUDA GPU is available .* use --device cpu"):
        select_device("cuda:1")


def test_a_gpu_beyond_the_last_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:N beyond the machine's GPUs is an error that says how many there are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="this machine has 2 GPU"):
        select_device("cuda:2")


def test_what_is_left_open_is_settled() -> None:
    """Batch size and workers are chosen where not given: no workers for a handful of images."""
    few = select_execution(RunSettings(device="cpu"), 10)
    many = select_execution(RunSettings(device="cpu"), 10_000)
    assert (few.batch_size, few.workers, few.precision) == (32, 0, "fp32")
    assert 1 <= many.workers <= 8
    given = select_execution(RunSettings(device="cpu", batch_size=3, workers=0, deterministic=True), 10_000)
    assert (given.batch_size, given.workers, given.deterministic) == (3, 0, True)


def test_switches_are_put_back() -> None:
    """deterministic holds inside the run and nothing of it stays behind, also after an error."""
    execution = Execution(torch.device("cpu"), 1, 0, "fp32", True)

    def run() -> None:
        with applied(execution):
            assert torch.are_deterministic_algorithms_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert not torch.are_deterministic_algorithms_enabled()


def test_running_out_of_memory_names_the_remedy() -> None:
    """Out of memory, on a GPU or a CPU, is an error that says to make batches smaller; other errors pass."""
    execution = Execution(torch.device("cpu"), 64, 0, "fp32", False)
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), cpu):
        with pytest.raises(DeviceError, match=r"batches of 64; give a smaller --batch-size"), applied(execution):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), applied(execution):
        raise RuntimeError("shapes do not match")


def test_full_precision_is_full_and_put_back() -> None:
    """Inside there is no autocast, no TF32 and no reduced matmul; outside all is as before."""
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with full_precision(torch.device("cpu")):
                assert not torch.is_autocast_enabled("cpu")
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cudnn.allow_tf32
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32 == before
    finally:
        torch.set_float32_matmul_precision("highest")

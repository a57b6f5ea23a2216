from __future__ import annotations

import os

import pytest
import torch

from imbalance_perturb.config.settings import RunSettings
from imbalance_perturb.errors import DeviceError, SettingsError
from imbalance_perturb.inference import execution
from imbalance_perturb.inference.execution import (
    Execution,
    applied,
    enough_memory,
    fast_dtype,
    select_device,
    select_execution,
)
from imbalance_perturb.method.module_state import full_precision


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
    """Batch size and workers are chosen where not given: one worker for a handful of images."""
    few = select_execution(RunSettings(device="cpu"), 10)
    many = select_execution(RunSettings(device="cpu"), 10_000)
    assert (few.batch_size, few.workers, few.precision) == (8, 1, "fp32")
    assert 1 <= many.workers <= 16
    given = select_execution(RunSettings(device="cpu", batch_size=3, workers=0, deterministic=True), 10_000)
    assert (given.batch_size, given.workers, given.deterministic) == (3, 0, True)


@pytest.mark.parametrize(
    ("cores", "threads", "wanted", "expected"),
    [
        (2, 2, None, (2, True)),
        (64, 64, None, (16, True)),
        (2, 1, None, (1, False)),
        (16, 4, None, (12, False)),
        (16, 12, 4, (4, False)),
        (16, 12, 5, (5, True)),
        (1, 1, None, (1, True)),
        (8, 8, 0, (0, False)),
    ],
)
def test_decoding_never_takes_a_core_from_a_pass(
    cores: int, threads: int, wanted: int | None, expected: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers decode beside the model where cores are left for them; else they take turns with it, on all cores."""
    monkeypatch.setattr(execution, "_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for exact in (False, True):
        found = select_execution(RunSettings(device="cpu", workers=wanted), 10_000, exact=exact)
        assert (found.workers, found.takes_turns) == expected


def test_cores_are_those_that_a_container_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's quota of CPU time counts, which the affinity mask does not show; so do hyperthreads."""
    # What the quota comes from is a file that only a container has.
    quota = "joblib.externals.loky.backend.context._cpu_count_cgroup"
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    monkeypatch.setattr(quota, lambda cores: 1)
    assert execution._cores() == 1
    assert select_execution(RunSettings(device="cpu"), 10_000).workers == 1
    monkeypatch.setattr(quota, lambda cores: cores)
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert execution._cores() == granted


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)


def settle(n_images: int | None, *, exact: bool = False, **settings: object) -> Execution:
    return select_execution(RunSettings(device="cpu", **settings), n_images, exact=exact)  # type: ignore[arg-type]


@pytest.mark.usefixtures("with_bf16")
def test_auto_is_bf16_with_close_calls_in_fp32_where_it_pays() -> None:
    """With bf16 instructions auto is bf16 for many images; for few it is fp32 and says so; fp32 is always fp32."""
    many = settle(10_000)
    assert (many.precision, many.low_dtype, many.low_name, many.notes) == ("auto", torch.bfloat16, "bf16", ())
    assert many.describe_precision() == "bf16, close calls in fp32"
    assert settle(None) == many
    few = settle(255)
    assert (few.precision, few.low_dtype) == ("fp32", None)
    assert few.describe_precision() == "fp32 (auto: fewer than 256 images)"
    assert settle(256).precision == "auto"
    given = settle(10_000, precision="fp32")
    assert (given.precision, given.low_dtype, given.describe_precision()) == ("fp32", None, "fp32")


@pytest.mark.usefixtures("without_bf16")
def test_without_bf16_instructions_auto_is_fp32() -> None:
    """A CPU without bf16 instructions runs auto in fp32; asked for by name, bf16 is slow, and that is said."""
    auto = settle(10_000)
    assert (auto.precision, auto.low_dtype) == ("fp32", None)
    assert auto.describe_precision() == "fp32 (auto: this CPU has no bf16 instructions)"
    slow = settle(10, precision="bf16")
    assert (slow.precision, slow.low_dtype) == ("bf16", torch.bfloat16)
    assert slow.describe_precision() == "bf16 (slow: this CPU has no bf16 instructions)"


def test_fp16_is_not_for_a_cpu() -> None:
    """fp16 on a CPU is refused with what to use instead."""
    with pytest.raises(SettingsError, match="precision is fp16, which is for CUDA; on a CPU use auto, fp32 or bf16"):
        settle(10, precision="fp16")


def test_one_of_several_gpus_takes_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight runs on a machine of eight do not start decoders for all cores each; a run that has them all does."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)

    def workers(device: str, cores: int) -> int:
        return select_execution(RunSettings(device=device, precision="fp32"), 10_000, cores=cores).workers

    assert [workers("cuda:7", cores) for cores in (64, 16, 4)] == [7, 1, 1]
    assert workers("cuda", 12) == 11


def test_large_images_make_small_groups() -> None:
    """A group's images take a gigabyte at most, as far as one batch of them does; those of usual size go by fours."""
    execution = settle(10_000, batch_size=8)
    assert execution.for_images((3, 224, 224)) == execution
    assert execution.group_size == 32
    assert execution.for_images((3, 3000, 3000)).group_size == 8
    assert execution.for_images((3, 2000, 2000)).group_size == 16
    assert settle(10_000, batch_size=128).for_images((3, 1024, 1024)).group_size == 128


def test_a_gpu_runs_auto_in_fp16() -> None:
    """On every card: as fast as bf16, with a third of the close calls. On a CPU it is bf16 or nothing."""
    assert fast_dtype(torch.device("cuda:1")) == torch.float16
    assert fast_dtype(torch.device("cpu")) in (torch.bfloat16, None)


def test_cublas_is_told_before_its_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reads the variable once: it is set with the device, or, where CUDA is awake, asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    wanted = RunSettings(device="cuda", deterministic=True, precision="fp32")
    select_execution(RunSettings(device="cuda", precision="fp32"), 10)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with monkeypatch.context() as awake:
        awake.setattr(torch.cuda, "is_initialized", lambda: True)
        with pytest.raises(DeviceError, match="export CUBLAS_WORKSPACE_CONFIG=:4096:8 and start anew"):
            select_execution(wanted, 10)
    select_execution(wanted, 10)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    select_execution(wanted, 10)


def test_memory_that_runs_out_while_loading_is_one_line() -> None:
    """Whatever a library calls it."""
    with (
        pytest.raises(DeviceError, match=r"^the memory of cuda does not suffice for this model"),
        enough_memory(torch.device("cuda"), "this model"),
    ):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.usefixtures("with_bf16")
def test_few_images_are_all_corrected() -> None:
    """Close calls only is settled too: for fewer than 256 images all are corrected, and that is said."""
    assert settle(256, close_calls_only=True).close_calls_only
    assert settle(256, close_calls_only=True).describe_precision().endswith(", only close calls corrected")
    few = settle(255, close_calls_only=True, precision="fp32")
    assert not few.close_calls_only
    assert few.describe_precision() == "fp32 (all images corrected: fewer than 256)"


@pytest.mark.usefixtures("with_bf16")
def test_a_choice_between_corrections_is_exact() -> None:
    """An exact run is fp32 and corrects every image whatever auto would be; low precision by name is refused."""
    exact = settle(10_000, exact=True, close_calls_only=True)
    assert (exact.precision, exact.low_dtype, exact.close_calls_only) == ("fp32", None, False)
    with pytest.raises(SettingsError, match=r"precision is bf16; a choice between corrections .* use fp32"):
        settle(10_000, exact=True, precision="bf16")


def test_a_run_has_no_tf32() -> None:
    """Inside a run fp32 is fp32 everywhere: TF32 is off, and as before afterwards."""
    torch.set_float32_matmul_precision("high")
    try:
        with applied(Execution(torch.device("cpu"), 1, 0, "fp32", False)):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


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

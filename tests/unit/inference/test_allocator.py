from __future__ import annotations

import subprocess
import sys

import pytest

from imbalance_perturb.inference import allocator

_COUNT = """
import resource
import torch
from imbalance_perturb.inference.allocator import keep_freed_memory, release_freed_memory

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1])

anew = faults(5)
assert keep_freed_memory()
faults(20)  # until the heap has settled
kept = faults(5)
held = resident()
release_freed_memory()
print(anew, kept, held - resident())
"""


@pytest.mark.skipif(allocator._find("malloc_trim") is None, reason="the C library is not glibc")
def test_freed_memory_is_kept_until_it_is_released() -> None:
    """A block of 64 MiB is taken from the system once instead of every time; released, its pages are gone."""
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    anew, kept, released = map(int, done.stdout.split())
    assert kept < anew / 20
    assert released * 4096 > 60 << 20


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no glibc nothing is done, and the caller knows."""
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    allocator.release_freed_memory()

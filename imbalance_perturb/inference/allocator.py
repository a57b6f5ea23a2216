"""The C library's memory allocator (glibc): freed memory kept for the next pass, or given back before a fork.

Left alone, glibc takes blocks above 32 MB, such as a batch's activations, from the system anew each time and gives
them back at once. The system has to clear every page again, which took a fifth of a pass's time.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: Blocks up to this size are kept; before glibc 2.35 32 MiB are the most that can be set.
_LARGEST, _LARGEST_BEFORE = 1 << 30, 32 << 20


def keep_freed_memory() -> bool:
    """Let the allocator keep freed memory of this process for what is allocated next.

    For the main program to decide, since it concerns all of the process. The most that is held is what was once needed
    at a time.

    Returns:
        Whether the allocator is glibc's and did as told; others are left as they are.
    """
    mallopt = _find("mallopt")
    if mallopt is None:
        return False
    kept = any(mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST, _LARGEST_BEFORE))
    return bool(kept and mallopt(_TRIM_THRESHOLD, _LARGEST))


def release_freed_memory() -> None:
    """Give freed memory back to the system, before a fork: after it, each page of it would be copied when next used."""
    trim = _find("malloc_trim")
    if trim is not None:
        trim(0)


def _find(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

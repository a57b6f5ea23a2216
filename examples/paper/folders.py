"""What keeps a folder of results right: files that are whole or not there, and one process at work in it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def whole(path: Path, write: Callable[[Path], object]) -> None:
    """Nothing half-written under the final name."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the file; let go when it ends, however it ends."""
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True

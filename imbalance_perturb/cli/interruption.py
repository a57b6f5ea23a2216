"""Ctrl-C and SIGTERM during a run: the first asks it to stop where nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], str | None]]:
    """Inside: the first SIGINT or SIGTERM is only remembered, and the function that is yielded names it.

    A second one acts as it did before.
    """
    seen: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: FrameType | None) -> None:
        seen.append(signal.Signals(number).name)
        # Not print: the signal may have come in the midst of another, which cannot be entered twice.
        os.write(sys.stderr.fileno(), f"\n{seen[0]}: finishing the images at hand (again: stop at once)\n".encode())
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: seen[0] if seen else None
    finally:
        restore()

"""The bytes of a model file, read once: what was checked is what is loaded, and what its hash is of."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model file as it was when it was read; what happens to the file afterwards does not matter.

    Held in memory rather than as an open file: that would show what someone writes into it after the checks.

    Attributes:
        path: of the file, for messages.
        content: all of it.
    """

    path: Path
    content: bytes = field(repr=False)

    def open(self) -> BinaryIO:
        """A new file object at the beginning of the content, which is not copied."""
        return io.BytesIO(self.content)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

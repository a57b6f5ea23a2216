"""Read plain values that checkpoints have beside their tensors, and that need no code: options, numbers, paths.

A pickle names the classes of such values. Only those that can do nothing are made, and stand-ins
for the others, of what the values say.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from imbalance_perturb.models.formats.trust import PLAIN_PATHS

#: NumPy's numbers as ``struct`` names them.
_NUMBERS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
    "u1": "B", "b1": "?",
}  # fmt: skip
_MOST_TEXT = 10_000


class _NumberType:
    """Stands in for ``numpy.dtype``: which number, in which order of bytes."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code if isinstance(code, str) else ""
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


def _number(kind: object, content: object = b"") -> int | float | None:
    """Stands in for NumPy's scalars: the number, or None for anything else."""
    form = _NUMBERS.get(kind.code) if isinstance(kind, _NumberType) else None
    if not isinstance(kind, _NumberType) or form is None:
        return None
    if not isinstance(content, bytes) or len(content) != struct.calcsize(form):
        return None
    number: int | float = struct.unpack(kind.order + form, content)[0]
    return number


def _bytes(text: object = "", encoding: object = "latin1") -> bytes | None:
    """Stands in for ``_codecs.encode``, by which pickles of protocol 2 write bytes."""
    if not isinstance(text, str) or len(text) > _MOST_TEXT or encoding != "latin1":
        return None
    return text.encode("latin1", "replace")


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    SimpleNamespace,
    (_NumberType, "numpy.dtype"),
    (_bytes, "_codecs.encode"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((kind, name) for name, kind in PLAIN_PATHS.items()),
]


@contextmanager
def plain_values() -> Iterator[None]:
    """Inside: ``torch.load`` of tensors only also reads options in a Namespace, NumPy's numbers and paths."""
    with torch.serialization.safe_globals(_STAND_INS):
        yield

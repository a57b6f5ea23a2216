"""Millions of names in one block of memory: a string of Python takes 50 bytes more than its text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

#: Names that are made to strings at a time, where all are gone through.
_TOGETHER = 1 << 14


class PackedNames(Sequence[str]):
    """Names in the order of their code points; equal to a list of the same names.

    Args:
        data: their UTF-8, one after the other; bytes of other encodings as ``os.fsdecode`` reads them.
        ends: (N,) int64, where each ends in it.
    """

    def __init__(self, data: bytes, ends: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[one] for one in range(start, stop, step)]
            begin, ends = self._begin(start), self._ends[start:stop].tolist()
            return [_decode(self._data[a:b]) for a, b in zip([begin, *ends], ends, strict=False)]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        return _decode(self._data[self._begin(position) : int(self._ends[position])])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _TOGETHER):
            yield from self[start : start + _TOGETHER]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedNames):
            return self._data == other._data and bool(np.array_equal(self._ends, other._ends))
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedNames({self[:3]!r}{', ...' if len(self) > 3 else ''}, {len(self):,} in all)"

    def _begin(self, position: int) -> int:
        return int(self._ends[position - 1]) if position else 0


def pack_names(names: Iterable[str]) -> PackedNames:
    """Pack names and put them in order; a name that comes twice is kept twice.

    Where pyarrow is installed no more than some bytes a name are needed beside the names themselves.
    """
    data, ends, ordered, last = bytearray(), array("q"), True, ""
    for name in names:
        ordered = ordered and last <= name
        last = name
        data += name.encode("utf-8", "surrogateescape")
        ends.append(len(data))
    packed = PackedNames(bytes(data), np.frombuffer(ends, dtype=np.int64) if ends else np.empty(0, dtype=np.int64))
    return packed if ordered else _sort(packed)


def first_double(names: PackedNames) -> str | None:
    """The first name that is there twice, of names in order."""
    last = None
    for name in names:
        if name == last:
            return name
        last = name
    return None


def _sort(packed: PackedNames) -> PackedNames:
    order = _order(packed)
    return pack_names(sorted(packed) if order is None else (packed[int(position)] for position in order))


def _order(packed: PackedNames) -> Any:
    """The positions of the names in order; ``None`` where that is not the order of their bytes, or without pyarrow."""
    try:
        packed._data.decode("utf-8")
        import pyarrow as pa
        import pyarrow.compute as pc
    except (UnicodeDecodeError, ImportError):
        return None
    starts = np.concatenate([[0], packed._ends]).astype(np.int64)
    made = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(packed), [None, pa.py_buffer(starts), pa.py_buffer(packed._data)]
    )
    return pc.sort_indices(made).to_numpy(zero_copy_only=False)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

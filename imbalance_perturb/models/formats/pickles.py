"""Read what a pickle describes without making any of it, and refuse what would crash or exhaust its reader.

TorchScript's reader, in C++, trusts sizes, strides and numbers of memo slots; that of ``torch.load`` makes every
tensor that a pickle declares before it looks for its content. Both follow any depth of nesting.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from imbalance_perturb.errors import ModelFileError

#: A tensor takes some 40 operations, an optimiser's state as many again; a list of numbers beside them, one byte each.
_SOME_OPERATIONS = 2_000_000
_MOST_DEPTH = 200
#: How many times more than its storages' bytes tensors may show, by sharing or repeating them.
_MOST_SHARED, _SOME_BYTES = 8, 64 * 2**20
#: How many parts an object may have, counted as often as they are met, and how many times the objects that are there.
_SOME_PARTS, _MOST_REPEATED = 1_000_000, 100
_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "QInt8": 1, "QUInt8": 1, "QInt32": 4, "QUInt4x2": 1, "QUInt2x4": 1,
    "Untyped": 1,
}  # fmt: skip
_SCALARS = frozenset({
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "BINBYTES", "SHORT_BINBYTES",
})  # fmt: skip
_EMPTY = {"EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_FROM_MARK = {"TUPLE": "tuple", "LIST": "list", "DICT": "dict"}
_INTO_MARK = ("APPENDS", "SETITEMS")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class OddPickleError(ValueError):
    """A pickle that no honest writer makes; the message says what is odd."""


class UnknownOperationError(ValueError):
    """A pickle with an operation that neither reader of torch knows."""


class _Made:
    """Something that the pickle would make: its kind, and what it consists of."""

    __slots__ = ("kind", "parts")

    def __init__(self, kind: str, parts: list[Any]) -> None:
        self.kind = kind
        self.parts = parts


@dataclass
class Description:
    """What a pickle declares.

    Attributes:
        storages: bytes of each storage, by its key.
        shown: bytes of all tensors, as if none shared a storage.
        names: the classes and functions that it names.
        texts: the strings in it.
    """

    storages: dict[str, int] = field(default_factory=dict)
    shown: int = 0
    names: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)


def describe(file: BinaryIO, *, strict: bool, size: int = 0) -> Description:
    """Say what the pickle at the file's position declares; the file is left behind its end.

    Args:
        file: that holds it.
        strict: also refuse what a reader in Python would catch by itself, for one in C++ that does not.
        size: of the model file in bytes, packed as it is: a large one may describe more objects.

    Raises:
        OddPickleError: if it would crash its reader or exhaust memory.
        UnknownOperationError: if it is malformed or uses operations that torch does not.
    """
    reader = _Reader(strict, _SOME_OPERATIONS + size)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > reader.most:
                raise OddPickleError("it describes more objects than a model has")
            reader.follow(operation.name, argument)
    except OddPickleError:
        raise
    except Exception as error:  # pickletools raises whatever a malformed pickle leads to
        reader.check()  # its reader would make what stands before
        raise UnknownOperationError(str(error)) from error
    reader.check()
    return reader.found


class _Reader:
    """Follows a pickle's operations with descriptions in the place of objects."""

    def __init__(self, strict: bool, most: int) -> None:
        self.strict = strict
        self.most = most
        self.found = Description()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made: list[_Made] = []

    def follow(self, name: str, argument: Any) -> None:
        """Do one operation."""
        if name in _SCALARS:
            self.stack.append(argument)
            if isinstance(argument, str):
                self.found.texts.append(argument)
        elif name in _EMPTY:
            self._push(_EMPTY[name], [])
        elif name in _FROM_MARK:
            self._push(_FROM_MARK[name], self._from_mark())
        elif name in _TUPLES:
            self._push("tuple", [self._pop() for _ in range(_TUPLES[name])][::-1])
        elif name in _INTO_MARK:
            items = self._from_mark()
            self._top().parts.extend(items)
        elif name in ("BINPUT", "LONG_BINPUT"):
            if argument > self.most:
                raise OddPickleError(f"it numbers an object {argument:,}")
            self.memo[argument] = self._top(any_kind=True)
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.found.names.add(argument.replace(" ", "."))
            self._push(argument.replace(" ", "."), [])
        else:
            self._rarer[name](self)

    def check(self) -> None:
        """Refuse what is nested or repeated beyond measure, or tensors of more than there are storages for."""
        if self.found.shown > _SOME_BYTES + _MOST_SHARED * sum(self.found.storages.values()):
            raise OddPickleError(
                f"its tensors take {self.found.shown:,} bytes, its storages {sum(self.found.storages.values()):,}"
            )
        depth, size = _extent(self.made)
        if depth > _MOST_DEPTH:
            raise OddPickleError("it is nested too deeply")
        if size > _SOME_PARTS + _MOST_REPEATED * len(self.made):
            raise OddPickleError("it repeats itself too often")

    def _append(self) -> None:
        item = self._pop()
        self._top().parts.append(item)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top().parts.extend((key, value))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        kind = function.kind if isinstance(function, _Made) else "no function"
        self._count(kind, arguments.parts if isinstance(arguments, _Made) else [])
        self._push(f"made by {kind}", [arguments])

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        target.parts.append(state)
        if isinstance(state, _Made) and state.kind == "tuple" and len(state.parts) > 3:
            self._count("torch._utils._rebuild_tensor", state.parts)

    def _persistent(self) -> None:
        identity = self._pop()
        parts = identity.parts if isinstance(identity, _Made) and identity.kind == "tuple" else []
        if len(parts) < 5 or parts[0] not in ("storage", b"storage"):
            raise ValueError("it refers to something other than a tensor's storage")
        _, kind, key, _, elements = parts[:5]
        number = elements if isinstance(elements, int) else -1
        width = _BYTES.get(kind.kind.rpartition(".")[2].removesuffix("Storage")) if isinstance(kind, _Made) else None
        if not isinstance(key, str) or number < 0 or width is None:
            raise OddPickleError("it describes a tensor's storage in an unknown way")
        # A key may stand for storages of two lengths: the longest must be there.
        self.found.storages[key] = max(self.found.storages.get(key, 0), number * width)
        self._push("storage", [number, width])

    def _count(self, function: str, arguments: list[Any]) -> None:
        """Add the tensor that a call would make, and check that its elements lie within its storage."""
        name = function.rpartition(".")[2]
        if name == "_rebuild_from_type_v2" and len(arguments) > 2 and isinstance(arguments[2], _Made):
            inner = arguments[0].kind if isinstance(arguments[0], _Made) else ""
            self._count(inner, arguments[2].parts if inner != function else [])
        elif name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"):
            reason = self._tensor_reason(arguments)
            if reason and self.strict:
                raise OddPickleError(reason)
        elif name.endswith(("Tensor", "Storage", "bytearray", "Parameter")):
            # Called with numbers, these make as much memory as the numbers say.
            numbers = list(_numbers(arguments))
            self.found.shown += 8 * math.prod(abs(number) for number in numbers) if numbers else 0

    def _tensor_reason(self, arguments: list[Any]) -> str | None:
        storage, offset, size, stride = (*arguments, None, None, None, None)[:4]
        if not (isinstance(storage, _Made) and storage.kind == "storage"):
            return "it makes a tensor of something other than a storage"
        sizes, strides = list(_numbers([size])), list(_numbers([stride]))
        elements, width = storage.parts
        if len(sizes) != len(strides) or not isinstance(offset, int) or min((*sizes, *strides, offset)) < 0:
            return "it makes a tensor of an impossible shape"
        if len(sizes) > 64:
            return "it makes a tensor of too many dimensions"
        last = offset + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
        self.found.shown += width * math.prod(sizes)
        if math.prod(sizes) and last >= elements:
            return f"a tensor reaches element {last:,} of a storage of {elements:,}"
        return None

    def _push(self, kind: str, parts: list[Any]) -> None:
        self.made.append(_Made(kind, parts))
        self.stack.append(self.made[-1])

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("nothing stands behind the mark")
        return value

    def _top(self, any_kind: bool = False) -> Any:
        value = self.stack[-1]
        if value is _MARK or not (any_kind or isinstance(value, _Made)):
            raise ValueError("an operation on nothing")
        return value

    def _from_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    _rarer: dict[str, Callable[[_Reader], Any]] = {  # noqa: RUF012 - a table of methods, never changed
        "PROTO": lambda self: None,
        "MARK": lambda self: self.stack.append(_MARK),
        "POP": lambda self: self.stack.pop(),
        "APPEND": _append,
        "SETITEM": _set_item,
        "REDUCE": _call,
        "NEWOBJ": _call,
        "BUILD": _build,
        "BINPERSID": _persistent,
        "STOP": _pop,
    }


def _numbers(values: list[Any]) -> list[int]:
    """The whole numbers in values, also within one tuple or ``torch.Size`` of them."""
    levels = (level for value in values for level in (_inside(value) if isinstance(value, _Made) else [value]))
    return [level for level in levels if isinstance(level, int) and not isinstance(level, bool)]


def _inside(value: _Made) -> list[Any]:
    for _ in range(3):
        if len(value.parts) == 1 and isinstance(value.parts[0], _Made):
            value = value.parts[0]
    return value.parts


def _extent(made: list[_Made]) -> tuple[int, int]:
    """Depth of the deepest object, and size of the largest if nothing in it were shared."""
    depths: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for root in made:
        waiting = [] if id(root) in depths else [(root, False)]
        while waiting:
            value, seen = waiting.pop()
            inside = [part for part in value.parts if isinstance(part, _Made)]
            if seen:
                depths[id(value)] = 1 + max((depths[id(part)] for part in inside), default=0)
                sizes[id(value)] = min(2**62, len(value.parts) + 1 + sum(sizes[id(part)] for part in inside))
            elif id(value) not in depths:
                depths[id(value)] = sizes[id(value)] = 0  # what is met again within itself adds nothing
                waiting.append((value, True))
                waiting.extend((part, False) for part in inside if id(part) not in depths)
    return max(depths.values(), default=0), max(sizes.values(), default=0)


def odd_pickle(name: str, part: str, error: ValueError) -> ModelFileError:
    """The error of a pickle that torch cannot have written; ``part`` is its place in an archive, if it lies in one."""
    where = f"the pickle {part[:80]!r} in it" if part else "its pickle"
    return ModelFileError(f"{name}: {where} is damaged or made to do harm ({error}); save the model again")

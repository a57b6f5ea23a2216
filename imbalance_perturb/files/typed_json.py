"""JSON read and written by the type hints of dataclasses, so that what is written is what is read.

Hints may be dataclasses, ``tuple[X, ...]``, ``tuple[X, Y]``, ``list[X]``, ``Mapping[str, X]``, ``int``, ``float``,
``bool``, ``str``, ``None``, unions of these, ``Annotated[int, AtLeast(0)]``, and types that have a :class:`Form` of
their own. Every field is an entry, in order; one that is :data:`OPTIONAL` may be absent, and is not written where it is
its default. A class's ``derived`` names properties that are written behind the fields: read, they are checked and made
anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from imbalance_perturb.errors import brief, printable

#: Metadata of a field that may be absent.
OPTIONAL = {"optional": True}


class EntryError(ValueError):
    """An entry is missing, unknown or not what its type says; the message begins with its name."""


class AtLeast(NamedTuple):
    """The lowest value that a number may have."""

    lowest: int


#: A number of things.
Count = Annotated[int, AtLeast(0)]

#: A number of things, at least one.
Positive = Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class Form:
    """How a type that is not described by its fields stands in JSON.

    Attributes:
        kind: what JSON has for it, ``str`` or ``dict``.
        expected: what that is, in words.
        read: makes the value of the JSON and the entry's name; raises :class:`EntryError`.
        write: makes the JSON of the value.
        schema: its JSON Schema.
    """

    kind: type[Any]
    expected: str
    read: Callable[[Any, str], Any]
    write: Callable[[Any], Any]
    schema: Mapping[str, Any]


Forms = Mapping[Any, Form]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


class Entry(NamedTuple):
    """One entry of a dataclass: its hint, and whether it may be absent or is made from others."""

    hint: Any
    optional: bool = False
    derived: bool = False


@cache
def entries(kind: Any) -> dict[str, Entry]:
    """The entries of a dataclass by their names, as they are written."""
    hints = get_type_hints(kind, include_extras=True)
    found = {one.name: Entry(hints[one.name], bool(one.metadata.get("optional"))) for one in fields(kind)}
    for name in getattr(kind, "derived", ()):
        found[name] = Entry(get_type_hints(getattr(kind, name).fget)["return"], derived=True)
    return found


def read_typed(hint: Any, value: Any, entry: str, forms: Forms) -> Any:
    """The value of a type that JSON stands for; numbers stay as they are, whole ones also where any are expected.

    Args:
        hint: the type.
        value: what JSON has.
        entry: its name in the file, such as ``images.total``; empty for all of it.
        forms: of the types that have one.

    Raises:
        EntryError: naming the first entry that is missing, unknown or wrong.
    """
    wanted = options(hint)
    chosen = next((option for option in wanted if _fits(option, value, forms)), None)
    if chosen is None:
        refuse(entry, value, " or ".join(describe(option, forms) for option in wanted))
    if chosen in forms:
        return forms[chosen].read(value, entry)
    if isinstance(chosen, type) and is_dataclass(chosen):
        return _read_entries(chosen, value, entry, forms)
    origin, arguments = get_origin(chosen), get_args(chosen)
    if origin is Mapping:
        return {key: read_typed(arguments[1], one, _join(entry, key), forms) for key, one in value.items()}
    if origin in (tuple, list):
        each = [arguments[0]] * len(value) if origin is list or arguments[-1] is ... else arguments
        if len(each) != len(value):
            refuse(entry, value, describe(chosen, forms))
        pairs = enumerate(zip(each, value, strict=True))
        return origin(read_typed(one_hint, one, f"{entry}[{index}]", forms) for index, (one_hint, one) in pairs)
    if origin is Annotated and value < arguments[1].lowest:
        refuse(entry, value, f"{describe(chosen, forms)} of at least {arguments[1].lowest}")
    return value


def write_typed(value: Any, forms: Forms) -> Any:
    """The JSON of a value that :func:`read_typed` reads again."""
    if type(value) in forms:
        return forms[type(value)].write(value)
    if is_dataclass(value):
        absent = {
            one.name
            for one in fields(value)
            if one.metadata.get("optional") and getattr(value, one.name) == one.default
        }
        kind: Any = type(value)
        found = {name: getattr(value, name) for name in entries(kind) if name not in absent}
        return {name: write_typed(one, forms) for name, one in found.items()}
    if isinstance(value, Mapping):
        return {key: write_typed(one, forms) for key, one in value.items()}
    return [write_typed(one, forms) for one in value] if isinstance(value, tuple | list) else value


def refuse(entry: str, value: Any, expected: str) -> NoReturn:
    """Refuse the value of an entry."""
    found = "missing" if value is MISSING else "null" if value is None else brief(value)
    raise EntryError(f"{entry or 'all of it'} is {found}; expected {expected}")


def _read_entries(kind: Any, value: Mapping[str, Any], entry: str, forms: Forms) -> Any:
    known = entries(kind)
    for name, one in known.items():
        if name not in value and not one.optional:
            refuse(_join(entry, name), MISSING, " or ".join(describe(option, forms) for option in options(one.hint)))
    for name in value:
        if name not in known:
            raise EntryError(f"{_join(entry, name)} is not known; expected {', '.join(known)}")
    found = {name: read_typed(known[name].hint, one, _join(entry, name), forms) for name, one in value.items()}
    return kind(**{name: one for name, one in found.items() if not known[name].derived})


def options(hint: Any) -> tuple[Any, ...]:
    """The hints of a union, or the one that is none."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _json_type(hint: Any, forms: Forms) -> Any:
    """What JSON has for a hint that is no union."""
    if hint in forms:
        return forms[hint].kind
    origin = get_origin(hint)
    if origin is Annotated:
        return get_args(hint)[0]
    if origin in (tuple, list):
        return list
    return dict if origin is Mapping or is_dataclass(hint) else hint


def _fits(hint: Any, value: Any, forms: Forms) -> bool:
    """Whether JSON has the type for a hint here; what is inside is looked at later."""
    wanted = _json_type(hint, forms)
    if wanted not in (int, float):
        return isinstance(value, wanted)
    # JSON's 1e999 is infinite to Python, which no file that is written holds.
    number = isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return number and abs(value) <= (sys.maxsize if wanted is int else sys.float_info.max)


def describe(hint: Any, forms: Forms) -> str:
    """What JSON has for a hint that is no union, in words."""
    if hint in forms:
        return forms[hint].expected
    wanted = _json_type(hint, forms)
    if wanted is not list:
        return _WORDS.get(wanted, "an object with entries")
    arguments = get_args(hint)
    fixed = get_origin(hint) is tuple and arguments[-1] is not ...
    return f"a list of {len(arguments)}" if fixed else "a list"


def _join(entry: str, name: str) -> str:
    return f"{entry}.{printable(name)}" if entry else printable(name)

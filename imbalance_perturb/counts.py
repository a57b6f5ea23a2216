"""Class counts: how many training images each class had, in class-index order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from imbalance_perturb.errors import CountsError, ImbperturbError

_FORMS = '{"name": count, ...}, {"classes": [...], "counts": [...]} or a bare list of counts'


@dataclass(frozen=True)
class ClassCounts:
    """Training images per class; position is the class index, that is the logit column.

    Args:
        names: C distinct, non-empty class names.
        counts: C positive integers, at least two of them.

    Raises:
        CountsError: if the two do not fit together or a count is not a positive integer.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "counts", tuple(counts))
        self._check()

    def _check(self) -> None:
        if len(self.names) != len(self.counts):
            raise CountsError(f"{len(self.names)} class names but {len(self.counts)} counts; give one for each class")
        for name, count in zip(self.names, self.counts, strict=True):
            if not isinstance(name, str) or not name.strip():
                raise CountsError(f"class name {name!r} is not a non-empty string")
            # bool is a subclass of int, and 'true' is no number of images.
            if isinstance(count, bool) or not isinstance(count, int):
                raise CountsError(f"the count of class {name!r} is {count!r}; expected a whole number of images")
            if count <= 0:
                raise CountsError(
                    f"the count of class {name!r} is {count}; every class needs at least one training image"
                    " (leave out a class that the model does not have)"
                )
        doubles = sorted({name for name in self.names if self.names.count(name) > 1})
        if doubles:
            raise CountsError(f"class name {doubles[0]!r} stands more than once; names must be distinct")
        if len(self.counts) < 2:
            raise CountsError(f"{len(self.counts)} class found; a classifier needs at least two")

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        """Number of training images over all classes."""
        return sum(self.counts)

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same count: then there is nothing to correct."""
        return len(set(self.counts)) == 1

    @property
    def imbalance(self) -> float:
        """Largest count divided by smallest count (the paper's Table 1)."""
        return max(self.counts) / min(self.counts)

    @property
    def smallest(self) -> int:
        """Index of the class with the fewest training images (the first one, where several tie)."""
        return self.counts.index(min(self.counts))

    def to_dict(self) -> dict[str, int]:
        """The counts as ``{name: count}`` in class-index order."""
        return dict(zip(self.names, self.counts, strict=True))


def parse_class_counts(data: object) -> ClassCounts:
    """Read class counts from what JSON gives: a mapping, the two-list form, or a bare list.

    Raises:
        CountsError: if ``data`` has another form, or the counts are not usable.
    """
    if isinstance(data, Mapping):
        if set(data) == {"classes", "counts"} and not isinstance(data["counts"], int):
            names, counts = data["classes"], data["counts"]
            if not isinstance(names, list) or not isinstance(counts, list):
                raise CountsError('"classes" and "counts" must both be lists of the same length')
            return ClassCounts(names, counts)
        return ClassCounts(tuple(data), tuple(data.values()))
    if isinstance(data, list):
        return ClassCounts([str(index) for index in range(len(data))], data)
    raise CountsError(f"found {type(data).__name__}; expected {_FORMS}")


def load_class_counts(path: str | Path) -> ClassCounts:
    """Load class counts from a JSON file (the forms of :func:`parse_class_counts`).

    Raises:
        CountsError: naming the file, what is wrong with it and what is expected.
    """
    return read_counts_file(path).counts


class CountsFile(NamedTuple):
    """Class counts, and the SHA-256 of the very bytes that they were read from."""

    counts: ClassCounts
    sha256: str


def read_counts_file(path: str | Path) -> CountsFile:
    """As :func:`load_class_counts`, with the hash of what was read."""
    path = Path(path)
    try:
        content = _read_bytes(path, _FORMS, CountsError)
        counts = parse_class_counts(_parse_json(content, _FORMS, CountsError))
    except CountsError as error:
        raise type(error)(f"{path}: {error}") from None
    return CountsFile(counts, hashlib.sha256(content).hexdigest())


def read_json(path: Path, expected: str, error_type: type[ImbperturbError]) -> Any:
    """The content of a JSON file a user wrote, strictly: UTF-8, no duplicate keys, no NaN or Infinity.

    Raises:
        ``error_type``: with the cause and what was ``expected``; the caller adds the file's name.
    """
    return _parse_json(_read_bytes(path, expected, error_type), expected, error_type)


def _read_bytes(path: Path, expected: str, error_type: type[ImbperturbError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"cannot be read ({error.strerror}); expected a JSON file with {expected}") from None


def _parse_json(content: bytes, expected: str, error_type: type[ImbperturbError]) -> Any:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error_type(f"is not UTF-8 text; expected a JSON file with {expected}") from None
    if not text.strip():
        raise error_type(f"is empty; expected {expected}")
    try:
        return json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise error_type(f"is not JSON ({where}: {error.msg}); expected {expected}") from None
    except RecursionError:
        raise error_type(f"is nested too deeply; expected {expected}") from None
    except _JsonRefusedError as error:
        raise error_type(f"{error}; expected {expected}") from None


class _JsonRefusedError(Exception):
    """JSON that Python would read and that loses or hides a value."""


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys: a class would vanish and every index after it would shift.
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise _JsonRefusedError(f"{key!r} stands more than once, so one of the two would be lost")
        data[key] = value
    return data


def _refuse_constant(text: str) -> NoReturn:
    raise _JsonRefusedError(f"{text} is not a number that can be used")

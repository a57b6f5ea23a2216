"""Class counts: how many training images each class had, in class-index order."""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from imbalance_perturb.errors import CountsError, first_few
from imbalance_perturb.files.strict_json import parse_json_bytes, read_bytes_of

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_FORMS = '{"name": count, ...}, {"classes": [...], "counts": [...]} or a bare list of counts'


@dataclass(frozen=True)
class ClassCounts:
    """Training images per class; position is the class index, that is the logit column.

    Args:
        names: C distinct, non-empty class names; any sequence of texts, NumPy's too.
        counts: C positive whole numbers, at least two of them; any sequence, ``np.bincount(y)`` too, and ``4023.0``.
            Booleans are refused.
        named: whether the classes are called by names, rather than by their indices for want of any.
        notes: what was taken for what to read them.

    Raises:
        CountsError: if the two do not fit together or a count is not a positive integer.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    named: bool = field(default=True, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __init__(
        self, names: Iterable[str], counts: Iterable[float], *, named: bool = True, notes: tuple[str, ...] = ()
    ) -> None:
        texts = (str(name) if isinstance(name, str) else name for name in _listed("names", names))
        object.__setattr__(self, "names", tuple(texts))
        object.__setattr__(self, "counts", tuple(map(_as_int, _listed("counts", counts))))
        object.__setattr__(self, "named", named)
        object.__setattr__(self, "notes", notes)
        self._check()

    def _check(self) -> None:
        if len(self.names) != len(self.counts):
            raise CountsError(f"{len(self.names)} class names but {len(self.counts)} counts; give one for each class")
        for name, count in zip(self.names, self.counts, strict=True):
            if not isinstance(name, str) or not name.strip():
                raise CountsError(f"class name {name!r} is not a non-empty string")
            if not isinstance(count, int) or isinstance(count, bool):
                raise CountsError(f"the count of class {name!r} is {count!r}; expected a whole number of images")
            if count <= 0:
                raise CountsError(
                    f"the count of class {name!r} is {count}; every class needs at least one training image"
                    " (leave out a class that the model does not have)"
                )
        doubles = sorted(name for name, times in Counter(self.names).items() if times > 1)
        if doubles:
            raise CountsError(f"class name {doubles[0]!r} stands more than once; names must be distinct")
        if len(self.counts) < 2:
            raise CountsError(f"{len(self.counts)} class found; a classifier needs at least two")

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def indexed(self) -> bool:
        """Whether the classes are called ``0`` to ``C-1``, each by its index."""
        return self.names == tuple(map(str, range(len(self))))

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
        """Return the counts as ``{name: count}`` in class-index order."""
        return dict(zip(self.names, self.counts, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_class_counts` reads back: ``{name: count}``, or two lists where it must be."""
        if _order_fault(self.names, listed=False) is None:
            return self.to_dict()
        return {"classes": list(self.names), "counts": list(self.counts)}


def name_classes(counts: ClassCounts, names: Sequence[str]) -> ClassCounts:
    """Name the classes as the model does, where the counts call them by index only.

    Args:
        counts: of C classes.
        names: C of them in class-index order, as the model has them.

    Raises:
        CountsError: if the two have the classes in different orders, or different classes.
    """
    here, there = _folded(counts.names), _folded(names)
    if here == there:
        return counts
    if not counts.named:
        return ClassCounts(names, counts.counts)
    if set(here) == set(there):
        raise CountsError(f"the classes are in another order than the model's: {_both(counts.names, names)}")
    if counts.indexed:
        return ClassCounts(names, counts.counts)
    if all(map(_NUMBER.fullmatch, names)):
        return counts  # the model has codes for what the counts call by name
    raise CountsError(f"the classes are not those that the model names: {_both(counts.names, names)}")


def _folded(names: Sequence[str]) -> tuple[str, ...]:
    folded = tuple(name.strip().casefold() for name in names)
    return folded if len(set(folded)) == len(folded) else tuple(names)


def _both(here: Sequence[str], there: Sequence[str]) -> str:
    differ = [i for i, (one, other) in enumerate(zip(_folded(here), _folded(there), strict=True)) if one != other]
    first = ", ".join(f"class {i} is {here[i]!r} here and {there[i]!r} there" for i in differ[:3])
    return f"{first} (here: {first_few(here, 12)}; there: {first_few(there, 12)})"


def _listed(what: str, values: Iterable[Any]) -> tuple[Any, ...]:
    # A text is a sequence of letters, and a mapping one of its keys: neither is what anybody means.
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise CountsError(f"the {what} are {type(values).__name__}; expected a sequence with one for each class")
    return tuple(values)


def _as_int(count: Any) -> Any:
    """Convert a whole number of any library to Python's; anything else stays, for the check to name."""
    # bool is a subclass of int, torch turns its own into one, and 'true' is no number of images.
    if isinstance(count, bool) or str(getattr(count, "dtype", "")).endswith("bool"):
        return bool(count) if getattr(count, "ndim", 0) == 0 else count
    try:
        return operator.index(count)
    except TypeError:
        number = count.item() if hasattr(count, "item") and getattr(count, "ndim", 1) == 0 else count
        # pandas makes floats of a column that once had a gap.
        return int(number) if isinstance(number, float) and number.is_integer() else count


def _order_fault(names: Sequence[Any], *, listed: bool) -> str | None:
    """Say what is wrong with the order of classes that are called by numbers; None where nothing is.

    A table of counts by class, as pandas writes it, is sorted by count, and tools sort the keys of JSON as text.
    ``listed``: whether the names are in a list of their own, which somebody has put in order.
    """
    if not all(isinstance(name, str) and _NUMBER.fullmatch(name) for name in names):
        return None
    by_value, as_text = sorted(names, key=float), sorted(names)
    indices = by_value == [str(index) for index in range(len(names))]
    if list(names) == by_value or (list(names) == as_text and (listed or not indices)):
        return None
    order = first_few(names, 12)
    return f"the classes are numbers in the order {order}, but the position is the class index, not the name"


def _refuse_numbers(names: Sequence[Any], counts: Sequence[Any], *, listed: bool) -> None:
    fault = _order_fault(names, listed=listed)
    if fault is None:
        return
    pairs = sorted(zip(names, counts, strict=False), key=lambda pair: float(pair[0]))
    shown = json.dumps(dict(pairs[:12]), default=str)[1:-1] + (", ..." if len(pairs) > 12 else "")
    text = ""
    if sorted(names) != [name for name, _ in pairs]:
        few = json.dumps(sorted(names)[:4])[1:-1] + (", ..." if len(names) > 4 else "")
        lists = f'{{"classes": [{few}], "counts": [...]}}'
        text = f", or {lists} if its outputs have them sorted as text, as ImageFolder's have"
    raise CountsError(f"{fault}: write {{{shown}}} if the model's outputs have them by value{text}")


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
            _refuse_numbers(names, counts, listed=True)
            return _without_blanks(names, counts)
        if len(data) == 1 and isinstance(only := next(iter(data.values())), Mapping):
            return parse_class_counts(only)  # of one column, as pandas writes a table
        _refuse_numbers(tuple(data), tuple(data.values()), listed=False)
        return _without_blanks(tuple(data), tuple(data.values()))
    data = as_list(data)
    if isinstance(data, list):
        return ClassCounts([str(index) for index in range(len(data))], data, named=False)
    raise CountsError(f"found {type(data).__name__}; expected {_FORMS}")


def _without_blanks(names: Sequence[Any], counts: Sequence[Any]) -> ClassCounts:
    """Class counts under names without the blanks around them, which no label has."""
    plain = [name.strip() if isinstance(name, str) else name for name in names]
    blank = [name for name, short in zip(names, plain, strict=True) if name != short]
    times = Counter(name for name in plain if isinstance(name, str))
    doubles = [name for name in blank if times[name.strip()] > 1]
    if doubles:
        raise CountsError(f"class name {doubles[0]!r} differs from another in the blanks around it alone; rename one")
    notes = (f"blanks around class names are left out: {first_few(list(map(repr, blank)))}",) if blank else ()
    return ClassCounts(plain, counts, notes=notes)


def as_list(data: object) -> object:
    """Convert a tuple or a NumPy or torch array to a list of Python's values; anything else stays."""
    # A pandas Series is none: its index would be lost, and with it the order that is meant.
    if isinstance(data, tuple) or (hasattr(data, "tolist") and hasattr(data, "ndim") and not hasattr(data, "items")):
        return list(data) if isinstance(data, tuple) else data.tolist()
    return data


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
    """Read as :func:`load_class_counts` does, with the hash of what was read."""
    path = Path(path)
    try:
        content = read_bytes_of(path, _FORMS, CountsError)
        counts = parse_class_counts(parse_json_bytes(content, _FORMS, CountsError))
    except CountsError as error:
        raise type(error)(f"{path}: {error}") from None
    return CountsFile(counts, hashlib.sha256(content).hexdigest())

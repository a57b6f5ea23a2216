from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from imbalance_perturb.files.json_schema import schema_of
from imbalance_perturb.files.typed_json import OPTIONAL, Count, EntryError, read_typed, write_typed


@dataclass(frozen=True)
class Box:
    """A box.

    Attributes:
        size: its sides in cm.
        label: what is on it.
    """

    size: int | tuple[Count, Count]
    label: str | None


@dataclass(frozen=True)
class Shelf:
    """A shelf.

    Attributes:
        boxes: what stands on it.
        prices: of each box.
        full: whether there is no more room.
        note: a note.
    """

    derived: ClassVar = ("count",)

    boxes: tuple[Box, ...]
    prices: Mapping[str, float]
    full: bool
    note: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def count(self) -> int:
        """Number of boxes."""
        return len(self.boxes)


SHELF = Shelf((Box(1, None), Box((2, 3), "a")), {"a": 1, "b": 0.5}, True)
DATA: dict[str, Any] = {
    "boxes": [{"size": 1, "label": None}, {"size": [2, 3], "label": "a"}],
    "prices": {"a": 1, "b": 0.5},
    "full": True,
    "count": 2,
}


def test_what_is_written_is_what_is_read() -> None:
    """Fields in their order, then what follows from them; what is optional only where it is there."""
    assert json.dumps(write_typed(SHELF, {})) == json.dumps(DATA)
    assert read_typed(Shelf, DATA, "", {}) == SHELF
    noted = DATA | {"note": "x"}
    assert write_typed(read_typed(Shelf, noted, "", {}), {}) == noted


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boxes": None}, "boxes is null; expected a list"),
        ({"boxes": [1]}, "boxes[0] is 1; expected an object with entries"),
        ({"boxes": [{"size": 1}]}, "boxes[0].label is missing; expected text or null"),
        ({"boxes": [{"size": True, "label": ""}]}, "boxes[0].size is True; expected a whole number or a list of 2"),
        ({"boxes": [{"size": [1], "label": ""}]}, "boxes[0].size is [1]; expected a list of 2"),
        ({"boxes": [{"size": [1, -1], "label": ""}]}, "boxes[0].size[1] is -1; expected a whole number of at least 0"),
        ({"boxes": [{"size": 1.0, "label": ""}]}, "boxes[0].size is 1.0; expected a whole number or a list of 2"),
        ({"boxes": [{"size": 10**30, "label": ""}]}, f"boxes[0].size is {10**30}; expected a whole number"),
        ({"prices": {"a b": "1"}}, "prices.a b is '1'; expected a number"),
        ({"prices": {"a": float("inf")}}, "prices.a is inf; expected a number"),
        ({"full": 1}, "full is 1; expected true or false"),
        ({"count": "2"}, "count is '2'; expected a whole number"),
        ({"more\n": 2}, "more\\n is not known; expected boxes, prices, full, note, count"),
    ],
)
def test_an_entry_that_is_wrong_is_named(changed: dict[str, Any], message: str) -> None:
    """The first entry that is missing, unknown or of another type, with what it is and what was expected."""
    with pytest.raises(EntryError) as refused:
        read_typed(Shelf, DATA | changed, "", {})
    assert str(refused.value).startswith(message)


def test_all_of_it_may_be_wrong() -> None:
    """What is no object at all has no entry to name."""
    with pytest.raises(EntryError, match=r"^all of it is 3; expected an object with entries$"):
        read_typed(Shelf, 3, "", {})


def test_the_schema_describes_the_entries() -> None:
    """Descriptions come from docstrings, types from hints."""
    schema = schema_of(Shelf, {})
    assert schema["required"] == ["boxes", "prices", "full", "count"]
    assert schema["properties"]["count"] == {"description": "Number of boxes.", "type": "integer"}
    sides = schema["$defs"]["Box"]["properties"]["size"]
    assert sides["description"] == "its sides in cm."
    assert sides["anyOf"][1]["prefixItems"] == [{"type": "integer", "minimum": 0}] * 2

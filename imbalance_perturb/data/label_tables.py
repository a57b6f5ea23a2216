"""The label that a table gives each image: in a column of labels, or by one column of 0 and 1 for each class."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from imbalance_perturb.errors import LabelsError, first_few, printable
from imbalance_perturb.files.csv_tables import decode_text, iter_images_of
from imbalance_perturb.files.user_tables import UserTable, read_user_table

_REQUIRED = ("image", "label")

#: How a one and a zero are written: by hand, by pandas as floats or flags, by spreadsheets with a decimal comma.
_ONE, _ZERO = (re.compile(rf"{digit}([.,]0*)?|{word}", re.IGNORECASE) for digit, word in ((1, "true"), (0, "false")))

_WHOLE = re.compile(r"(-?[0-9]{1,18})\.0*")


@dataclass(frozen=True)
class LabelTable:
    """``labels`` has the label of each image as the table writes it, ``notes`` what was taken for what.

    ``columns`` are the classes where each has its column, in the order of these. ``groups`` has the group of each image
    where a column of groups was asked for.
    """

    labels: dict[str, str]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)


def read_label_table(path: Path, names: Sequence[str] | None = None, group: str | None = None) -> LabelTable:
    """Read the labels of a table.

    Args:
        path: as for :func:`read_user_table`, with columns ``image`` and ``label``, or ``image`` and one for each class.
        names: the classes, where they are known; else columns that hold only 0 and 1 are classes, all but ``image``.
        group: a column that says which images belong together, such as those of one lesion.

    Raises:
        LabelsError: if the table cannot be read, has no labels or two kinds of them, a row has no label or several, or
            there is no column ``group`` or a cell of it is empty.
    """
    table = read_user_table(path, _REQUIRED, LabelsError)
    image = table.column("image", _REQUIRED)
    classes = _class_columns(table, image, names)
    found = [column for column in table.columns("label") if column not in classes]
    if classes and found:
        raise LabelsError(
            f"{path}: has a column {found[0]!r} and one for each class ({first_few(list(classes))}); leave out one of"
            " the two"
        )
    groups: dict[str, str] = {}
    rows = iter_images_of(table, ("image",))
    if group is not None:
        rows = _iter_noting_groups(path, rows, _group_column(table, group), groups)
    if classes:
        labels = {name: _chosen(path, line, name, row, classes) for line, name, row in rows}
        notes = [] if image == "image" else [f"the images are in its column {image!r}"]
    else:
        label = table.column("label", _REQUIRED)
        labels = {name: _labelled(path, line, row[label]) for line, name, row in rows}
        others = {"image": image, "label": label}
        notes = [f"the {what}s are in its column {column!r}" for what, column in others.items() if column != what]
    if not labels:
        raise LabelsError(f"{path}: labels no image; expected one line image,label for each")
    return LabelTable(labels, tuple(classes.values()), tuple(f"{path}: {printable(note)}" for note in notes), groups)


def _group_column(table: UserTable, group: str) -> str:
    found = table.columns(group)
    if len(found) != 1:
        raise LabelsError(
            f"{table.path}: has {'two columns' if found else 'no column'} {group!r} to group images by; its columns are"
            f" {first_few([column for column in table.header if column], 20)}"
        )
    return found[0]


def _iter_noting_groups(
    path: Path, rows: Iterator[tuple[int, str, dict[str, str]]], column: str, groups: dict[str, str]
) -> Iterator[tuple[int, str, dict[str, str]]]:
    for line, name, row in rows:
        groups[name] = row[column].strip()
        if not groups[name]:
            raise LabelsError(
                f"{path}, line {line}: {column} is empty; give each image a group, one of its own where it is alone"
            )
        yield line, name, row


def _labelled(path: Path, line: int, cell: str) -> str:
    if not cell.strip():
        raise LabelsError(f"{path}, line {line}: the label is empty; give one, or remove the line")
    return cell.strip()


def _class_columns(table: UserTable, image: str, names: Sequence[str] | None) -> dict[str, str]:
    """The columns that stand for a class each, with the class; none where the labels are not given so."""
    columns = [column for column in table.header if column and column != image]
    labelled = [column for column in table.columns("label") if column.strip().casefold() == "label"]
    if names is None:
        first = next((row for _, row in table.iter_rows()), {})
        cells = [first.get(column, "").strip() for column in columns]
        given = table.columns("label") or len(cells) < 2 or not all(map(_is_flag, cells))
        return {} if given else {column: column for column in columns}
    spelling = Spelling(names)
    found = {column: name for column in columns if (name := spelling.find(column)) is not None}
    missing = [name for name in names if name not in found.values()]
    if labelled or not found or (missing and table.columns("label")):
        return {}
    if missing:
        raise LabelsError(
            f"{table.path}: has columns for the classes {first_few(list(found.values()))}, but none for"
            f" {first_few(missing)}; expected image,label, or one column for each class"
        )
    doubles = [name for name, count in Counter(found.values()).items() if count > 1]
    if doubles:
        raise LabelsError(f"{table.path}: has two columns for the class {printable(doubles[0])}; leave out one")
    return found


def _is_flag(cell: str) -> bool:
    return any(kind.fullmatch(cell) for kind in (_ONE, _ZERO))


def _chosen(path: Path, line: int, image: str, row: Mapping[str, str], classes: Mapping[str, str]) -> str:
    for column in classes:
        if not _is_flag(row[column].strip()):
            raise LabelsError(
                f"{path}, line {line}: {column} is {row[column]!r}; expected 0 or 1 in the column of a class"
            )
    ones = [name for column, name in classes.items() if _ONE.fullmatch(row[column].strip())]
    if len(ones) != 1:
        what = f"a 1 for {first_few(ones)}" if ones else "no 1 for any class"
        raise LabelsError(
            f"{path}, line {line}: {printable(image)} has {what}; expected one 1 a row, or remove the line"
        )
    return ones[0]


class Spelling:
    """Finds the class that a text names: as it is, or in the one way in which it may differ and still be meant.

    Blanks around it, case, the two forms in which Unicode writes an accent (macOS has another than most), and ``1.0``
    for ``1`` do not count, where no two classes differ in these alone.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        times = Counter(map(_fold, names))
        self._folded = {_fold(name): name for name in names if times[_fold(name)] == 1}

    def find(self, text: str) -> str | None:
        """The class; ``None`` where none is meant."""
        # As for images: a cell copied from a predictions file names the same class.
        for form in (text, decode_text(text)):
            if form in self._names:
                return form
        return self._folded.get(_fold(decode_text(text)))


def describe_spelling(meant: Mapping[str, str]) -> Iterator[str]:
    """Say in a line which labels are spelled otherwise than the class that is meant; no line where none is."""
    taken = [f"{label!r} for {name!r}" for label, name in meant.items() if name not in (label, decode_text(label))]
    if taken:
        yield f"labels taken for classes: {first_few(taken)}"


def whole_numbers(labels: Mapping[str, str]) -> dict[str, str]:
    """Write labels that are all whole numbers without ``.0``, which pandas gives a column that once had a gap."""
    if not all(_WHOLE.fullmatch(label) for label in labels.values()):
        return dict(labels)
    return {image: _WHOLE.sub(r"\1", label) for image, label in labels.items()}


def _fold(name: str) -> str:
    return _WHOLE.sub(r"\1", unicodedata.normalize("NFC", name.strip()).casefold())


def parse_class_list(text: str) -> list[str]:
    """Parse class names separated by commas, as the command line has them; one that holds a comma is quoted.

    Raises:
        LabelsError: if a quotation mark has no other.
    """
    try:
        return list(chain.from_iterable(csv.reader([text], strict=True, skipinitialspace=True)))
    except csv.Error as error:
        raise LabelsError(
            f'classes is {text!r}: {error}; expected A,B,... with a name that has a comma in "quotes"'
        ) from None

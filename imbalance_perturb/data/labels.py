"""The true class of each image: from a CSV or a folder of class folders, and images that each have one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.data.hidden_files import is_hidden
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.image_names import match_names
from imbalance_perturb.data.label_tables import (
    LabelTable,
    Spelling,
    describe_spelling,
    read_label_table,
    whole_numbers,
)
from imbalance_perturb.data.picture_formats import is_unread
from imbalance_perturb.errors import ImageFolderError, LabelsError, first_few
from imbalance_perturb.method.counts import ClassCounts

_NUMBER = re.compile(r"-?[0-9]{1,18}")


class MatchedLabels(NamedTuple):
    """The class index of each image that has a label, the number of labels that are of none, and the images' groups."""

    classes: dict[str, int]
    unused: int
    groups: dict[str, str]


@dataclass(frozen=True)
class Labels:
    """The class index of each image that ``source`` labels, and what was taken for what to read it.

    ``groups`` has the group of each image where a column of groups was asked for.
    """

    source: Path
    by_image: dict[str, int]
    notes: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)

    def match(self, images: Sequence[str]) -> MatchedLabels:
        """Give the labels the names of N distinct images, as :func:`match_names` finds them.

        Raises:
            LabelsError: if it is not plain which image is meant.
        """
        found = match_names(self.source, self.by_image, images)
        classes = {image: self.by_image[label] for label, image in found.names.items()}
        groups = {image: self.groups[label] for label, image in found.names.items()} if self.groups else {}
        return MatchedLabels(classes, found.unused, groups)


def load_labels(path: str | Path, names: Sequence[str], *, group: str | None = None) -> Labels:
    """Load the labels of images.

    Args:
        path: a table with columns ``image`` and ``label``, or ``image`` and one of 0 and 1 for each class
            (``docs/labels.md``); or a folder of class folders. Images are POSIX paths, in a folder relative to it.
        names: C class names in class-index order; a label is one of them (``3`` where classes are named by index).
        group: a column of the table that says which images belong together, such as those of one lesion.

    Raises:
        LabelsError: if the labels cannot be read, are empty, name an image twice or a class that is none, or there is
            no such column or a cell of it is empty.
    """
    path = Path(path)
    index = {name: position for position, name in enumerate(names)}
    table = _read_labels(path, names, group)
    meant = _classes_of(path, table.labels.values(), names)
    notes = (*table.notes, *(f"{path}: {line}" for line in describe_spelling(meant)))
    return Labels(path, {image: index[meant[label]] for image, label in table.labels.items()}, notes, table.groups)


def count_labels(
    path: str | Path,
    names: Sequence[str] | None = None,
    *,
    describe: Callable[[ImageList], None] = lambda images: None,
) -> ClassCounts:
    """Count the training images of each class from labels.

    Args:
        path: as in :func:`load_labels`. In a folder only pictures that are read are counted.
        names: class names in class-index order; by default all that occur, sorted as torchvision's
            ``ImageFolder`` has them, as text (``10`` before ``2``); labels of a table that are all whole numbers are
            sorted by value, and where each class has a column, that is the order.
        describe: called with what was found in a folder, with what was left aside.

    Raises:
        LabelsError: if the labels cannot be read or do not fit ``names``.
        CountsError: if a class has no image, or there are fewer than two.
    """
    path = Path(path)
    is_folder, notes = path.is_dir(), tuple[str, ...]()
    if is_folder:
        images = _find_images(path)
        describe(images)
        images = replace(images, names=[name for name in images.names if not is_unread(name)])
        found = _label_by_folder(images)
        _check_no_loose_images(images, found)
    else:
        table = _read_labels(path, names)
        found = whole_numbers(table.labels)
        if names is None and table.columns:
            names, notes = table.columns, ("of its columns",)
    totals = Counter(found.values())
    if names is None:
        classes = set(totals)
        if is_folder:
            # A class folder without images is a class all the same: without it, later indices would shift.
            classes |= {entry.name for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name)}
        # ImageFolder puts a folder '10' before a folder '2', and a model trained on one has that order.
        names = sorted(classes) if is_folder or not _are_numbers(classes) else sorted(classes, key=_value)
    else:
        names = [name.strip() for name in names]
        meant = _classes_of(path, totals, names)
        totals = Counter(meant[label] for label in found.values())
    return ClassCounts(names, [totals[name] for name in names], notes=notes)


def describe_order(path: str | Path, counts: ClassCounts) -> str:
    """Describe how :func:`count_labels` sorted these classes, and warn where a model may have another order."""
    names = counts.names
    if counts.notes:
        return f"{counts.notes[0]} (check that your model's is)"
    by_value = not Path(path).is_dir() and _are_numbers(names)
    words = "by value" if by_value else "sorted as text, as torchvision's ImageFolder has it"
    if _are_numbers(names) and sorted(names) != sorted(names, key=_value):
        other = "as text, as ImageFolder sorts class folders" if by_value else "by value, as numbers in a table are"
        others = sorted(names) if by_value else sorted(names, key=_value)
        return f"{words} (warning: a model trained with them {other}, has {first_few(others, 12)}: say --classes then)"
    return f"{words} (check that your model's is)"


def _are_numbers(names: Iterable[str]) -> bool:
    return all(_NUMBER.fullmatch(name) for name in names)


def _value(name: str) -> tuple[int, str]:
    return int(name), name


def _read_labels(path: Path, names: Sequence[str] | None, group: str | None = None) -> LabelTable:
    if path.is_dir():
        if group is not None:
            raise LabelsError(
                f"{path}: a folder of class folders has no column {group!r} to group images by; give labels as a CSV"
                f" with image,label,{group}"
            )
        return LabelTable(_label_by_folder(_find_images(path)))
    if not path.exists():
        raise LabelsError(f"{path}: no such file or folder; give a CSV with image,label or a folder of class folders")
    return read_label_table(path, names, group)


def _find_images(root: Path) -> ImageList:
    try:
        return find_images(root)
    except ImageFolderError as error:
        raise LabelsError(f"{error}; expected one folder for each class, named like it") from None


def _label_by_folder(images: ImageList) -> dict[str, str]:
    # Images beside the class folders have no label here; whoever needs one for them will say so.
    found = {name: name.partition("/")[0] for name in images.names if "/" in name}
    if not found:
        raise LabelsError(f"{images.root}: has no class folders; expected one folder for each class, named like it")
    return found


def _check_no_loose_images(images: ImageList, found: Mapping[str, str]) -> None:
    loose = [name for name in images.names if name not in found]
    if loose:
        raise LabelsError(
            f"{images.root}: {len(loose):,} images lie outside its class folders (first: {first_few(loose)}); move them"
            " into the folder of their class"
        )


def _classes_of(path: Path, labels: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """The class that each distinct label names."""
    spelling = Spelling(names)
    found = {label: spelling.find(label) for label in dict.fromkeys(labels)}
    unknown = sorted(label for label, name in found.items() if name is None)
    if not unknown:
        return {label: name for label, name in found.items() if name is not None}
    what = "class folders" if path.is_dir() else "labels"
    hint = ""
    if all(name.isdecimal() for name in unknown) and not any(name.isdecimal() for name in names):
        hint = "; the labels are numbers, the classes have names: write the names"
    raise LabelsError(
        f"{path}: {what} that are no class: {first_few(unknown, 10)}; the classes are {first_few(names, 20)}{hint}"
    )


def check_all_labelled(labels: Labels, found: Mapping[str, int], names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse images without a label.

    Args:
        labels: where the labels are from.
        found: class index by image.
        names: the images.
        what: which images these are, for the message.
        remedy: what to do about a few that have none.

    Raises:
        LabelsError: with their number and the first of them.
    """
    missing = [name for name in names if name not in found]
    if not missing:
        return
    if len(missing) == len(names):
        first = next(iter(labels.by_image))
        remedy = f"the labels name images like {first}: names must be the same, with folders and suffix"
    raise LabelsError(
        f"{labels.source}: no label for {len(missing):,} of {len(names):,} {what} (first: {first_few(missing)});"
        f" {remedy}"
    )


@dataclass(frozen=True)
class LabelledImages:
    """``images``, the class index of each by name, and how many labels are of images that are not there.

    ``notes`` say what was taken for what to read the labels. ``groups`` has the group of each image by name, by the
    column ``group``, where that was asked for.
    """

    images: ImageList
    labels: dict[str, int]
    unused_labels: int
    notes: tuple[str, ...] = ()
    group: str | None = None
    groups: dict[str, str] = field(default_factory=dict)

    def select_labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Select the class indices (N,) of these images."""
        return np.array([self.labels[name] for name in names], dtype=np.int64)


def find_labelled_images(
    path: str | Path, labels: str | Path | None, classes: Sequence[str], *, group: str | None = None
) -> LabelledImages:
    """Find the images of a folder or CSV and their labels.

    Args:
        path: as for :func:`find_images`.
        labels: CSV with image,label, or a folder of class folders; by default ``path`` itself.
        classes: C class names in class-index order.
        group: a column of the labels that says which images belong together, such as those of one lesion.

    Raises:
        ImageFolderError: if there are no images.
        LabelsError: if the labels cannot be used, or an image has none.
    """
    images = find_images(path)
    loaded = load_labels(path if labels is None else labels, classes, group=group)
    found, unused, groups = loaded.match(images.names)
    check_all_labelled(loaded, found, images.names, f"images in {path}", "label them, or leave them out")
    return LabelledImages(
        images,
        {name: found[name] for name in images.names},
        unused,
        loaded.notes,
        group,
        groups,
    )

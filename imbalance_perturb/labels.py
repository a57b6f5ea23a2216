"""The true class of each image: from a CSV, or from a folder whose sub-folders are class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from imbalance_perturb.cells import decode_path
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.errors import ImageFolderError, LabelsError
from imbalance_perturb.images import find_images
from imbalance_perturb.tables import first_few, iter_table

_COLUMNS = ("image", "label")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def load_labels(path: str | Path, names: Sequence[str]) -> dict[str, int]:
    """The labelled images as ``{image: class index}``.

    Args:
        path: a CSV with at least the columns ``image`` and ``label``, or a folder of class folders. Images are
            POSIX paths, in a folder relative to it.
        names: C class names in class-index order; a label is one of them (``3`` where classes are named by index).

    Raises:
        LabelsError: if the labels cannot be read, are empty, name an image twice or a class that is none.
    """
    path = Path(path)
    found = _read_labels(path)
    index = {name: position for position, name in enumerate(names)}
    _check_classes(path, found, index)
    return {image: index[label] for image, label in found.items()}


def count_labels(path: str | Path, names: Sequence[str] | None = None) -> ClassCounts:
    """Training images per class, counted from labels.

    Args:
        path: as in :func:`load_labels`.
        names: class names in class-index order; by default all that occur, sorted as torchvision's
            ``ImageFolder`` has them, as text (``10`` before ``2``); labels of a CSV that are all whole numbers are
            sorted by value.

    Raises:
        LabelsError: if the labels cannot be read or do not fit ``names``.
        CountsError: if a class has no image, or there are fewer than two.
    """
    path = Path(path)
    found = _read_labels(path)
    if path.is_dir():
        _check_no_loose_images(path, found)
    totals = Counter(found.values())
    if names is None:
        classes = set(totals)
        if path.is_dir():
            # A class folder without images is a class all the same: without it, later indices would shift.
            classes |= {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        # ImageFolder puts a folder '10' before a folder '2', and a model trained on one has that order.
        names = sorted(classes) if path.is_dir() or not _are_numbers(classes) else sorted(classes, key=_value)
    else:
        names = [name.strip() for name in names]
        _check_classes(path, found, {name: position for position, name in enumerate(names)})
    return ClassCounts(names, [totals[name] for name in names])


def describe_order(path: str | Path, names: Sequence[str]) -> str:
    """How :func:`count_labels` has sorted these names, in words; where a model may have them otherwise, a warning."""
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


def _read_labels(path: Path) -> dict[str, str]:
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise LabelsError(f"{path}: no such file or folder; give a CSV with image,label or a folder of class folders")
    found: dict[str, str] = {}
    doubles: list[str] = []
    for line, row in iter_table(path, _COLUMNS, LabelsError):
        image, label = _posix(row["image"]), row["label"].strip()
        if not image or not label:
            empty = "label" if image else "image"
            raise LabelsError(f"{path}, line {line}: the {empty} is empty; give one, or remove the line")
        if image in found:
            doubles.append(image)
        found[image] = label
    if doubles:
        raise LabelsError(
            f"{path}: {len(doubles):,} images are labelled more than once (first: {first_few(doubles)});"
            " give each image one label"
        )
    if not found:
        raise LabelsError(f"{path}: labels no image; expected one line image,label for each")
    return found


def _read_folder(root: Path) -> dict[str, str]:
    try:
        images = find_images(root)
    except ImageFolderError as error:
        raise LabelsError(f"{error}; expected one folder for each class, named like it") from None
    # Images beside the class folders have no label here; whoever needs one for them will say so.
    found = {name: name.partition("/")[0] for name in images.names if "/" in name and not name.startswith(".")}
    if not found:
        raise LabelsError(f"{root}: has no class folders; expected one folder for each class, named like it")
    return found


def _check_no_loose_images(root: Path, found: Mapping[str, str]) -> None:
    loose = [name for name in find_images(root).names if name not in found]
    if loose:
        raise LabelsError(
            f"{root}: {len(loose):,} images lie outside its class folders (first: {first_few(loose)}); move them into"
            " the folder of their class"
        )


def _check_classes(path: Path, found: Mapping[str, str], index: Mapping[str, int]) -> None:
    unknown = sorted(set(found.values()) - set(index))
    if not unknown:
        return
    what = "class folders" if path.is_dir() else "labels"
    hint = ""
    if all(name.isdecimal() for name in unknown) and not any(name.isdecimal() for name in index):
        hint = "; the labels are numbers, the classes have names: write the names"
    raise LabelsError(
        f"{path}: {what} that are no class: {first_few(unknown, 10)};"
        f" the classes are {first_few(list(index), 20)}{hint}"
    )


def _posix(image: str) -> str:
    # First what predict escapes: a cell copied from a predictions file names the same image.
    return decode_path(image.strip()).replace("\\", "/").removeprefix("./")

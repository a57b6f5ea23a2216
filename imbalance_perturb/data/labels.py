"""The true class of each image: from a CSV or a folder of class folders, and images that each have one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.data.hidden_files import is_hidden
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.picture_formats import is_unread
from imbalance_perturb.errors import ImageFolderError, LabelsError, first_few
from imbalance_perturb.files.csv_tables import decode_text, iter_images
from imbalance_perturb.method.counts import ClassCounts

_COLUMNS = ("image", "label")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def load_labels(path: str | Path, names: Sequence[str]) -> dict[str, int]:
    """Load labelled images as ``{image: class index}``.

    Args:
        path: a CSV with at least the columns ``image`` and ``label``, or a folder of class folders. Images are
            POSIX paths, in a folder relative to it.
        names: C class names in class-index order; a label is one of them (``3`` where classes are named by index).

    Raises:
        LabelsError: if the labels cannot be read, are empty, name an image twice or a class that is none.
    """
    path = Path(path)
    index = {name: position for position, name in enumerate(names)}
    found = {image: _as_class(label, index) for image, label in _read_labels(path).items()}
    _check_classes(path, found, index)
    return {image: index[label] for image, label in found.items()}


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
            ``ImageFolder`` has them, as text (``10`` before ``2``); labels of a CSV that are all whole numbers are
            sorted by value.
        describe: called with what was found in a folder, with what was left aside.

    Raises:
        LabelsError: if the labels cannot be read or do not fit ``names``.
        CountsError: if a class has no image, or there are fewer than two.
    """
    path = Path(path)
    is_folder = path.is_dir()
    if is_folder:
        images = _find_images(path)
        describe(images)
        images = replace(images, names=[name for name in images.names if not is_unread(name)])
        found = _label_by_folder(images)
        _check_no_loose_images(images, found)
    else:
        found = _read_labels(path)
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
        _check_classes(path, found, {name: position for position, name in enumerate(names)})
    return ClassCounts(names, [totals[name] for name in names])


def describe_order(path: str | Path, names: Sequence[str]) -> str:
    """Describe how :func:`count_labels` sorted these names, and warn where a model may have another order."""
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
        return _label_by_folder(_find_images(path))
    if not path.exists():
        raise LabelsError(f"{path}: no such file or folder; give a CSV with image,label or a folder of class folders")
    found: dict[str, str] = {}
    for line, image, row in iter_images(path, _COLUMNS, LabelsError):
        found[image] = row["label"].strip()
        if not found[image]:
            raise LabelsError(f"{path}, line {line}: the label is empty; give one, or remove the line")
    if not found:
        raise LabelsError(f"{path}: labels no image; expected one line image,label for each")
    return found


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


def _as_class(label: str, index: Mapping[str, int]) -> str:
    # As for images: a cell copied from a predictions file names the same class.
    return label if label in index else decode_text(label)


def check_all_labelled(source: Path, truth: Mapping[str, int], names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse images without a label.

    Args:
        source: where the labels are from.
        truth: class index by image.
        names: the images.
        what: which images these are, for the message.
        remedy: what to do about a few that have none.

    Raises:
        LabelsError: with their number and the first of them.
    """
    missing = [name for name in names if name not in truth]
    if not missing:
        return
    if len(missing) == len(names):
        remedy = f"the labels name images like {next(iter(truth))}: names must be the same, with folders and suffix"
        if any("\\" in name for name in truth) and not any("\\" in name for name in names):
            remedy += ", and / between folders"
    raise LabelsError(
        f"{source}: no label for {len(missing):,} of {len(names):,} {what} (first: {first_few(missing)}); {remedy}"
    )


@dataclass(frozen=True)
class LabelledImages:
    """``images``, the class index of each by name, and how many labels are of images that are not there."""

    images: ImageList
    labels: dict[str, int]
    unused_labels: int

    def select_labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Select the class indices (N,) of these images."""
        return np.array([self.labels[name] for name in names], dtype=np.int64)


def find_labelled_images(path: str | Path, labels: str | Path | None, classes: Sequence[str]) -> LabelledImages:
    """Find the images of a folder or CSV and their labels.

    Args:
        path: as for :func:`find_images`.
        labels: CSV with image,label, or a folder of class folders; by default ``path`` itself.
        classes: C class names in class-index order.

    Raises:
        ImageFolderError: if there are no images.
        LabelsError: if the labels cannot be used, or an image has none.
    """
    images = find_images(path)
    source = Path(path if labels is None else labels)
    truth = load_labels(source, classes)
    check_all_labelled(source, truth, images.names, f"images in {path}", "label them, or leave them out")
    found = {name: truth[name] for name in images.names}
    return LabelledImages(images, found, len(truth) - len(found))

"""One image, named by different tables and systems: which is meant, where only one can be."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imbalance_perturb.data.picture_formats import READ_SUFFIXES, suffix_of
from imbalance_perturb.errors import ImageFolderError, LabelsError, first_few, printable
from imbalance_perturb.files.csv_tables import normal_path


class NameMatch(NamedTuple):
    """``names`` has the image that each label is of, ``unused`` the number of labels that are of none."""

    names: dict[str, str]
    unused: int


def match_names(source: Path, labelled: Iterable[str], images: Sequence[str]) -> NameMatch:
    r"""Find the image that each label is of: the one of that name, or the only one that may be meant.

    A name may be written with ``\`` between folders, in the other of Unicode's two forms of an accent, with blanks
    around it, or without the suffix. Where no label is found so, and none has a folder, those of the images do not
    count: a list of paths was predicted, and the labels are of file names.

    Args:
        source: where the labels are from.
        labelled: what the labels call their images.
        images: N distinct images.

    Raises:
        LabelsError: if two images may be meant, or two labels are of one image.
    """
    known, labelled = set(images), list(labelled)
    found = {name: name for name in labelled if name in known}
    others = [name for name in labelled if name not in known]
    if len(found) < len(known) and others:
        found |= _find_by_form(source, others, _Forms(images), found)
        if not found and not any("/" in _fold(name) for name in others):
            found = _find_by_form(source, others, _Forms(images, last_only=True), found)
    return NameMatch(found, len(labelled) - len(found))


def _find_by_form(source: Path, others: Sequence[str], forms: _Forms, found: Mapping[str, str]) -> dict[str, str]:
    """The image of each label that is of one, for labels that have no image of their very name."""
    labels = {image: label for label, image in found.items()}
    more = {}
    for name in others:
        meant = forms.find(name)
        if len(meant) > 1:
            raise LabelsError(
                f"{source}: {printable(name)} may be {first_few(meant)}; write its whole name, with folders and suffix"
            )
        for image in meant:
            if (before := labels.setdefault(image, name)) != name:
                raise LabelsError(
                    f"{source}: {printable(before)} and {printable(name)} are both labels of {printable(image)};"
                    " name each image once"
                )
            more[name] = image
    return more


class ListedFiles:
    """Finds the files that a list names, relative to ``root``, where they are spelled otherwise."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[Path, _Forms] = {}

    def find(self, name: str) -> str:
        """The name of the file that is there, if one is; else the name as it is, for its row to say so.

        Raises:
            ImageFolderError: if two files may be meant.
        """
        # To look for each of 300,000 ordinary names takes long on a network drive.
        if _is_ordinary(name) or "://" in name or os.path.lexists(self._root / name):
            return name
        *folders, last = [part for part in _fold(name).split("/") if part] or [""]
        path = "/" if name.startswith("/") else ""
        for part in (*folders, last):
            forms = self._forms(self._root / path)
            meant = [part] if part == ".." else forms.find(part, by_stem=part is last)
            if len(meant) > 1:
                raise ImageFolderError(
                    f"{printable(name)} may be {first_few(meant)}; write the name of the file, with suffix"
                )
            if not meant:
                return name
            path = str(PurePosixPath(path) / meant[0])
        return path

    def _forms(self, folder: Path) -> _Forms:
        if folder not in self._folders:
            try:
                entries = sorted(os.listdir(folder))  # noqa: PTH208 - names, as they are
            except (OSError, ValueError):
                entries = []
            self._folders[folder] = _Forms(entries)
        return self._folders[folder]


class _Forms:
    """Names by the forms in which they may be written, with ``last_only`` without their folders."""

    def __init__(self, names: Iterable[str], *, last_only: bool = False) -> None:
        self._whole: defaultdict[str, list[str]] = defaultdict(list)
        self._stems: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            folded = _fold(name)
            if last_only:
                folded = folded.rpartition("/")[2]
            self._whole[folded].append(name)
            self._stems[_stem(folded)].append(name)

    def find(self, name: str, *, by_stem: bool = True) -> list[str]:
        folded = _fold(name)
        return self._whole.get(folded) or (self._stems.get(folded, []) if by_stem else [])


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folder}{slash}{stem if dot and stem else last}"


def _fold(name: str) -> str:
    return normal_path(unicodedata.normalize("NFC", name).replace("\\", "/").strip())


def _is_ordinary(name: str) -> bool:
    return name.isascii() and "\\" not in name and name == name.strip() and suffix_of(name) in READ_SUFFIXES

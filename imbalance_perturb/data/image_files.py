"""Image files: which there are in a folder, in a CSV, or as one file."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imbalance_perturb.data.hidden_files import HiddenFiles, is_hidden
from imbalance_perturb.data.image_names import ListedFiles
from imbalance_perturb.data.picture_formats import (
    HEAD_BYTES,
    READ_SUFFIXES,
    find_kind,
    is_dicom,
    is_named_like_picture,
    may_be_picture,
    suffix_of,
)
from imbalance_perturb.errors import ImageFolderError, printable
from imbalance_perturb.files.csv_tables import iter_images


@dataclass(frozen=True)
class ImageList:
    """The images of a run: ``names`` sorted, distinct, POSIX paths relative to ``root``.

    ``source`` is what the user named (folder, CSV or image); ``ignored`` counts the other files of the folder by
    suffix and ``hidden`` what is never searched, so that nothing is left out in silence. ``whole`` holds the names of
    which ``names`` are a part, if so.
    """

    source: Path
    root: Path
    names: Sequence[str]
    ignored: Counter[str] = field(default_factory=Counter)
    whole: Sequence[str] | None = None
    hidden: HiddenFiles = field(default_factory=HiddenFiles)

    @property
    def everything(self) -> Sequence[str]:
        """The names of the whole list, of which ``names`` may be a part."""
        return self.names if self.whole is None else self.whole

    def part(self, holds: Callable[[str], bool]) -> ImageList:
        """Select the images whose names a part ``holds``, perhaps none, and keep the whole list beside them."""
        return replace(self, names=[name for name in self.names if holds(name)], whole=self.names)

    def describe_left_aside(self) -> list[str]:
        """Describe in lines the files that are not among the images; no line where there are none."""
        lines = []
        if self.ignored:
            kinds = ", ".join(f"{count} {printable(suffix)}" for suffix, count in self.ignored.most_common(5))
            lines.append(f"{self.ignored.total():,} other files left aside: {kinds}")
        if hidden := self.hidden.describe():
            lines.append(hidden)
        return lines

    def __len__(self) -> int:
        return len(self.names)


def find_images(path: str | Path) -> ImageList:
    """Find the images of a folder (recursively, following links), of a CSV with an ``image`` column, or one file.

    Paths in a CSV are relative to the CSV's folder. In a folder hidden and system files are left aside, and so are
    files that are no pictures; a picture in a format that is not read is among the images, for its row to say so.
    What is named itself, as ``path`` or in a CSV, is taken whatever its name.

    Raises:
        ImageFolderError: if the path is not there, holds no image, or the CSV has no such column or a double.
    """
    path = Path(path)
    if path.is_dir():
        return _find_in_folder(path)
    if not path.exists():
        raise ImageFolderError(f"{path}: no such file or folder; give a folder of images, one image or a CSV")
    if path.suffix.lower() == ".csv":
        return ImageList(path, path.parent, sorted(_read_image_column(path)))
    return ImageList(path, path.parent, [path.name])


def iter_sizes(root: Path, names: Iterable[str]) -> Iterator[int | None]:
    """Yield the bytes of each file, in order; ``None`` for what is no file, or no longer there."""
    for name in names:
        try:
            status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - as below
        except (OSError, ValueError):  # a CSV may name what can be no path
            yield None
        else:
            yield status.st_size if stat.S_ISREG(status.st_mode) else None


def _find_in_folder(root: Path) -> ImageList:
    names: list[str] = []
    ignored: Counter[str] = Counter()
    hidden = HiddenFiles()
    for name, entry in _iter_files(root, "", (_identity(root),), hidden):
        if is_named_like_picture(name) or _is_picture_inside(entry):
            names.append(name)
        else:
            ignored[suffix_of(name) or "no suffix"] += 1
    if not names:
        found = f"none of its {ignored.total()} files is one" if ignored else "it is empty"
        aside = f"; {left}" if (left := hidden.describe()) else ""
        raise ImageFolderError(
            f"{root}: no image in this folder ({found}{aside}); images end in {', '.join(sorted(READ_SUFFIXES))}"
        )
    # Sorted as whole strings: '/' sorts after '-' and '.', so sorting folder by folder would differ.
    names.sort()
    return ImageList(root, root, names, ignored, hidden=hidden)


def _iter_files(
    folder: str | Path, prefix: str, ancestors: tuple[tuple[int, int], ...], hidden: HiddenFiles
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ImageFolderError(
            f"{folder}: cannot be searched ({error.strerror}); make it readable or remove it"
        ) from None
    for entry in entries:
        name = prefix + entry.name
        if is_hidden(entry.name):
            if _is_folder(entry):
                hidden.add_folder(entry.name, entry.path, is_link=entry.is_symlink())
            else:
                hidden.add_file()
        elif not _is_folder(entry):
            yield name, entry
        # A link back to a folder above would be searched for ever.
        elif (identity := _identity(entry.path)) not in ancestors:
            empty = True
            for found in _iter_files(entry.path, f"{name}/", (*ancestors, identity), hidden):
                empty = False
                yield found
            if empty and is_named_like_picture(name):
                yield name, entry  # named like an image: its row says that it is none


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _is_picture_inside(entry: os.DirEntry[str]) -> bool:
    # Archives export DICOM files without suffix, or named by a UID, of which the last number looks like one.
    if not may_be_picture(entry.name) or entry.name == "DICOMDIR":
        return False
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as stream:  # noqa: PTH123 - a Path for each of 300,000 files is slow
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return is_dicom(head) or find_kind(head) is not None


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 - as above
    return status.st_dev, status.st_ino


def _read_image_column(path: Path) -> list[str]:
    names: dict[str, int] = {}
    files = ListedFiles(path.parent)
    for line, image, _ in iter_images(path, ("image",), ImageFolderError):
        name = files.find(image)
        if (before := names.setdefault(name, line)) != line:
            raise ImageFolderError(
                f"{path}, line {line}: {printable(name)} is there already, in line {before}; name each image once"
            )
    if not names:
        raise ImageFolderError(f"{path}: lists no image; give one path a line in the column 'image'")
    return list(names)

"""Image files: which there are in folders, in lists and tables, or as files of their own."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imbalance_perturb.data.hidden_files import HiddenFiles, is_hidden
from imbalance_perturb.data.image_names import ListedFiles
from imbalance_perturb.data.image_sources import IMAGES_ARE, check_given, find_form
from imbalance_perturb.data.image_tables import read_image_table
from imbalance_perturb.data.packed_names import PackedNames, pack_names
from imbalance_perturb.data.path_lists import read_path_list
from imbalance_perturb.data.picture_formats import (
    HEAD_BYTES,
    READ_SUFFIXES,
    is_named_like_picture,
    is_picture,
    may_be_picture,
    suffix_of,
)
from imbalance_perturb.data.remote_files import RemotePath, iter_remote_sizes
from imbalance_perturb.errors import ImageFolderError, first_few, printable
from imbalance_perturb.files.csv_tables import normal_path


@dataclass(frozen=True)
class ImageList:
    """The images of a run: ``names`` sorted, distinct, POSIX paths relative to ``root``.

    ``source`` is what the user named (folder, list or image), of several the deepest folder that holds all, and
    ``sources`` what they were; ``ignored`` counts the other files of the folders by suffix and ``hidden`` what is never
    searched, ``repeated`` what was named again, so that nothing is left out in silence. ``whole`` holds the names of
    which ``names`` are a part, if so.
    """

    source: Path | RemotePath
    root: Path | RemotePath
    names: Sequence[str]
    ignored: Counter[str] = field(default_factory=Counter)
    whole: Sequence[str] | None = None
    hidden: HiddenFiles = field(default_factory=HiddenFiles)
    sources: tuple[Path | RemotePath, ...] = ()
    repeated: int = 0

    @property
    def everything(self) -> Sequence[str]:
        """The names of the whole list, of which ``names`` may be a part."""
        return self.names if self.whole is None else self.whole

    def part(self, holds: Callable[[str], bool]) -> ImageList:
        """Select the images whose names a part ``holds``, perhaps none, and keep the whole list beside them."""
        names = (name for name in self.names if holds(name))
        packed = isinstance(self.names, PackedNames)
        return replace(self, names=pack_names(names) if packed else list(names), whole=self.names)

    def describe_source(self) -> str:
        """Describe where the images are: what was named, and of several also the folder that names are relative to."""
        if len(self.sources) < 2:
            return str(self.source)
        return f"{first_few([str(path) for path in self.sources])} (named relative to {self.root})"

    def describe_left_aside(self) -> list[str]:
        """Describe in lines the files that are not among the images; no line where there are none."""
        lines = []
        if self.ignored:
            kinds = ", ".join(f"{count} {printable(suffix)}" for suffix, count in self.ignored.most_common(5))
            lines.append(f"{self.ignored.total():,} other files left aside: {kinds}")
        if hidden := self.hidden.describe():
            lines.append(hidden)
        if self.repeated:
            lines.append(f"named more than once, with one row each: {self.repeated:,} times again")
        return lines

    def __len__(self) -> int:
        return len(self.names)


def find_images(paths: str | Path | RemotePath | Sequence[str | Path]) -> ImageList:
    """Find the images that one or more paths name.

    Each is a folder (searched recursively, following links), an image, a CSV or Parquet file with a column ``image``,
    or a text file (``.txt``, ``.lst``, ``.list``) of paths, one a line; or one of these by its URL (``s3://``, ``gs://``),
    then alone. ``file://`` is a path of this machine. Paths in a table or list are relative to its folder. In a folder
    hidden and system files are left aside, and so are files that are no pictures; a picture in a format that is not
    read is among the images, for its row to say so. What is named itself is taken whatever its name.

    Images are named relative to the folder, to the list's folder or that of the image; those of several paths
    relative to the deepest folder that holds all of these. A file that several paths name is taken once, as the
    first of them names it.

    Raises:
        ImageFolderError: if a path is not there, holds no image, or is none of these; if a CSV has no such column or
            a double, or a list is ambiguous.
    """
    given = [paths] if isinstance(paths, str | Path | RemotePath) else list(paths)
    if not given:
        raise ImageFolderError(f"no IMAGES are given; {IMAGES_ARE}")
    places = [check_given(path) for path in given]
    if any(isinstance(place, RemotePath) for place in places):
        return _find_remote(places)
    found = [_find_one(Path(place)) for place in places]
    return replace(found[0], sources=(found[0].source,)) if len(found) == 1 else _join(found)


def _find_remote(places: Sequence[Path | RemotePath]) -> ImageList:
    from imbalance_perturb.data.remote_images import find_remote

    first = next(place for place in places if isinstance(place, RemotePath))
    if len(places) > 1:
        raise ImageFolderError(f"{first}: a URL is given alone: predict each, or name all images in a CSV beside them")
    return replace(find_remote(first), sources=(first,))


def _find_one(path: Path) -> ImageList:
    if path.is_dir():
        return _find_in_folder(path)
    form = find_form(path)
    if form == "table":
        return ImageList(path, path.parent, read_image_table(path, ListedFiles(path.parent).find))
    if form == "list":
        names, repeated = read_path_list(path)
        return ImageList(path, path.parent, sorted(names), repeated=repeated)
    return ImageList(path, path.parent, [path.name])


def _join(lists: Sequence[ImageList]) -> ImageList:
    """Make one list of several: each file once, under one name that is relative to one folder."""
    root, prefixes = _find_common([Path(one.root) for one in lists])
    names: set[str] = set()
    places: set[str] = set()
    folders: dict[str, str] = {}
    repeated = sum(one.repeated for one in lists)
    for one, prefix in zip(lists, prefixes, strict=True):
        before = len(names)
        new: set[str] = set()
        for name in one.names:
            full = normal_path(name if os.path.isabs(name) else prefix + name)  # noqa: PTH117 - as below
            place = _place(root, full, folders)
            if place not in places:
                names.add(full)
                new.add(place)
        # Two links in one folder to one file are two of its images, as when the folder is given alone.
        places |= new
        repeated += len(one.names) - (len(names) - before)
    hidden = HiddenFiles()
    for one in lists:
        hidden.merge(one.hidden)
    return ImageList(
        root,
        root,
        sorted(names),
        sum((one.ignored for one in lists), Counter()),
        hidden=hidden,
        sources=tuple(one.source for one in lists),
        repeated=repeated,
    )


def _find_common(roots: Sequence[Path]) -> tuple[Path, list[str]]:
    """Find the deepest folder that holds all of these, and for each what stands before its names seen from there."""
    places = {root: _plain(root) for root in set(roots)}
    try:
        common = os.path.commonpath(places.values())
    except ValueError:  # drives of Windows
        raise ImageFolderError(
            "the IMAGES are on different drives, so no one folder holds them; predict each"
        ) from None
    if len(places) == 1:
        return roots[0], [""] * len(roots)
    relative = {root: os.path.relpath(place, common).replace(os.sep, "/") for root, place in places.items()}
    prefixes = ["" if relative[root] == "." else f"{relative[root]}/" for root in roots]
    # Relative to where the run is started, as long as all were: the run file then holds elsewhere, too.
    own = next((root for root, place in places.items() if place == common), None)
    all_relative = not any(root.is_absolute() for root in roots)
    return own or Path(os.path.relpath(common) if all_relative else common), prefixes


def _plain(folder: Path) -> str:
    """The absolute path without ``..``, which behind a link leads elsewhere than it looks."""
    plain = os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps '..'
    return plain if folder.samefile(plain) else os.path.realpath(folder)


def _place(root: Path, name: str, folders: dict[str, str]) -> str:
    """Where a file lies, by whatever links and ``..`` its folder is named; ``folders`` keeps what is known of them."""
    folder, _, last = name.rpartition("/")
    if folder not in folders:
        above = os.path.join(root, folder or "/" * name.startswith("/"))  # noqa: PTH118 - as below
        folders[folder] = os.path.realpath(above)
    return f"{folders[folder]}/{last}"


def iter_sizes(root: Path | RemotePath, names: Iterable[str]) -> Iterator[int | None]:
    """Yield the bytes of each file, in order; ``None`` for what is no file, or no longer there."""
    if isinstance(root, RemotePath):
        yield from iter_remote_sizes(root, names)
        return
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
    return list_folder(root, names, ignored, hidden)


def list_folder(root: Path | RemotePath, names: list[str], ignored: Counter[str], hidden: HiddenFiles) -> ImageList:
    """The list of a folder that was searched: its images, and what was left aside.

    Raises:
        ImageFolderError: if there is no image.
    """
    if not names:
        found = f"none of its {ignored.total()} files is one" if ignored else "it is empty"
        aside = f"; {left}" if (left := hidden.describe()) else ""
        raise ImageFolderError(
            f"{root}: no image in this folder ({found}{aside}); images end in {', '.join(sorted(READ_SUFFIXES))}"
        )
    # Sorted as whole strings: '/' sorts after '-' and '.', so sorting folder by folder would differ.
    return ImageList(root, root, sorted(names), ignored, hidden=hidden)


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
    if not may_be_picture(entry.name):
        return False
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as stream:  # noqa: PTH123 - a Path for each of 300,000 files is slow
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return is_picture(head)


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 - as above
    return status.st_dev, status.st_ino

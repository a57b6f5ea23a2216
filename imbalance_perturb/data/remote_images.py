"""The images of a URL: a folder in a store, an image, a CSV or a list of paths; as those of this machine are found."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imbalance_perturb.data.hidden_files import HiddenFiles, is_hidden
from imbalance_perturb.data.image_files import ImageList, list_folder
from imbalance_perturb.data.image_sources import IMAGES_ARE, LIST_SUFFIXES
from imbalance_perturb.data.image_tables import TABLE_SUFFIXES, read_image_table
from imbalance_perturb.data.path_lists import iter_lines
from imbalance_perturb.data.picture_formats import (
    HEAD_BYTES,
    is_named_like_picture,
    is_picture,
    may_be_picture,
    suffix_of,
)
from imbalance_perturb.data.remote_files import RemotePath
from imbalance_perturb.errors import ImageError, ImageFolderError
from imbalance_perturb.files.csv_tables import normal_path


def find_remote(path: RemotePath) -> ImageList:
    """Find the images that a URL names; names are relative to the folder, or to that of the file.

    Raises:
        ImageFolderError: if there is nothing, no image in it, or the store does not say.
    """
    match path.kind():
        case "folder":
            return _find_in_folder(path)
        case None:
            raise ImageFolderError(f"{path}: no such file or folder; {IMAGES_ARE}")
    suffix = suffix_of(path)
    if suffix not in TABLE_SUFFIXES and suffix not in LIST_SUFFIXES:
        return ImageList(path, path.parent, [path.name])
    with _here(path) as copy:
        if suffix in TABLE_SUFFIXES:
            return ImageList(path, path.parent, read_image_table(copy))
        lines = [line for _, line in iter_lines(copy)]
    names = sorted({normal_path(line) for line in lines})
    if not names:
        raise ImageFolderError(f"{path}: lists no image; give one path a line")
    return ImageList(path, path.parent, names, repeated=len(lines) - len(names))


def _find_in_folder(root: RemotePath) -> ImageList:
    names: list[str] = []
    ignored: Counter[str] = Counter()
    hidden, folders = HiddenFiles(), set()
    for name, _ in root.iter_files():
        *above, last = name.split("/")
        depth = next((depth for depth, part in enumerate(above) if is_hidden(part)), None)
        if depth is not None:
            hidden.inside += 1
            folders.add("/".join(above[: depth + 1]))
        elif is_hidden(last):
            hidden.add_file()
        elif is_named_like_picture(name) or _is_picture_inside(root / name):
            names.append(name)
        else:
            ignored[suffix_of(name) or "no suffix"] += 1
    hidden.folders += [folder.rpartition("/")[2] for folder in sorted(folders)]
    return list_folder(root, names, ignored, hidden)


def _is_picture_inside(path: RemotePath) -> bool:
    if not may_be_picture(path.name):
        return False
    try:
        return is_picture(path.read(HEAD_BYTES))
    except ImageError:
        return False


@contextmanager
def _here(path: RemotePath) -> Iterator[Path]:
    """A copy of a file on this machine; errors about it are about the file itself."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            copy.write_bytes(path.read())
            yield copy
        except (ImageError, ImageFolderError) as error:
            raise ImageFolderError(str(error).replace(str(copy), str(path))) from None

"""What may be given as IMAGES: which files are lists or images themselves, and for the others what to do instead."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from imbalance_perturb.data.hidden_files import is_hidden
from imbalance_perturb.data.image_tables import TABLE_SUFFIXES
from imbalance_perturb.data.picture_formats import (
    HEAD_BYTES,
    READ_SUFFIXES,
    find_kind,
    holds_many,
    is_dicom,
    is_named_like_picture,
    suffix_of,
    unread_reason,
)
from imbalance_perturb.data.remote_files import RemotePath, find_place
from imbalance_perturb.errors import ImageFolderError

#: What IMAGES may be, for messages.
IMAGES_ARE = "expected folders, images, tables (.csv, .parquet) with a column 'image', or lists of paths (.txt, .lst)"

#: Suffixes of text files that name an image in each line.
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})

_WILDCARDS = re.compile(r"[*?\[]")
_ARCHIVES = ".zip .tar .tgz .tbz .txz .gz .bz2 .xz .7z .rar .zst .lz4"
_TABLES = ".tsv .xls .xlsx .ods .jsonl .db .sqlite"
_OTHERS = ".json .pt .pth .pt2 .safetensors .ckpt .bin .pkl .onnx .toml"
# Archives whatever their names: zip, gzip, xz, bzip2, 7z, rar, zstandard; 'ustar' stands further back.
_ARCHIVE_HEADS = (b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")


def check_given(given: str | Path | RemotePath) -> Path | RemotePath:
    """Return what was given as IMAGES as a path that is there, of what is in a store untried.

    Raises:
        ImageFolderError: if it is empty, a URL that is not read, or not there.
    """
    text = os.fspath(given)
    if not text:
        raise ImageFolderError(f"an empty text was given as IMAGES; {IMAGES_ARE}")
    try:
        path = find_place(given)
    except ImageFolderError as error:
        raise ImageFolderError(f"{error}; {IMAGES_ARE}") from None
    if isinstance(path, RemotePath):
        return path
    if not path.exists():
        hint = ""
        if _WILDCARDS.search(text):
            hint = " (no file fits the pattern, or it stands in quotation marks: the shell must see it)"
        elif path.is_symlink():
            hint = " (a link to what is not there)"
        raise ImageFolderError(f"{path}: no such file or folder{hint}; {IMAGES_ARE}")
    return path


def find_form(path: Path) -> str:
    """Find what a file given as IMAGES is to be read as: ``table``, ``list`` or ``image``.

    An image is what has a picture's suffix or content, whatever is wrong with it: its row says that.

    Raises:
        ImageFolderError: if it is neither, saying what it is and what to do.
    """
    suffix = suffix_of(path)
    if suffix in TABLE_SUFFIXES:
        return "table"
    if suffix in READ_SUFFIXES:  # a shell may have named 100,000
        return "image"
    head = _read_head(path)
    if head is None:
        return "image"
    kind = find_kind(head)
    if holds_many(head, path):
        raise ImageFolderError(f"{path}: is {unread_reason(head, path)}; {IMAGES_ARE}")
    if kind is not None or is_dicom(head) or is_named_like_picture(path):
        return "image"
    if suffix in LIST_SUFFIXES:
        return "list"
    raise ImageFolderError(f"{path}: {_what(path, head)}; {IMAGES_ARE}")


def _read_head(path: Path) -> bytes | None:
    """The file's beginning; ``None`` where its row has to say that it is no file or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return None


def _what(path: Path, head: bytes) -> str:
    suffix = suffix_of(path)
    if suffix in _ARCHIVES.split() or head.startswith(_ARCHIVE_HEADS) or head[257:262] == b"ustar":
        return "is an archive: unpack it and give the folder"
    if is_hidden(path.name):
        return "is a file of the system, no image: leave it out"
    if suffix in _TABLES.split():
        return f"is a table ({suffix}): save it as CSV with a column 'image'"
    if suffix in _OTHERS.split():
        return f"is no image (a {suffix} file); the order is MODEL COUNTS IMAGES"
    return f"is no image ({'a ' + suffix + ' file' if suffix else 'nor named like one'})" if head else "is empty"

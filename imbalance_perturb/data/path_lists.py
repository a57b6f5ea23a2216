"""Lists of images as text files: one path a line, as ``find``, ``ls`` and ``dir /b`` write them."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from imbalance_perturb.errors import ImageFolderError, printable
from imbalance_perturb.files.csv_tables import normal_path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATOR = re.compile(r"[\t,;|]")


def read_path_list(path: Path) -> tuple[list[str], int]:
    """Read the images that a list names, each once, and how many lines name one again.

    A line is a path as it stands, relative to the list's folder, whatever is in it: there are no comments, no quotes
    and no escapes. Where no file has that name, blanks at its ends go, and accents may be composed as on disk. Blank
    lines are skipped, line ends may be those of Windows, a byte-order mark may begin the file. A file that is not
    there is named all the same, for its row to say so.

    Raises:
        ImageFolderError: if the list cannot be read, names no image, or a line names another file when read in
            another way: with a label behind the path, between quotes, with backslashes; or no line names a file.
    """
    names: dict[str, str] = {}
    found = repeated = 0
    for number, line in iter_lines(path):
        there = _find_same(path.parent, line)
        if there is None:
            _refuse_other_reading(path, number, line)
        line, exists = there or line, there is not None
        name = normal_path(line)
        repeated += name in names
        names.setdefault(name, line)
        found += exists
    if not names:
        raise ImageFolderError(f"{path}: lists no image; give one path a line")
    if not found:
        first = next(iter(names.values()))
        where = "paths are relative to the list's folder"
        if _is_there(Path(), first):
            where += ", these are there from the current folder: move the list there"
        raise ImageFolderError(
            f"{path}: none of its {len(names):,} lines names a file (first: {printable(first)}); {where}"
        )
    return list(names), repeated


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageFolderError(f"{path}: cannot be read ({error.strerror}); expected a list of paths") from None
    if data.startswith(_UTF16):  # as Windows PowerShell writes what is sent to a file
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError:
            raise ImageFolderError(f"{path}: is damaged UTF-16; expected a list of paths as UTF-8 text") from None
    else:
        # A name that is not UTF-8 is one here as it is in a folder.
        text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    if "\0" in text:
        raise ImageFolderError(f"{path}: holds zero bytes (written by find -print0?); expected one path a line")
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def _find_same(folder: Path, line: str) -> str | None:
    """The line, if it names a file; or what does, without blanks at its ends or with its accents composed otherwise."""
    if _is_there(folder, line):
        return line
    bare = line.strip()
    forms = (bare, unicodedata.normalize("NFC", bare), unicodedata.normalize("NFD", bare))
    return next((form for form in forms if form != line and _is_there(folder, form)), None)


def _refuse_other_reading(path: Path, number: int, line: str) -> None:
    """Refuse a line that names no file, but would in another reading: which is meant must not be guessed."""
    bare = line.strip()
    start = f"{path}, line {number}: {printable(bare)} is no file"
    if bare.startswith("#"):
        raise ImageFolderError(f"{start}; a list has no comments: remove the line")
    labelled = [bare.rsplit(None, 1)[0], _SEPARATOR.split(bare)[0].strip(), _SEPARATOR.split(bare)[-1].strip()]
    for other in labelled:
        if other and other != bare and _is_there(path.parent, other):
            raise ImageFolderError(
                f"{start}, but {printable(other)} is: a list has paths alone; make it a CSV with image,label"
            )
    for other, what in (
        (bare.strip("\"'"), "write paths without quotation marks"),
        (bare.replace("\\", "/"), "write / between folders"),
    ):
        if other != bare and _is_there(path.parent, other):
            raise ImageFolderError(f"{start}, but {printable(other)} is: {what}")


def _is_there(folder: Path, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name))  # noqa: PTH110, PTH118 - a Path for each is slow

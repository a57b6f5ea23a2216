"""Tables that people made: by a spreadsheet, by pandas, by hand. What can be read in one way only is read."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.errors import ImbperturbError, first_few

if TYPE_CHECKING:
    import _csv

#: What a column may be called where none has its own name; case, blanks, ``_``, ``-`` and ``.`` do not count.
_ALSO_CALLED = {
    "image": (
        "image_id, image_name, image_path, image_file, image_index, img, img_id, img_name, img_path, file, file_name,"
        " file_path, fname, path, images, image_names, image_paths, filenames, file_paths, paths"
    ),
    "label": "labels, class, class_name, class_label, classes, target, category, diagnosis, dx, true_label, truth",
}

_SEPARATORS = (",", ";", "\t")

#: Files that are no text, by their first bytes.
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed by gzip",
}

#: What Excel writes, or asks for, to have cells separated by something else than the machine's own mark.
_SEPARATOR_LINE = re.compile(r"sep=(.)(\r\n|\r|\n)", re.IGNORECASE)

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")


@dataclass(frozen=True)
class UserTable:
    """A table as it was found: ``header`` has the columns' names, without blanks around them, empty where none."""

    path: Path
    header: tuple[str, ...]
    text: str
    separator: str
    error_type: type[ImbperturbError]

    def columns(self, name: str) -> list[str]:
        """The columns that may be meant by a name: the one that has it, else those of like names."""
        if name in self.header:
            return [name]
        found = [column for column in self.header if column and _plain(column) == _plain(name)]
        also = set(map(_plain, _ALSO_CALLED.get(name, "").split(",")))
        return found or [column for column in self.header if column and _plain(column) in also]

    def column(self, name: str, required: Sequence[str]) -> str:
        """The one column that may be meant.

        Raises:
            ``error_type``: if there is none, or more than one.
        """
        found = self.columns(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise self.error_type(
                f"{self.path}: the columns {first_few(found, 10)} may all be meant by {name!r}; name one of them {name}"
            )
        raise self.error_type(
            f"{self.path}: has no column {name!r}; the first line must name {','.join(required)}, it is"
            f" {','.join(self.header)!r}"
        )

    def iter_rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the rows as (line number, {column: cell}), of the columns that have names; blank rows are skipped.

        Raises:
            ``error_type``: if a row has another number of cells than the header, but for empty ones at the end.
        """
        reader, width = _reader(self.text, self.separator), len(self.header)
        named = [(position, column) for position, column in enumerate(self.header) if column]
        last = named[-1][0]
        past_header = False
        try:
            for cells in reader:
                if not any(map(str.strip, cells)):
                    continue
                if not past_header:
                    past_header = True
                    continue
                # Spreadsheets write each row as wide as the widest one, or leave out what is empty at its end.
                beyond = [cell for cell in cells[last + 1 :] if cell.strip()]
                if len(cells) <= last or (beyond and len(cells) != width):
                    raise self.error_type(
                        f"{self.path}, line {reader.line_num}: {len(cells)} cells, but the first line names"
                        f" {last + 1} columns; quote cells that contain commas"
                    )
                if beyond:
                    raise self.error_type(
                        f"{self.path}, line {reader.line_num}: {first_few(beyond)} stands in a column without a name;"
                        " name it in the first line, or quote cells that contain commas"
                    )
                yield reader.line_num, {column: cells[position] for position, column in named}
        except csv.Error as error:
            raise self.error_type(f"{self.path}, line {reader.line_num}: is not CSV ({error})") from None


def read_user_table(path: Path, required: Sequence[str], error_type: type[ImbperturbError]) -> UserTable:
    """Read a table of images: separated by commas, semicolons or tabs, in UTF-8, or UTF-16 with a byte-order mark.

    Args:
        path: the first line that is not blank names the columns.
        required: what columns it must have, for messages; the column ``image`` tells what separates the cells.
        error_type: what to raise.

    Raises:
        ``error_type``: if the file cannot be read, has no column for ``image`` or names one twice.
    """
    text = _read_text(path, required, error_type)
    given = _SEPARATOR_LINE.match(text)
    # Lines keep their numbers.
    text = text[: given.start()] + text[given.start(2) :] if given else text
    tables = [
        UserTable(path, _header(path, text, separator, error_type), text, separator, error_type)
        for separator in ((given[1],) if given else _SEPARATORS)
    ]
    fitting = [table for table in tables if table.columns("image")]
    if len({table.header for table in fitting}) == 1:  # one column, which nothing separates
        fitting = fitting[:1]
    if len(fitting) > 1:
        marks = " and by ".join(repr(table.separator) for table in fitting)
        raise error_type(f"{path}: the first line can be read as separated by {marks}; quote names that contain one")
    table = fitting[0] if fitting else max(tables, key=lambda table: len(table.header))
    doubles = sorted({name for name in table.header if name and table.header.count(name) > 1})
    if doubles:
        raise error_type(f"{path}: names the column {doubles[0]!r} twice; which of the two is meant is unclear")
    table.column("image", required)
    return table


def _read_text(path: Path, required: Sequence[str], error_type: type[ImbperturbError]) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror}); expected a CSV file") from None
    for start, what in _NO_TEXT.items():
        if content.startswith(start):
            raise error_type(f"{path}: is {what}; expected a CSV file, so save it as one")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without its mark can be decoded, and is no text
        raise error_type(f"{path}: is not UTF-8 text; expected a CSV file (Excel writes one as 'CSV UTF-8')")
    if not text.strip():
        raise error_type(f"{path}: is empty; expected CSV with the columns {','.join(required)}")
    return text


def _header(path: Path, text: str, separator: str, error_type: type[ImbperturbError]) -> tuple[str, ...]:
    try:
        for cells in _reader(text, separator):
            if any(map(str.strip, cells)):
                return tuple(cell.strip() for cell in cells)
    except csv.Error as error:
        raise error_type(f"{path}, line 1: is not CSV ({error})") from None
    return ("",)


def _reader(text: str, separator: str) -> _csv.Reader:
    # A blank before a quotation mark would make the mark a part of the cell.
    spaced = re.search(rf'{re.escape(separator)} +"', text) is not None
    # Not by StringIO, which keeps four bytes of a letter.
    lines = (line[0] for line in _LINE.finditer(text))
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)


def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-]+", "", name).casefold()

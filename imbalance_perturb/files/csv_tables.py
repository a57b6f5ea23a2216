"""CSV in and out: every row as its header says, and no cell that a spreadsheet would run.

Every ``encode_*`` has a ``decode_*`` that gives the original back, whatever it was.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from imbalance_perturb.errors import UNSAFE, UNSAFE_CHARACTER, ImbperturbError, printable
from imbalance_perturb.files.user_tables import UserTable

# What a spreadsheet may take for a formula at the start of a cell, with the full-width forms that some locales accept.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
_FORMULA_PATH = re.compile(rf"(\./)*[{re.escape(''.join(_FORMULA_STARTS))}]")

# '-1' is a class name people have; as a formula it is the number -1, which is harmless.
_NEGATIVE_NUMBER = re.compile(r"-\d+(\.\d+)?", re.ASCII)

_CODES = "(d[89a-f][0-9a-f]{2}|00[0189][0-9a-f]|007f|005c|202[a-e]|206[6-9])"

# A backslash that only looks like such an escape is itself written as one, so that reading back is exact.
_UNWRITABLE = re.compile(rf"{UNSAFE}|\\(?=u{_CODES})")
_ESCAPED = re.compile(rf"\\u{_CODES}")

# Some spreadsheets split at ';' or tabs: quoting keeps what follows from becoming a cell of its own.
_QUOTED = re.compile(r'[,;"\t\r\n]')
_QUOTE = '"'


def iter_table(
    path: Path, required: Sequence[str], error_type: type[ImbperturbError]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file as (line number, {column: cell}); blank lines are skipped.

    Args:
        path: UTF-8 text, comma-separated, the first line naming the columns.
        required: columns that must be there; others may be.
        error_type: what to raise.

    Raises:
        ``error_type``: if the file cannot be read, lacks a column, names one twice or a row has too few or too
            many cells; nothing is guessed.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            _check_header(path, header, required, error_type)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise error_type(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the first line names"
                        f" {len(header)} columns; quote cells that contain commas"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except UnicodeDecodeError:
        raise error_type(f"{path}: is not UTF-8 text; expected a CSV file") from None
    except csv.Error as error:
        raise error_type(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror}); expected a CSV file") from None


def iter_images_of(
    table: UserTable, required: Sequence[str], *, distinct: bool = True
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield the rows of a table of images that somebody made as (line number, image, {column: cell}), each image once.

    Args:
        table: what :func:`read_user_table` gave.
        required: columns that must be there, ``image`` among them; a row has them by these names, too, if the table
            calls them otherwise.
        distinct: refuse an image that has been there, for which all are kept in memory; else it is yielded again.

    Raises:
        ``table.error_type``: if a column or cell is not as it must be; also for an empty image, or one that has been
            there, however it is written.
    """
    path, error_type = table.path, table.error_type
    columns = {name: table.column(name, required) for name in required}
    lines: dict[str, int] = {}
    for line, row in table.iter_rows():
        row |= {name: row[column] for name, column in columns.items()}
        image = _without_blanks(read_path(row["image"]), path)
        if not image:
            raise error_type(f"{path}, line {line}: the image is empty; give one, or remove the line")
        if distinct and (before := lines.setdefault(image, line)) != line:
            raise error_type(
                f"{path}, line {line}: {printable(image)} is there already, in line {before}; name each image once"
            )
        yield line, image, row


def _without_blanks(image: str, table: Path) -> str:
    """The image without blanks around its name, which stand beside a comma, unless there is a file of such a name."""
    stripped = image.strip()
    return image if stripped == image or os.path.lexists(table.parent / image) else stripped


def _check_header(
    path: Path, header: Sequence[str], required: Sequence[str], error_type: type[ImbperturbError]
) -> None:
    if not header:
        raise error_type(f"{path}: is empty; expected CSV with the columns {','.join(required)}")
    missing = [name for name in required if name not in header]
    if missing:
        separators = [mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]]
        hint = f" (its cells seem to be separated by {separators[0]!r}; use commas)" if separators else ""
        raise error_type(
            f"{path}: has no column {' and no column '.join(map(repr, missing))}; the first line must name"
            f" {','.join(required)}, it is {','.join(header)!r}{hint}"
        )
    doubles = sorted({name for name in header if header.count(name) > 1})
    if doubles:
        raise error_type(f"{path}: names the column {doubles[0]!r} twice; which of the two is meant is unclear")


def encode_unicode(name: str) -> str:
    r"""Escape a name to UTF-8 text without control characters: a byte that is not UTF-8, as 0xff, is ``\udcff``."""
    return _UNWRITABLE.sub(_escape, name)


def encode_json(text: str) -> str:
    r"""Escape JSON text to UTF-8 without control characters, as JSON itself does: a byte 0xff is ``\udcff``.

    ``json.loads`` gives the same names.
    """
    return UNSAFE_CHARACTER.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def decode_unicode(text: str) -> str:
    """Return the name that :func:`encode_unicode` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def encode_path(path: str) -> str:
    """Encode a relative POSIX path as a CSV cell: ``./`` before one that begins like a formula, the same file."""
    return encode_unicode(f"./{path}" if _FORMULA_PATH.match(path) else path)


def decode_path(cell: str) -> str:
    """Return the path that :func:`encode_path` was given."""
    path = decode_unicode(cell)
    return path.removeprefix("./") if _FORMULA_PATH.match(path) else path


def normal_path(path: str) -> str:
    """Bring a relative path to the one form in which images are named: without ``./``, ``/./`` and ``//``.

    Never another file: ``..`` stays, since what is before it may be a link; so does a ``/`` at the end, which only a
    folder may have. A backslash is a separator where the system has it for one, else a character like others.
    """
    path = path.replace(os.sep, "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    start, end = "/" * path.startswith("/"), "/" * (bool(parts) and path.endswith(("/", "/.")))
    return start + "/".join(parts) + end


def read_path(cell: str) -> str:
    """Read the image that a cell names, as all tables and predictions call it; empty where it names none."""
    return normal_path(decode_path(cell))


def encode_text(text: str) -> str:
    """Encode any other text as a CSV cell: one that begins like a formula (or with ``'``) gets ``'`` before it."""
    guarded = text.startswith((*_FORMULA_STARTS, "'")) and not _NEGATIVE_NUMBER.fullmatch(text)
    return encode_unicode(f"'{text}" if guarded else text)


def decode_text(cell: str) -> str:
    """Return the text that :func:`encode_text` was given."""
    return decode_unicode(cell).removeprefix("'")


def csv_line(cells: Iterable[str]) -> str:
    """Write one line of CSV with its newline, quoted where needed: also around a lone carriage return."""
    return ",".join(f'"{c.replace(_QUOTE, _QUOTE * 2)}"' if _QUOTED.search(c) else c for c in cells) + "\n"

"""CSV cells that no spreadsheet runs as a formula, and that say exactly which name they stand for.

Every ``encode_*`` has a ``decode_*`` that gives the original back, whatever it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# What a spreadsheet may take for a formula at the start of a cell, with the full-width forms that some locales accept.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
_FORMULA_PATH = re.compile(rf"(\./)*[{re.escape(''.join(_FORMULA_STARTS))}]")

# '-1' is a class name people have; as a formula it is the number -1, which is harmless.
_NEGATIVE_NUMBER = re.compile(r"-\d+(\.\d+)?", re.ASCII)

# What no file holds as it is. A file name that is not UTF-8 reaches Python with one surrogate for each such byte, which
# UTF-8 text cannot hold; control characters command the terminal of whoever looks at the file, and those that turn
# the direction of writing make one name look like another. Tabs and line ends stay: formats have ways for them.
_UNSAFE = "[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
_CODES = "(d[89a-f][0-9a-f]{2}|00[0189][0-9a-f]|007f|005c|202[a-e]|206[6-9])"
_UNSAFE_CHARACTER = re.compile(_UNSAFE)
# A backslash that only looks like such an escape is itself written as one, so that reading back is exact.
_UNWRITABLE = re.compile(rf"{_UNSAFE}|\\(?=u{_CODES})")
_ESCAPED = re.compile(rf"\\u{_CODES}")

# Some spreadsheets split at ';' or tabs: quoting keeps what follows from becoming a cell of its own.
_QUOTED = re.compile(r'[,;"\t\r\n]')
_QUOTE = '"'


def encode_unicode(name: str) -> str:
    r"""A name as valid UTF-8 text without control characters: a byte that is not UTF-8, such as 0xff, is ``\udcff``."""
    return _UNWRITABLE.sub(_escape, name)


def encode_json(text: str) -> str:
    r"""JSON text as valid UTF-8 without control characters, by JSON's own escapes: a byte 0xff of a name is ``\udcff``.

    ``json.loads`` gives the same names.
    """
    return _UNSAFE_CHARACTER.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def decode_unicode(text: str) -> str:
    """The name that :func:`encode_unicode` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def encode_path(path: str) -> str:
    """A relative POSIX path as a CSV cell: one that begins like a formula gets ``./`` before it, the same file."""
    return encode_unicode(f"./{path}" if _FORMULA_PATH.match(path) else path)


def decode_path(cell: str) -> str:
    """The path that :func:`encode_path` was given."""
    path = decode_unicode(cell)
    return path.removeprefix("./") if _FORMULA_PATH.match(path) else path


def normal_path(path: str) -> str:
    """The one form of a relative path in which images are named: ``./``, ``/./`` and ``//`` say nothing and go.

    Never another file: ``..`` stays, since what is before it may be a link; so does a ``/`` at the end, which only a
    folder may have. A backslash is a separator where the system has it for one, else a character like others.
    """
    path = path.replace(os.sep, "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    start, end = "/" * path.startswith("/"), "/" * (bool(parts) and path.endswith(("/", "/.")))
    return start + "/".join(parts) + end


def read_path(cell: str) -> str:
    """The image that a cell of a table names, as all tables and predictions call it; empty where it names none."""
    return normal_path(decode_path(cell))


def encode_text(text: str) -> str:
    """Any other text as a CSV cell: one that begins like a formula (or with ``'``) gets ``'`` before it."""
    guarded = text.startswith((*_FORMULA_STARTS, "'")) and not _NEGATIVE_NUMBER.fullmatch(text)
    return encode_unicode(f"'{text}" if guarded else text)


def decode_text(cell: str) -> str:
    """The text that :func:`encode_text` was given."""
    return decode_unicode(cell).removeprefix("'")


def csv_line(cells: Iterable[str]) -> str:
    """One line of CSV with its newline, quoted where needed: also around a lone carriage return."""
    return ",".join(f'"{c.replace(_QUOTE, _QUOTE * 2)}"' if _QUOTED.search(c) else c for c in cells) + "\n"


def printable(name: str) -> str:
    r"""A name for a terminal: control characters and bytes that are not UTF-8 as ``\x1b`` or ``\udcff``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

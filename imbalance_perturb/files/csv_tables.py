"""Reading CSV tables that people or other programs wrote: every row as the header says, or a clear error."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from imbalance_perturb.cells import printable, read_path
from imbalance_perturb.errors import ImbperturbError


def iter_table(
    path: Path, required: Sequence[str], error_type: type[ImbperturbError]
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file as (line number, {column: cell}); blank lines are skipped.

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


def iter_images(
    path: Path, required: Sequence[str], error_type: type[ImbperturbError]
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """The rows of a CSV file of images as (line number, image, {column: cell}), each image once.

    Args:
        path: as for :func:`iter_table`.
        required: columns that must be there, ``image`` among them.
        error_type: what to raise.

    Raises:
        ``error_type``: as :func:`iter_table` does; also for an empty image, or one that has been there, however it
            is written.
    """
    lines: dict[str, int] = {}
    for line, row in iter_table(path, required, error_type):
        image = read_path(row["image"])
        if not image:
            raise error_type(f"{path}, line {line}: the image is empty; give one, or remove the line")
        if (before := lines.setdefault(image, line)) != line:
            raise error_type(
                f"{path}, line {line}: {printable(image)} is there already, in line {before}; name each image once"
            )
        yield line, image, row


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


def first_few(names: Sequence[str], limit: int = 3) -> str:
    """The first names for a message, each on one line whatever it holds, and how many more there are."""
    more = len(names) - limit
    return ", ".join(map(printable, names[:limit])) + (f" and {more:,} more" if more > 0 else "")

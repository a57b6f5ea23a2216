"""Parquet: rows as they come, in row groups whose size depends on the columns alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from imbalance_perturb.files.csv_tables import encode_unicode

#: Values of a row group, all columns together, and its most rows: what is held in memory until it is written.
_GROUP_VALUES, _GROUP_ROWS = 1 << 20, 8192


def has_pyarrow() -> bool:
    """Whether Parquet can be written here."""
    return importlib.util.find_spec("pyarrow") is not None


@contextmanager
def open_parquet(
    stream: IO[bytes], columns: Sequence[tuple[str, type]]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a stream for rows: yields a function that writes one, ``{column: value or None}``; whole at the end.

    The same rows make the same bytes, however they are batched. Text that is no UTF-8 is escaped as in
    :func:`encode_unicode`.

    Args:
        stream: open for writing bytes.
        columns: name and type (``str``, ``float`` or ``bool``) of each.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(encode_unicode(name), types[kind]) for name, kind in columns])
    group = max(1, min(_GROUP_ROWS, _GROUP_VALUES // len(columns)))
    rows: list[Mapping[str, Any]] = []

    def flush() -> None:
        arrays = [
            pa.array([_storable(row[name]) for row in rows], field.type)
            for (name, _), field in zip(columns, schema, strict=True)
        ]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=group)
        rows.clear()

    def write(row: Mapping[str, Any]) -> None:
        rows.append(row)
        if len(rows) == group:
            flush()

    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield write
        if rows:
            flush()


def _storable(value: Any) -> Any:
    return encode_unicode(value) if isinstance(value, str) else value

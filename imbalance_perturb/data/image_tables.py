"""Tables that name images in a column: CSV of any origin, Parquet; of millions no string of Python is kept for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imbalance_perturb.data.packed_names import PackedNames, first_double, pack_names
from imbalance_perturb.data.picture_formats import suffix_of
from imbalance_perturb.errors import ImageFolderError, first_few, printable
from imbalance_perturb.files.csv_tables import decode_unicode, iter_images_of, normal_path
from imbalance_perturb.files.parquet import has_pyarrow
from imbalance_perturb.files.user_tables import read_user_table

#: Suffixes of tables that are read.
TABLE_SUFFIXES = frozenset({".csv", ".parquet"})

_COLUMN = "image"


def read_image_table(path: Path, find: Callable[[str], str] = str) -> PackedNames:
    """Read the images that the column ``image`` of a CSV or Parquet file names, in order.

    Args:
        path: says by its suffix which of the two it is.
        find: gives the name of the file that a cell may mean.

    Raises:
        ImageFolderError: if the file cannot be read, has no such column, an empty cell in it, or names an image twice.
    """
    rows = _iter_parquet if suffix_of(path) == ".parquet" else _iter_csv
    names = pack_names(find(name) for _, name in rows(path))
    if not names:
        raise ImageFolderError(f"{path}: lists no image; give one path a line in the column '{_COLUMN}'")
    if (double := first_double(names)) is not None:
        before, again = [place for place, name in rows(path) if find(name) == double][:2]
        raise ImageFolderError(
            f"{path}, {again}: {printable(double)} is there already, in {before}; name each image once"
        )
    return names


def _iter_csv(path: Path) -> Iterator[tuple[str, str]]:
    table = read_user_table(path, (_COLUMN,), ImageFolderError)
    for line, image, _ in iter_images_of(table, (_COLUMN,), distinct=False):
        yield f"line {line}", image


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _iter_parquet(path: Path) -> Iterator[tuple[str, str]]:
    if not has_pyarrow():
        raise ImageFolderError(f"{path}: reading it needs pyarrow; pip install 'imbalance-perturb[parquet]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not by its name, which pyarrow takes for UTF-8.
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            found = file.schema_arrow
            if found.names.count(_COLUMN) != 1 or not _is_text(found.field(_COLUMN).type):
                raise ImageFolderError(
                    f"{path}: has no one column '{_COLUMN}' of text; its columns are {first_few(found.names)}"
                )
            row = 0
            for batch in file.iter_batches(columns=[_COLUMN]):
                for cell in batch.column(0).to_pylist():
                    row += 1
                    name = normal_path(decode_unicode(cell or ""))
                    if not name:
                        raise ImageFolderError(f"{path}, row {row}: the image is empty; give one, or remove the row")
                    yield f"row {row}", name
    except ImageFolderError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ImageFolderError(f"{path}: is not a Parquet file that can be read ({error})") from None

"""imbalance_perturb.data.image_tables: the images that CSV and Parquet files name."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.errors import ImageFolderError

pa = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra parquet)")


def parquet(file: Path, /, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize(
    "column",
    [
        ["b.png", "./a//c.png", "é.png"],
        pa.array(["b.png", "a/c.png", "é.png"], pa.large_string()),
        pa.array(["b.png", "a/c.png", "é.png"]).dictionary_encode(),
    ],
)
def test_a_parquet_file_names_images(column: object, tmp_path: Path) -> None:
    """Its column image, whatever stands beside it; names are relative to its folder."""
    found = find_images(parquet(tmp_path / "names.parquet", patient=[1, 2, 3], image=column))
    assert found.names == ["a/c.png", "b.png", "é.png"]
    assert found.root == tmp_path
    assert found.part(lambda name: name < "c").names == ["a/c.png", "b.png"]
    assert found.part(lambda name: name < "c").everything == found.names


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"path": ["a.png"]}, "no one column 'image' of text; its columns are path"),
        ({"image": [1]}, "no one column 'image' of text"),
        ({"image": pa.array([], pa.string())}, "lists no image"),
        ({"image": ["a.png", None]}, "row 2: the image is empty"),
        ({"image": ["b.png", "a.png", "./b.png"]}, "row 3: b.png is there already, in row 1; name each image once"),
    ],
)
def test_what_names_no_images_is_refused(columns: dict[str, object], words: str, tmp_path: Path) -> None:
    """One line: which file, which row, what to do."""
    path = parquet(tmp_path / "names.parquet", **columns)
    with pytest.raises(ImageFolderError, match=words) as caught:
        find_images(path)
    assert str(path) in str(caught.value)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    """A file that only has the suffix."""
    (tmp_path / "names.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ImageFolderError, match="is not a Parquet file that can be read"):
        find_images(tmp_path / "names.parquet")


def test_a_double_of_a_csv_is_told_by_its_lines(tmp_path: Path) -> None:
    """However it is written: the line, and the one before it."""
    (tmp_path / "names.csv").write_text("id,image\n1,b.png\n2,a.png\n\n3,./b.png\n")
    with pytest.raises(ImageFolderError, match=r"line 5: b\.png is there already, in line 2; name each image once"):
        find_images(tmp_path / "names.csv")

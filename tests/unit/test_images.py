from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.errors import ImageFolderError
from imbalance_perturb.images import decode_image, find_images
from tests.image_samples import picture, samples


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def test_a_folder_is_searched_recursively_and_sorted_by_path(tmp_path: Path) -> None:
    """Images of all sub-folders come sorted as whole POSIX paths; other files are counted, not lost."""
    for name in ("b.png", "a/z.PNG", "a-b/c.jpg", "a/deep/er/x.webp", ".hidden.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a" / "Makefile").write_text("no image")
    found = find_images(tmp_path)
    assert found.root == tmp_path
    assert list(found.names) == ["a-b/c.jpg", "a/deep/er/x.webp", "a/z.PNG", "b.png"]
    assert found.ignored == {".txt": 1, "no suffix": 1, ".png": 1}


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """A linked folder is searched, a link back to a folder above is not searched again."""
    write_image(tmp_path / "elsewhere" / "x.png")
    write_image(tmp_path / "root" / "y.png")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    assert list(find_images(tmp_path / "root").names) == ["linked/x.png", "y.png"]


def test_one_image_and_a_csv_of_images(tmp_path: Path) -> None:
    """One file is a list of one; a CSV names images relative to itself, sorted."""
    write_image(tmp_path / "x.png")
    (tmp_path / "list.csv").write_text("label,image\n1,z.png\n0,sub/a.png\n", encoding="utf-8-sig")
    assert list(find_images(tmp_path / "x.png").names) == ["x.png"]
    found = find_images(str(tmp_path / "list.csv"))
    assert (found.root, list(found.names)) == (tmp_path, ["sub/a.png", "z.png"])


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("name\nx.png\n", "has no column 'image' (found: name)"),
        ("", "has no column 'image' (found: nothing)"),
        ("image\n", "lists no image"),
        ("image,a\nx.png,1\n,2\n", "the image in row 2 is empty"),
        ("image\nx.png\ny.png\nx.png\n", "1 images are listed more than once (first: x.png)"),
    ],
)
def test_a_bad_list_is_refused(text: str, cause: str, tmp_path: Path) -> None:
    """A CSV without the column, without rows, with an empty name or a double is an error naming it."""
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ImageFolderError) as caught:
        find_images(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert cause in str(caught.value)


def test_an_empty_folder_and_one_without_images_are_errors(tmp_path: Path) -> None:
    """No image at all is an error that says what is there instead."""
    with pytest.raises(ImageFolderError, match="no image in this folder \\(it is empty\\)"):
        find_images(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ImageFolderError, match="none of its 1 files is one"):
        find_images(tmp_path)
    with pytest.raises(ImageFolderError, match="no such file or folder"):
        find_images(tmp_path / "missing")


def test_dicom_files_are_found_without_suffix(tmp_path: Path) -> None:
    """Archives name files by number or UID: those that are DICOM are found by content, DICOMDIR is left out."""
    dicom = b"\0" * 128 + b"DICM" + b"\0" * 8
    for name in ("IM000001", "1.2.840.113619.2.5", "DICOMDIR", "a.dcm", "b.DICOM", "c.txt"):
        (tmp_path / name).write_bytes(dicom)
    (tmp_path / "README").write_text("no image")
    (tmp_path / "7").write_bytes(b"DICM")
    os.mkfifo(tmp_path / "pipe")
    found = find_images(tmp_path)
    assert list(found.names) == ["1.2.840.113619.2.5", "IM000001", "a.dcm", "b.DICOM"]
    assert found.ignored == {"no suffix": 4, ".txt": 1}


def test_predictions_serve_as_a_list_of_images(tmp_path: Path) -> None:
    """Names that were escaped for a spreadsheet, or are not UTF-8, stand for the same files when they are read."""
    (tmp_path / "p.csv").write_text('image\n./=1.png\n./b.png\nbad\\udcff.png\n"a\rb.png"\n', newline="")
    assert sorted(find_images(tmp_path / "p.csv").names) == sorted(["=1.png", "./b.png", "bad\udcff.png", "a\rb.png"])


def test_every_sample_becomes_the_colour_asked_for(tmp_path: Path) -> None:
    """Each kind of image file becomes RGB or gray: float images, one a channel, where it has more than 8 bits."""
    for name, data in samples().items():
        path = tmp_path / name
        path.write_bytes(data)
        found = {color: decode_image(path, color) for color in ("rgb", "gray")}
        modes = {c: tuple(p.mode for p in x) if isinstance(x, tuple) else x.mode for c, x in found.items()}
        if "16" in name:
            assert modes == {"rgb": ("F", "F", "F") if "rgb" in name else "F", "gray": "F"}, name
        else:
            assert modes == {"rgb": "RGB", "gray": "L"}, name


def test_the_content_says_the_format(tmp_path: Path) -> None:
    """A suffix that does not fit, or none, does not matter."""
    for name in ("x.jpg", "x.dcm", "x"):
        (tmp_path / name).write_bytes(samples()["rgb.png"])
        assert np.array_equal(np.asarray(decode_image(tmp_path / name, "rgb")), np.asarray(picture()))

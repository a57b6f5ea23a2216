from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.errors import ImageError, ImageFolderError
from imbalance_perturb.images import decode_image, find_images


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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize(("color", "expected"), [("rgb", "RGB"), ("gray", "L")])
def test_every_mode_becomes_the_colour_asked_for(mode: str, color: str, expected: str, tmp_path: Path) -> None:
    """Palette, alpha, one-bit, CMYK and grayscale images become RGB or grayscale of the same size."""
    path = write_image(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"), mode)
    decoded = decode_image(path, color)
    assert (decoded.mode, decoded.size) == (expected, (8, 6))


def test_sixteen_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    """The 16-bit range maps linearly onto [0, 255], with fractions kept."""
    values = np.array([[0, 255, 1000], [32768, 65534, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(decode_image(tmp_path / name, "rgb"))
        np.testing.assert_allclose(pixels, values * (255 / 65535), rtol=1e-6)


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-800])


def pages(path: Path) -> None:
    first = Image.new("L", (4, 4))
    first.save(path, save_all=True, append_images=[first, first])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("zero.png", lambda path: path.write_bytes(b""), "not an image in a known format"),
        ("text.jpg", lambda path: path.write_text("hello"), "not an image in a known format"),
        ("cut.jpg", truncated, "truncated"),
        ("cut.png", truncated, "truncated|decoded|broken"),
        ("gone.png", lambda path: None, "no such file or directory"),
        ("folder.png", lambda path: path.mkdir(), "is a directory"),
        ("pages.tif", pages, "TIFF with 3 pages"),
        ("float.tif", lambda path: Image.new("F", (4, 4)).save(path), "32-bit"),
        ("broken.png", lambda path: path.symlink_to(path.with_name("nowhere")), "no such file or directory"),
    ],
)
def test_an_unusable_file_gives_its_reason(
    name: str, make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    """Whatever is wrong with a file ends in ImageError with a reason that holds no path."""
    path = tmp_path / name
    make(path)
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(path, "rgb")
    assert str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_without_permission_gives_its_reason(tmp_path: Path) -> None:
    """A file that may not be read is an ImageError that says so."""
    path = write_image(tmp_path / "x.png")
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # root reads every file, so be nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match="permission denied"):
            decode_image(path, "rgb")
    finally:
        if root:
            os.seteuid(0)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image above Pillow's limit is refused with the reason; one that only warns is read."""
    path = write_image(tmp_path / "x.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_image(path, "rgb").size == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="DecompressionBomb"):
        decode_image(path, "rgb")

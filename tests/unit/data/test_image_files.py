from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.data.hidden_files import HiddenFiles
from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.errors import ImageFolderError
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
    assert found.ignored == {".txt": 1, "no suffix": 1}
    assert found.hidden == HiddenFiles(loose=1)


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
        ("name\nx.png\n", "has no column 'image'; the first line must name image, it is 'name'"),
        ("", "is empty; expected CSV with the columns image"),
        ("image|label\nx.png|a\n", "has no column 'image'; the first line must name image, it is 'image|label'"),
        ("image,image\nx.png,y.png\n", "names the column 'image' twice"),
        ("image\nx.png,1\n", "line 2: 2 cells, but the first line names 1 columns"),
        ("image,label\nx.png\n", "line 2: 1 cells, but the first line names 2 columns"),
        ('image\n"x.png\n', "is not CSV"),
        ("image\n", "lists no image"),
        ("image,a\nx.png,1\n,2\n", "line 3: the image is empty"),
        ("image\nx.png\ny.png\nx.png\n", "line 4: x.png is there already, in line 2; name each image once"),
        ("image\nsub/x.png\n.//sub/./x.png\n", "line 3: sub/x.png is there already, in line 2"),
        ("image\n=x.png\n./=x.png\n", "line 3: =x.png is there already, in line 2"),
    ],
)
def test_a_bad_list_is_refused(text: str, cause: str, tmp_path: Path) -> None:
    """A CSV without the column, without rows, with an empty name or a double is an error naming it."""
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ImageFolderError) as caught:
        find_images(path)
    assert str(caught.value).startswith(str(path))
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
    assert sorted(find_images(tmp_path / "p.csv").names) == sorted(["=1.png", "b.png", "bad\udcff.png", "a\rb.png"])


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


#: What people's folders hold besides their own files, as systems and programs leave it.
LEFTOVERS = (
    ".ipynb_checkpoints/x.png",
    "@eaDir/x.jpg/SYNOPHOTO_THUMB.jpg",
    ".Trash-1000/files/x.png",
    "$RECYCLE.BIN/x.png",
    "System Volume Information/x.png",
    "__MACOSX/._x.png",
    "lost+found/x.png",
    "#recycle/x.png",
    "#snapshot/x.png",
    ".git/objects/x.png",
    "._x.png",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
)


def test_hidden_and_system_files_are_left_aside_wherever_they_are(tmp_path: Path) -> None:
    """At the top and in a folder below; they are counted, and none is among the other files."""
    for folder in ("", "nv/"):
        write_image(tmp_path / folder / "x.png")
        for name in LEFTOVERS:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((tmp_path / "x.png").read_bytes())
    found = find_images(tmp_path)
    assert list(found.names) == ["nv/x.png", "x.png"]
    assert not found.ignored
    assert (found.hidden.loose, found.hidden.inside, len(found.hidden.folders)) == (8, 20, 20)
    assert found.hidden.to_dict() == {"files": 28, "folders": 20}
    assert found.describe_left_aside() == [
        "left aside: 20 files in 20 hidden or system folders (#recycle, #snapshot, $RECYCLE.BIN and 7 more),"
        " 8 hidden or system files"
    ]


def test_what_is_named_is_taken_whatever_its_name(tmp_path: Path) -> None:
    """A hidden folder given as IMAGES is searched; a hidden file is taken alone or from a CSV."""
    write_image(tmp_path / ".data" / "x.png")
    write_image(tmp_path / ".data" / ".y.png")
    (tmp_path / "list.csv").write_text("image\n.data/.y.png\n@eaDir/z.png\n")
    assert list(find_images(tmp_path / ".data").names) == ["x.png"]
    assert list(find_images(tmp_path / ".data" / ".y.png").names) == [".y.png"]
    assert list(find_images(tmp_path / "list.csv").names) == [".data/.y.png", "@eaDir/z.png"]


def test_a_folder_of_hidden_files_alone_says_so(tmp_path: Path) -> None:
    """The error of an empty search names what was not searched; a link among it is not followed."""
    write_image(tmp_path / ".cache" / "x.png")
    (tmp_path / ".link").symlink_to(tmp_path.parent)
    with pytest.raises(ImageFolderError, match=r"it is empty; left aside: 1 files in 2 hidden or system folders"):
        find_images(tmp_path)


def test_paths_of_a_list_have_one_form(tmp_path: Path) -> None:
    """What says nothing goes; what may be another file stays: '..' after a link, a folder's slash, backslashes."""
    cells = [
        "./a.png",
        ".//sub/./b.png",
        "a/../c.png",
        "../d.png",
        "e.png/",
        "f\\g.png",
        "/h//i.png",
        " j.png",
        ".k.png",
    ]
    (tmp_path / " j.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("image\n" + "\n".join(cells) + "\n")
    expected = ["a.png", "sub/b.png", "a/../c.png", "../d.png", "e.png/", "f\\g.png", "/h/i.png", " j.png", ".k.png"]
    assert list(find_images(tmp_path / "list.csv").names) == sorted(expected)


def test_pictures_that_are_not_read_are_among_the_images(tmp_path: Path) -> None:
    """By suffix, or by content where the suffix says nothing; tables, texts and the like stay left aside."""
    pictures = {
        "a.heic": b"",
        "b.JXL": b"",
        "c.svg": b"<svg>",
        "d.nef": b"II*\0",
        "e.psd": b"8BPS",
        "f.pdf": b"%PDF-1.7",
    }
    pictures |= {"g.mp4": b"", "h.nii.gz": b"", "i": b"\xff\x0a123", "j.data": samples()["rgb.jpg"], "k.123": b"8BPS"}
    others = ("l.txt", "m.csv", "n.json", "o.xml", "p.md", "q.zip", "r.npy", "s")
    copies = ("t.png.bak", "u.jpg~", "v.tmp", "w.part")
    for name, content in {**pictures, **dict.fromkeys(others, b"BMI,age\n8BPS")}.items():
        (tmp_path / name).write_bytes(content)
    for name in copies:
        (tmp_path / name).write_bytes(samples()["rgb.jpg"])
    found = find_images(tmp_path)
    assert list(found.names) == sorted(pictures)
    assert found.ignored.total() == len(others) + len(copies)

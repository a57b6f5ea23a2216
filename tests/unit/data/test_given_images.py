"""What may be given as IMAGES: several paths, lists of paths, and what is neither."""

from __future__ import annotations

import os
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.data.image_sources import IMAGES_ARE
from imbalance_perturb.errors import ImageFolderError


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, "PNG")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(*(tmp_path / name for name in ("images/a.png", "images/b.png", "images/sub/c.png", "other/a.png")))
    return tmp_path


def refused(*given: str | Path) -> str:
    with pytest.raises(ImageFolderError) as caught:
        find_images(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_shell_makes_of_a_pattern_is_the_folder_again(here: Path) -> None:
    """`images/*` gives the names that `images` gives, in whatever order they come."""
    whole = find_images("images")
    found = find_images(["images/sub", "images/b.png", "images/a.png"])
    assert (found.root, list(found.names)) == (whole.root, list(whole.names)) == (Path("images"), [*whole.names])
    assert found.sources == (Path("images/sub"), Path("images/b.png"), Path("images/a.png"))
    assert found.describe_source() == "images/sub, images/b.png, images/a.png (named relative to images)"


def test_several_are_named_from_the_deepest_folder_that_holds_all(here: Path) -> None:
    """So that equal names in two folders stay apart; relative while all that were given are."""
    found = find_images(["images", "other/a.png"])
    assert (found.root, list(found.names)) == (
        Path(),
        ["images/a.png", "images/b.png", "images/sub/c.png", "other/a.png"],
    )
    found = find_images([here / "other", Path("images/sub")])
    assert (found.root, list(found.names)) == (here, ["images/sub/c.png", "other/a.png"])
    assert all((found.root / name).is_file() for name in found.names)
    above = here / "images" / "sub"
    os.chdir(above)
    found = find_images(["../a.png", "../../other"])
    assert (found.root, list(found.names)) == (Path("../.."), ["images/a.png", "other/a.png"])


def test_one_path_alone_gives_what_it_always_gave(here: Path) -> None:
    """A list of one is that one."""
    assert find_images(["images"]) == find_images("images")
    assert find_images(("images/a.png",)).names == ["a.png"]


def test_a_file_that_is_named_again_has_one_row(here: Path) -> None:
    """By itself, within a folder, in a list elsewhere, through a link: once, as it was named first, and it is said."""
    (here / "lists").mkdir()
    (here / "lists" / "x.txt").write_text(f"../images/a.png\n{here}/images/b.png\n../other/a.png\n")
    (here / "linked").symlink_to(here / "images")
    found = find_images(["images", "images/a.png", "./images/", "lists/x.txt", "linked/a.png"])
    assert list(found.names) == ["images/a.png", "images/b.png", "images/sub/c.png", "lists/../other/a.png"]
    assert found.repeated == 1 + 3 + 2 + 1
    assert found.describe_left_aside() == ["named more than once, with one row each: 7 times again"]


def test_links_that_a_folder_holds_stay_images_of_their_own(here: Path) -> None:
    """As when the folder is given alone; and '..' behind a link leads where the system says."""
    (here / "images" / "d.png").symlink_to(here / "images" / "a.png")
    assert len(find_images(["images", "other"])) == 5
    write(here / "far" / "e.png")
    (here / "far" / "in").mkdir()
    (here / "link").symlink_to(here / "far" / "in")
    found = find_images(["link/../e.png", "images/a.png"])
    assert list(found.names) == ["far/e.png", "images/a.png"]
    assert all((found.root / name).is_file() for name in found.names)


@pytest.mark.parametrize("suffix", [".txt", ".lst", ".LIST"])
def test_a_text_file_of_paths_is_a_list(suffix: str, here: Path) -> None:
    """One a line, relative to it, as it stands: blanks, '#', commas; what is not there is named for its row."""
    odd = ["#1.png", "two words.png", "a, b.png", "ü.png", os.fsdecode(b"\xff.png")]
    write(*(here / name for name in odd))
    lines = [*odd, "", "  ", "./images/a.png", "missing.png", "images/b.png  ", "images/a.png"]
    path = here / f"list{suffix}"
    for end, start in ((b"\n", b""), (b"\r\n", b"\xef\xbb\xbf")):
        path.write_bytes(start + end.join(map(os.fsencode, lines)))
        found = find_images(path)
        assert list(found.names) == sorted([*odd, "images/a.png", "images/b.png", "missing.png"])
        assert (found.root, found.repeated) == (here, 1)


def test_accents_of_a_list_are_those_of_the_files(here: Path) -> None:
    """A list from macOS may compose them otherwise; where a file has the line's own form, that is meant."""
    composed, apart = (unicodedata.normalize(form, "naïve.png") for form in ("NFC", "NFD"))
    write(here / composed)
    for line in (composed, apart):
        (here / "list.txt").write_text(f"{line}\n", encoding="utf-8")
        assert find_images("list.txt").names == [composed]
    write(here / apart)
    assert find_images("list.txt").names == [apart]


def test_a_list_that_powershell_wrote_is_read(here: Path) -> None:
    """UTF-16 with its mark, as `dir /b > list.txt` gives it there."""
    (here / "images" / "list.txt").write_bytes("a.png\r\nb.png\r\n".encode("utf-16"))
    assert list(find_images("images/list.txt").names) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"a.png\nb.png 7\n", "line 2: b.png 7 is no file, but b.png is: a list has paths alone; make it"),
        (b"a.png,nv\n", "line 1: a.png,nv is no file, but a.png is"),
        (b"3\tb.png\n", "but b.png is"),
        (b"# images\na.png\n", "line 1: # images is no file; a list has no comments: remove the line"),
        (b'"a.png"\n', "but a.png is: write paths without quotation marks"),
        (b"sub\\c.png\n", "but sub/c.png is: write / between folders"),
        (b"a.png\0b.png\0", "holds zero bytes (written by find -print0?)"),
        (b"x.png\ny.png\n", "none of its 2 lines names a file (first: x.png); paths are relative to the list's folder"),
        (b"images/a.png\n", "these are there from the current folder: move the list there"),
        (b"\n\n", "lists no image"),
    ],
)
def test_a_list_that_may_mean_something_else_is_refused(text: bytes, cause: str, here: Path) -> None:
    """Pairs as torchvision's and Caffe's lists have, comments, quotes: the line and what to do are named."""
    (here / "images" / "list.txt").write_bytes(text)
    message = refused("images/list.txt")
    assert message.startswith("images/list.txt")
    assert cause in message


def make_others(folder: Path) -> dict[str, str]:
    """Files that are no images, and what is said of each."""
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.write(folder / "images" / "a.png")
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(folder / "images" / "a.png")
    shutil.copy(folder / "images.tar", folder / "x")
    contents = {
        "x.tsv": b"image\tlabel\n",
        "x.mp4": b"\0\0\0\x18ftypisom",
        "video.bin": b"\x1a\x45\xdf\xa3",
        "x.npy": b"\x93NUMPY",
        "x.pdf": b"%PDF-1.7",
        "x.h5": b"\x89HDF\r\n",
        "x.tgz": b"\x1f\x8b",
        "x.xlsx": b"PK\3\4",
        "x.nii.gz": b"\x1f\x8b",
        "counts.json": b"[1, 2]",
        "model.pth": b"PK\3\4",
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "notes": b"text",
        "nothing": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    unpack = "is an archive: unpack it and give the folder"
    return {
        "images.zip": unpack,
        "images.tar": unpack,
        "x": unpack,
        "x.tgz": unpack,
        "x.tsv": "is a table (.tsv): save it as CSV with a column 'image'",
        "x.mp4": "is a video, which is not read; export the frames that are meant",
        "video.bin": "is a video",
        "x.pdf": "is a document",
        "x.nii.gz": "is a volume of slices",
        "x.npy": "is no image (a .npy file)",
        "x.h5": "is no image (a .h5 file)",
        "counts.json": "the order is MODEL COUNTS IMAGES",
        "Thumbs.db": "is a file of the system",
        "notes": "is no image (nor named like one)",
        "nothing": "is empty",
        "http://host/images": "is a URL that is not read: download it, or give one of s3://, gs://, file://",
        "s3:///images": "names no bucket; expected s3://BUCKET/FOLDER",
        "file://host/images": "names another machine, host; expected file:///FOLDER",
        "images/*.gif": "no file fits the pattern",
        "missing.txt": "no such file or folder",
        "": "an empty text was given",
    }


def test_what_is_no_image_is_refused_with_what_images_may_be(here: Path) -> None:
    """Archives, tables, videos, arrays, models, URLs: one line each, alone and among others."""
    for name, words in make_others(here).items():
        for given in ((name,), ("images", name)):
            message = refused(*given)
            assert words in message, message
            assert message.endswith(IMAGES_ARE)
            assert name.partition("*")[0] in message
    assert "no IMAGES are given" in refused()


def test_pictures_are_images_whatever_their_suffix(here: Path) -> None:
    """A picture named .txt or .db is one; one that is not read, or broken, has its row to say so."""
    for name in ("a.txt", "a.db", "a.tmp"):
        shutil.copy(here / "images" / "a.png", here / name)
    (here / "b.jxl").write_bytes(b"\xff\x0a")
    (here / "c.jpg").write_bytes(b"PK\3\4")
    (here / "d.png").write_bytes(b"")
    assert list(find_images(["a.txt", "a.db", "a.tmp", "b.jxl", "c.jpg", "d.png"]).names) == [
        "a.db", "a.tmp", "a.txt", "b.jxl", "c.jpg", "d.png",
    ]  # fmt: skip

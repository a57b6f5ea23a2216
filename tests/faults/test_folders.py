"""What is wrong in folders of images: nothing is lost in silence, and nothing ends or hangs the search."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.errors import ImageError, ImageFolderError
from tests.image_samples import samples
from tests.users import open_to_others

NAMES = [
    "a b.png",
    "quote'\".png",
    "comma,.png",
    "semicolon;.png",
    "line\nend.png",
    "carriage\rreturn.png",
    "🙂.png",
    "bad\udcff.png",
    "=1+1.png",
    "-1.png",
    "back\\slash.png",
    "UPPER.PNG",
]


def test_every_entry_named_like_an_image_has_a_row(tmp_path: Path) -> None:
    """Good files and entries that are no files are all found, in order; each that is no image says why."""
    for name in NAMES:
        (tmp_path / name).write_bytes(samples()["rgb.png"])
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/null")
    (tmp_path / "folder.jpg").mkdir()
    bad = ["pipe.jpg", "broken.jpg", "loop.jpg", "device.jpg", "folder.jpg"]
    found = find_images(tmp_path)
    assert list(found.names) == sorted([*NAMES, *bad])
    for name in found.names:
        if name in bad:
            with pytest.raises(ImageError):
                decode_image(found.root / name, "rgb")
        else:
            decode_image(found.root / name, "rgb")


def test_a_folder_named_like_an_image_is_searched(tmp_path: Path) -> None:
    """Images inside such a folder are found; only an empty one has a row of its own."""
    inside = tmp_path / "case.dcm" / "x.png"
    inside.parent.mkdir()
    inside.write_bytes(samples()["rgb.png"])
    assert list(find_images(tmp_path).names) == ["case.dcm/x.png"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """Folders that link to each other are searched once on each way, and the search ends."""
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(samples()["rgb.png"])
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    assert list(find_images(tmp_path).names) == ["a/link/x.png", "a/x.png", "b/link/x.png", "b/x.png"]


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    """A folder that cannot be searched ends the command before it starts: its images would be missing."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "x.png").write_bytes(samples()["rgb.png"])
    closed.chmod(0)
    root = os.geteuid() == 0
    if root:
        open_to_others(tmp_path)
        os.seteuid(65534)
    try:
        with pytest.raises(ImageFolderError, match=r"closed: cannot be searched \(Permission denied\)"):
            find_images(tmp_path)
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o700)


def test_a_file_deleted_after_the_search(tmp_path: Path) -> None:
    """A file that is gone when its turn comes is an error of its row."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(samples()["rgb.png"])
    found = find_images(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="no such file or directory"):
        decode_image(found.root / found.names[0], "rgb")
    decode_image(found.root / found.names[1], "rgb")

"""What is wrong with single image files: every fault ends in a reason of one line, never in pixels or a hang."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.data.image_decoding import MAX_FILE_BYTES, decode_image
from imbalance_perturb.data.pixels import MAX_PIXELS
from imbalance_perturb.errors import ImageError
from tests.image_samples import picture, samples, saved, tiff

LARGE = {
    "x.jpg": saved(picture(90, 120), "JPEG"),
    "progressive.jpg": saved(picture(90, 120), "JPEG", progressive=True),
    "x.png": saved(picture(90, 120), "PNG"),
    "x.tif": saved(picture(90, 120), "TIFF"),
    "lzw.tif": saved(picture(90, 120), "TIFF", compression="tiff_lzw"),
    "deflate.tif": saved(picture(90, 120), "TIFF", compression="tiff_deflate"),
    "x.bmp": saved(picture(90, 120), "BMP"),
    "x.gif": saved(picture(90, 120), "GIF"),
    "x.webp": saved(picture(90, 120), "WEBP"),
    "x.ppm": saved(picture(90, 120), "PPM"),
    "x.pgm": saved(picture(90, 120).convert("L"), "PPM"),
}


def reason(path: Path) -> str:
    """Why an image cannot be used: one line without its path."""
    with pytest.raises(ImageError) as caught:
        decode_image(path, "rgb")
    message = str(caught.value)
    assert message
    assert message.isprintable()
    assert len(message) < 300
    assert str(path.parent) not in message
    return message


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.3, 0.5, 0.9, 0.97])
def test_a_truncated_file(name: str, share: float, tmp_path: Path) -> None:
    """A file cut off anywhere, in its header or its pixels, is an error, in every format."""
    path = tmp_path / name
    path.write_bytes(LARGE[name][: int(len(LARGE[name]) * share)])
    reason(path)


@pytest.mark.parametrize("name", [*LARGE, "x.dcm"])
def test_zero_bytes(name: str, tmp_path: Path) -> None:
    """An empty file is called empty."""
    (tmp_path / name).touch()
    assert reason(tmp_path / name) == "the file is empty (0 bytes)"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("text.jpg", b"hello world, this is no picture\n" * 20, "not an image in a known format"),
        ("text.dcm", b"hello world", "not a DICOM file: has no 'DICM' at byte 128"),
        ("page.png", b"<!DOCTYPE html><html>404</html>", "not an image in a known format"),
        ("noise.png", bytes(range(256)) * 9, "not an image in a known format"),
        ("start.jpg", b"\xff\xd8\xff", "begins like a JPEG but cannot be read as one"),
        ("start.png", b"\x89PNG\r\n\x1a\n\0\0\0\1what?", "begins like a PNG but cannot be read as one"),
        ("start.tif", b"II*\0" + b"\0" * 99, "begins like a TIFF but cannot be read as one"),
        (
            "script.jpg",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "a document, which is not read",
        ),
    ],
)
def test_what_is_no_image(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    """A text, a page or noise under an image's name is said to be none; PostScript is never run."""
    (tmp_path / name).write_bytes(content)
    assert expected in reason(tmp_path / name)


def test_a_wrong_suffix_is_no_fault(tmp_path: Path) -> None:
    """Any image under any image's suffix is read by its content."""
    for name, data in samples().items():
        for suffix in (".jpg", ".tif"):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(data)
            decode_image(path, "rgb")


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size, with a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999))


@pytest.mark.parametrize("limit", [None, Image.MAX_IMAGE_PIXELS])
def test_a_decompression_bomb(tmp_path: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that states too many pixels is refused before memory is taken, even where Pillow's limit is off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60000, 60000))
    before = peak_memory()
    assert "60000 x 60000 pixels are more than" in reason(path) or "decompression bomb" in reason(path)
    path.write_bytes(saved(Image.new("1", (30000, 30000)), "PNG"))  # a true one: 900 million pixels in 100 kB
    assert path.stat().st_size < 200_000
    before = max(before, peak_memory())  # making it took memory
    assert "pixels" in reason(path)
    assert peak_memory() - before < 50e6


def peak_memory() -> int:
    """Bytes of memory that this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_no_warning_stands_for_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow would only warn, the image is read in silence; what is refused is an error, not a warning."""
    path = tmp_path / "x.png"
    path.write_bytes(saved(picture(40, 40), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_image(path, "rgb").size == (40, 40)  # type: ignore[union-attr]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in reason(path)
    monkeypatch.undo()
    monkeypatch.setattr("imbalance_perturb.data.pixels.MAX_PIXELS", 100)
    assert reason(path) == ("40 x 40 pixels are more than 100 (a decompression bomb?); make the image smaller")
    assert 2 * int(1024**3 / 4 / 3) == MAX_PIXELS


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_absurd_sizes_decode_and_are_fitted_or_refused_in_little_memory(size: tuple[int, int], tmp_path: Path) -> None:
    """One pixel is enough for an input; a strip that would become millions of pixels long is refused first."""
    from imbalance_perturb.config.settings import PreprocessSettings
    from imbalance_perturb.data.preprocessing import make_geometry, select_preprocessing

    path = tmp_path / "x.png"
    path.write_bytes(saved(Image.new("RGB", size, (9, 9, 9)), "PNG"))
    geometry = make_geometry(select_preprocessing(PreprocessSettings()))
    image = decode_image(path, "rgb")
    if size == (1, 1):
        assert geometry(image).shape == (3, 224, 224)
        return
    before = peak_memory()
    with pytest.raises(ImageError, match="cannot be resized to a shorter side of 256: too long and thin"):
        geometry(image)
    assert peak_memory() - before < 50e6


def test_pixels_that_would_be_nan(tmp_path: Path) -> None:
    """Floating-point pixels, in which NaN could hide, are refused as a kind."""
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(np.full((4, 4), np.nan, np.float32), sample_format=3))
    assert "floating-point" in reason(path)


def test_a_huge_file(tmp_path: Path) -> None:
    """A file of terabytes is refused by its size, before anything reads it into memory."""
    path = tmp_path / "x.webp"
    path.write_bytes(samples()["rgb.webp"])
    try:
        os.truncate(path, MAX_FILE_BYTES + 1)
    except OSError:
        pytest.skip("the file system has no sparse files")
    assert reason(path).startswith("the file has 2,147,483,649 bytes, more than")


def socket_at(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket may be 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (os.mkfifo, "is a named pipe, not a file"),
        (socket_at, "is a socket, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to("nowhere"), "a link to a file that is not there"),
        (lambda path: path.symlink_to(path.name), "too many levels of symbolic links"),
        (lambda path: None, "no such file or directory"),
    ],
    ids=["folder", "pipe", "socket", "device", "broken link", "link loop", "deleted"],
)
def test_what_is_no_file(make: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    """A folder, pipe, socket, device or broken link named like an image is an error at once: nothing is waited for."""
    path = tmp_path / "x.jpg"
    make(path)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(reason(path)), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [expected]


def test_a_file_without_permission(tmp_path: Path) -> None:
    """A file that may not be read says so."""
    path = tmp_path / "x.png"
    path.write_bytes(samples()["rgb.png"])
    path.chmod(0)
    if os.geteuid() != 0:
        assert reason(path) == "permission denied"
        return
    # The super-user reads every file: be nobody for a moment, if the way to the file lets nobody through.
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    decode_image(path, "rgb")  # what is imported on the way is imported now
    os.seteuid(65534)
    try:
        message = reason(path)
    finally:
        os.seteuid(0)
    assert message == "permission denied"


@pytest.mark.parametrize(
    "name",
    [
        "a b.png",
        "quote'\".png",
        "comma,.png",
        "line\nend.png",
        "carriage\rreturn.png",
        "🙂.png",
        "bad\udcff\udc80.png",
        "=1+1.png",
        "-rf.png",
        "%s{0}.png",
        "\x1b[31m.png",
    ],
)
def test_any_name(name: str, tmp_path: Path) -> None:
    """Whatever bytes a name has, the file is read, and a broken one has its reason."""
    path = tmp_path / name
    path.write_bytes(samples()["rgb.png"])
    decode_image(path, "rgb")
    path.write_bytes(b"broken")
    assert reason(path) == "not an image in a known format"


def test_a_file_cut_short_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program shortens between header and pixels is an error, not the end of the process."""
    for kind, mode in (("BMP", "L"), ("TIFF", "L"), ("PPM", "L")):
        path = tmp_path / "x"
        path.write_bytes(saved(picture(2000, 2000).convert(mode), kind))
        from imbalance_perturb.data import raster

        original = raster._refuse_unusable

        def cut(image: Image.Image, original: Callable[[Image.Image], None] = original, path: Path = path) -> None:
            original(image)
            os.truncate(path, 20000)

        monkeypatch.setattr(raster, "_refuse_unusable", cut)
        assert "truncated" in reason(path)
        monkeypatch.undo()


def test_a_replaced_file_is_read_as_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file replaced during the decode gives the pixels of one of the two, never a mixture."""
    from imbalance_perturb.data import raster

    path, other = tmp_path / "x.png", tmp_path / "y"
    path.write_bytes(samples()["rgb16.png"])
    whole = [np.asarray(plane) for plane in decode_image(path, "rgb")]  # type: ignore[union-attr]
    original = raster._read_colours

    def replace(*args: object) -> object:
        other.write_bytes(samples()["rgb.png"])
        other.replace(path)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(raster, "_read_colours", replace)
    found = [np.asarray(plane) for plane in decode_image(path, "rgb")]  # type: ignore[union-attr]
    np.testing.assert_array_equal(found, whole)

"""HEIC, AVIF and JPEG 2000: read exactly, or refused with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.errors import ImageError
from tests.image_samples import deep, heic, picture, saved
from tests.unit.data.test_dicom import array


def decode(folder: Path, data: bytes, color: str = "rgb", **options: Any) -> Any:
    path = folder / "image"  # no suffix: content says what it is
    path.write_bytes(data)
    return decode_image(path, color, **options)


def with_depth(data: bytes, bits: int, *, signed: bool = False) -> bytes:
    """A JPEG 2000 codestream whose channels state another depth."""
    changed, start = bytearray(data), data.index(b"\xff\x4f\xff\x51")
    for channel in range(int.from_bytes(data[start + 40 : start + 42], "big")):
        changed[start + 42 + 3 * channel] = bits - 1 | 0x80 * signed
    return bytes(changed)


def test_jpeg_2000_without_loss(tmp_path: Path) -> None:
    """8 bits in colour, gray and with alpha, as a file and as a bare codestream, come as they were written."""
    rgb = picture(25, 33)
    for image in (rgb, rgb.convert("L"), rgb.convert("RGBA"), rgb.convert("LA")):
        for options in ({}, {"no_jp2": True}):
            for color, mode in (("rgb", "RGB"), ("gray", "L")):
                found = decode(tmp_path, saved(image, "JPEG2000", **options), color)
                assert found.mode == mode
                assert (array(found) == np.asarray(image.convert(mode))).all()


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_deep_gray_jpeg_2000(bits: int, tmp_path: Path) -> None:
    """9 to 16 bits of gray are scaled by the highest number of their bits, or by max_value."""
    values = deep(1, highest=2**bits - 1)
    # The codestream holds differences from the middle of the range, so that of 16 bits has to be moved there.
    moved = values + np.uint16(2**15 - 2 ** (bits - 1))
    data = with_depth(saved(Image.fromarray(moved), "JPEG2000", no_jp2=True), bits)
    np.testing.assert_allclose(array(decode(tmp_path, data)), values * (255 / (2**bits - 1)), rtol=1e-5, atol=1e-4)
    if bits == 16:
        with pytest.raises(ImageError, match="the highest pixel is 65535, above the 4095 expected"):
            decode(tmp_path, data, max_value=4095)


def test_jpeg_2000_that_would_lose_is_refused(tmp_path: Path) -> None:
    """Deep or shallow colours, signed pixels and unknown colour spaces are refused, not rounded or mistaken."""
    rgb = saved(picture(), "JPEG2000", no_jp2=True)
    with pytest.raises(ImageError, match="JPEG 2000 of 12 bits in 3 channels cannot be read without loss"):
        decode(tmp_path, with_depth(rgb, 12))
    with pytest.raises(ImageError, match="JPEG 2000 of 5 bits in 3 channels"):
        decode(tmp_path, with_depth(rgb, 5))
    with pytest.raises(ImageError, match="signed pixels"):
        decode(tmp_path, with_depth(rgb, 8, signed=True))
    boxes = saved(picture(), "JPEG2000")
    lab = boxes.replace(b"colr\1\0\0\0\0\0\x10", b"colr\1\0\0\0\0\0\x0e")
    assert lab != boxes
    with pytest.raises(ImageError, match="in the colour space 14, which is not read"):
        decode(tmp_path, lab)


def test_avif(tmp_path: Path) -> None:
    """8 bits are read; what is turned in the file is upright without being asked for; 10 bits are refused."""
    rgb = picture(25, 33)
    pixels = array(decode(tmp_path, saved(rgb, "AVIF", quality=100, subsampling="4:4:4")))
    np.testing.assert_allclose(pixels.astype(int), np.asarray(rgb), atol=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(rgb, "AVIF", quality=100, exif=exif)
    for asked in (False, True):
        assert decode(tmp_path, turned, exif_orientation=asked).size == (25, 33)
    data = saved(rgb, "AVIF")
    start = data.index(b"av1C") + 6
    for flag, bits in ((0x40, 10), (0x60, 12)):
        with pytest.raises(ImageError, match=f"AVIF of {bits} bits cannot be read without loss"):
            decode(tmp_path, data[:start] + bytes([data[start] | flag]) + data[start + 1 :])


def test_an_avif_may_name_itself_second(tmp_path: Path) -> None:
    """The first brand of a file can be one that HEIC has, too."""
    data = saved(picture(), "AVIF").replace(b"ftypavif\0\0\0\0avif", b"ftypmif1\0\0\0\0avif")
    assert decode(tmp_path, data).size == picture().size


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_heic_without_loss(bits: int, tmp_path: Path) -> None:
    """8 bits come as they are, 10 and 12 scaled by their own range; an odd width has no gaps."""
    pytest.importorskip("pillow_heif", reason="needs pillow-heif (the extra heif)")
    values = np.asarray(picture(26, 34)) if bits == 8 else deep(3, 26, 34, highest=2**bits - 1)
    found = array(decode(tmp_path, heic(values, bits)))
    np.testing.assert_allclose(found, values * (255 / (2**bits - 1)), rtol=1e-5, atol=1e-4)
    gray = decode(tmp_path, heic(values, bits), "gray")
    assert gray.mode == ("L" if bits == 8 else "F")


def test_heic_gray_alpha_and_turned(tmp_path: Path) -> None:
    """Gray stays gray, alpha is dropped, and the file's own turn is applied once."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif (the extra heif)")
    rgb = picture(26, 34)
    gray = np.asarray(rgb.convert("L"))
    np.testing.assert_allclose(array(decode(tmp_path, heic(gray), "gray")).astype(int), gray, atol=2)
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    for image, size in ((clear, (34, 26)), (rgb, (26, 34))):
        exif = Image.Exif()
        exif[0x0112] = 1 if size == (34, 26) else 6
        path = tmp_path / "made.heic"
        pillow_heif.from_pillow(image).save(path, quality=100, exif=exif.tobytes())
        for asked in (False, True):
            found = decode(tmp_path, path.read_bytes(), exif_orientation=asked)
            assert (found.mode, found.size) == ("RGB", size)
            assert np.asarray(found).max() > 200


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra, or a Pillow built without a format, is a reason with its remedy, by suffix and content."""
    heic_head = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + b"\0" * 40
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"a HEIC file; to read it, pip install 'imbalance-perturb\[heif\]'"):
        decode(tmp_path, heic_head)
    monkeypatch.setattr(features, "check", lambda feature: False)
    for kind, word in (("AVIF", "an AVIF file"), ("JPEG2000", "a JPEG 2000 file")):
        data = {"AVIF": b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf", "JPEG2000": b"\xff\x4f\xff\x51"}[kind]
        with pytest.raises(ImageError, match=f"{word}, which this Pillow was built without; pip install -U pillow"):
            decode(tmp_path, data + b"\0" * 99)


@pytest.mark.parametrize(
    ("name", "head", "reason"),
    [
        ("x.jxl", b"\xff\x0a\0\0", "a JPEG XL, which is not read; convert it to PNG"),
        ("x", b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        ("x.svg", b"<?xml version='1.0'?><svg/>", "a drawing without pixels"),
        ("x.psd", b"8BPS\0\1", "a picture in layers"),
        ("x.pdf", b"%PDF-1.7", "a document"),
        ("x.mp4", b"\0\0\0\x20ftypisom\0\0\0\0isomiso2", "a video, which is not read; export the frames"),
        ("x.mkv", b"\x1a\x45\xdf\xa3", "a video"),
        ("x.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
        ("x.raf", b"FUJIFILMCCD-RAW 0201", "a camera's raw file"),
        ("x.mrw", b"anything", "a camera's raw file"),
        ("x.exr", b"\x76\x2f\x31\x01", "floating-point"),
        ("x.nii.gz", b"\x1f\x8b\x08", "a volume of slices"),
        ("x.heic", b"no picture at all", "not an image in a known format"),
    ],
)
def test_pictures_that_are_not_read_say_what_they_are(name: str, head: bytes, reason: str, tmp_path: Path) -> None:
    """By content, or by suffix where content says nothing, with what to do instead."""
    (tmp_path / name).write_bytes(head + b"\0" * 600)
    with pytest.raises(ImageError) as caught:
        decode_image(tmp_path / name, "rgb")
    assert reason in str(caught.value)


def test_a_raw_files_thumbnail_is_not_its_picture(tmp_path: Path) -> None:
    """A TIFF inside a camera's raw file, by suffix or by what it says itself, is refused, else read."""
    for name in ("x.nef", "x.dng", "x.CR2"):
        (tmp_path / name).write_bytes(saved(picture(), "TIFF"))
        with pytest.raises(ImageError, match="a camera's raw file, which is not read; develop it"):
            decode_image(tmp_path / name, "rgb")
    for tag, value in ((254, 1), (50706, b"\1\4\0\0")):
        with pytest.raises(ImageError, match="only a small copy of the picture"):
            decode(tmp_path, saved(picture(), "TIFF", tiffinfo={tag: value}))
    assert decode(tmp_path, saved(picture(), "TIFF", tiffinfo={254: 0})).size == picture().size
    (tmp_path / "x.nef").write_bytes(saved(picture(), "JPEG"))
    assert decode_image(tmp_path / "x.nef", "rgb").size == picture().size  # type: ignore[union-attr]

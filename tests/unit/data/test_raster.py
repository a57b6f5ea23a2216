from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.data.pixels import Peak, find_peak
from imbalance_perturb.errors import ImageError
from tests.image_samples import deep, picture, png16, saved, tiff

LUMA = (0.299, 0.587, 0.114)


def decode(folder: Path, data: bytes, color: str = "rgb", **options: Any) -> Any:
    path = folder / "image"
    path.write_bytes(data)
    return decode_image(path, color, **options)


def array(pixels: Any) -> np.ndarray:
    """(H, W) or (H, W, C) pixels in [0, 255]."""
    return np.stack([np.asarray(p) for p in pixels], -1) if isinstance(pixels, tuple) else np.asarray(pixels)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("PNG", "1", {}),
        ("PNG", "L", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "P", {"transparency": bytes(range(16))}),
        ("PNG", "RGBA", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "1", {"compression": "group4"}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("PPM", "RGB", {}),
        ("PPM", "L", {}),
    ],
)
def test_eight_bits_are_what_torchvision_loads(kind: str, mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Pixels equal those of torchvision's loader, convert("RGB"): alpha and transparency are dropped, not blended."""
    image = picture().quantize(16) if mode == "P" else picture().convert(mode)
    data = saved(image, kind, **options)
    pixels = decode(tmp_path, data)
    assert pixels.mode == "RGB"
    with Image.open(tmp_path / "image") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(array(pixels), np.asarray(opened.convert("RGB")))
        np.testing.assert_array_equal(array(decode(tmp_path, data, "gray")), np.asarray(opened.convert("L")))


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    """Colour below a transparent pixel counts, as it did in training; nothing is blended onto black or white."""
    rgba = Image.new("RGBA", (3, 2), (10, 200, 30, 0))
    assert decode(tmp_path, saved(rgba, "PNG")).getpixel((1, 1)) == (10, 200, 30)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """CMYK as Adobe writes it, inverted, shows the picture's colours, not their negative."""
    pixels = array(decode(tmp_path, saved(picture().convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert np.abs(pixels - np.asarray(picture())).mean() < 5


def test_ycck_jpeg(tmp_path: Path) -> None:
    """YCCK, which Adobe's marker announces with 2, shows the same colours as CMYK."""
    flat = Image.new("RGB", (16, 16), (200, 60, 90))
    # Adobe puts cyan, magenta and yellow where red, green and blue belong, and black inverted; Pillow inverts what
    # it saves.
    y, cb, cr = ImageOps.invert(flat).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
    stored = Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, 0))
    data = saved(stored, "JPEG", quality=100)
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data = data[: marker + 11] + b"\2" + data[marker + 12 :]
    np.testing.assert_allclose(array(decode(tmp_path, data))[8, 8], (200, 60, 90), atol=3)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_is_exact(channels: int, interlaced: bool, tmp_path: Path) -> None:
    """Every 16-bit PNG, gray or colour, with alpha or without, keeps all its bits."""
    values = deep(channels)
    data = png16(values, interlaced=interlaced)
    colours = values if channels == 1 else values[..., : 1 if channels == 2 else 3].squeeze()
    np.testing.assert_allclose(array(decode(tmp_path, data)), colours * (255 / 65535), rtol=1e-6)
    gray = colours if colours.ndim == 2 else colours @ np.array(LUMA)
    np.testing.assert_allclose(array(decode(tmp_path, data, "gray")), gray * (255 / 65535), rtol=1e-5)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("channels", "extra"), [(1, None), (3, None), (4, 0), (4, 2)])
def test_sixteen_bit_tiff_is_exact(channels: int, extra: int | None, order: str, deflate: bool, tmp_path: Path) -> None:
    """Every 16-bit TIFF, in either byte order, compressed or not, keeps all its bits."""
    values = deep(channels)
    data = tiff(values, order=order, deflate=deflate, extra=extra)
    expected = values if channels == 1 else values[..., :3]
    np.testing.assert_allclose(array(decode(tmp_path, data)), expected * (255 / 65535), rtol=1e-6)


def test_twelve_bit_tiff_and_white_is_zero(tmp_path: Path) -> None:
    """12 bits have 4095 for white; a TIFF whose white is 0 is inverted."""
    values = deep(1, 4, 6, highest=4095)
    np.testing.assert_allclose(array(decode(tmp_path, tiff(values, bits=12))), values * (255 / 4095), rtol=1e-6)
    inverted = array(decode(tmp_path, tiff(values, photometric=0)))
    np.testing.assert_allclose(inverted, 255 - values * (255 / 65535), rtol=1e-5)


def test_sixteen_bit_pgm_states_its_own_range(tmp_path: Path) -> None:
    """A PGM whose header says 1000 has white at 1000, whatever max_value is."""
    values = deep(1, highest=1000)
    data = b"P5 9 6 1000\n" + values.astype(">u2").tobytes()
    for max_value in (None, 4095):
        # Pillow rounds to the 16-bit range.
        pixels = array(decode(tmp_path, data, max_value=max_value))
        np.testing.assert_allclose(pixels, values * (255 / 1000), atol=255 / 65535)


@pytest.mark.parametrize("make", [lambda values: png16(values), lambda values: tiff(values)])
@pytest.mark.parametrize("channels", [1, 3])
def test_max_value_is_white(channels: int, make: Any, tmp_path: Path) -> None:
    """With max_value that value is white; a pixel above it is an error that names the highest."""
    values = deep(channels, highest=4095)
    pixels = array(decode(tmp_path, make(values), max_value=4095))
    np.testing.assert_allclose(pixels, values * (255 / 4095), rtol=1e-6)
    assert pixels.max() == 255
    with pytest.raises(ImageError, match="the highest pixel is 4095, above the 4000 expected; give --max-value 4095"):
        decode(tmp_path, make(values), max_value=4000)
    # 8 bits have one range only.
    assert decode(tmp_path, saved(picture(), "PNG"), max_value=100).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.full((4, 5), np.nan, np.float32), sample_format=3), "floating-point numbers with no known range"),
        (tiff(np.ones((4, 5), np.uint32)), "32-bit whole numbers with no known range"),
        (tiff(np.ones((4, 5), np.int16), sample_format=2), "signed pixels"),
        (tiff(np.ones((4, 5), np.int8), sample_format=2), "signed pixels"),
        (tiff(deep(4), extra=1), "16-bit pixels of the kind RGBa cannot be read without loss"),
        (tiff(deep(4), photometric=5), "16-bit pixels of the kind CMYK cannot be read without loss"),
        (tiff(np.ones((4, 5), np.float16), sample_format=3), "floating-point numbers with no known range"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a document, which is not read"),
    ],
)
def test_pixels_without_a_meaning_are_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    """Pixels whose range is unknown, or that Pillow would return wrong, are refused with the reason."""
    with pytest.raises(ImageError, match=reason):
        decode(tmp_path, data)


def test_first_frames(tmp_path: Path) -> None:
    """Of an animated GIF, WebP or PNG the first frame counts; several pages of a TIFF are refused with their number."""
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        pixels = decode(tmp_path, saved(first, kind, save_all=True, append_images=[second], **options))
        assert pixels.getpixel((3, 3)) == (255, 0, 0), kind
    with pytest.raises(ImageError, match="TIFF with 3 pages; split it into one file a page"):
        decode(tmp_path, saved(first, "TIFF", save_all=True, append_images=[second, second]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_a_switch(kind: str, orientation: int, tmp_path: Path) -> None:
    """Pixels lie as they are stored, as torchvision loads them; with the switch they are turned upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), kind, exif=exif)
    stored = decode(tmp_path, data)
    assert stored.size == picture().size
    turned = decode(tmp_path, data, exif_orientation=True)
    with Image.open(tmp_path / "image") as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    np.testing.assert_array_equal(array(turned), np.asarray(expected))
    assert turned.size == (stored.size if orientation < 5 else stored.size[::-1])


def test_a_tiff_is_always_upright(tmp_path: Path) -> None:
    """Pillow turns a TIFF itself, so torchvision's users have it upright: the switch turns it no second time."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), "TIFF", exif=exif)
    for switch in (False, True):
        assert decode(tmp_path, data, exif_orientation=switch).size == picture().size[::-1]


def test_sixteen_bit_colours_are_turned_too(tmp_path: Path) -> None:
    """Each channel of a 16-bit PNG is turned, and its EXIF is read without losing its bits."""
    values = deep(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = png16(values)
    chunk = exif.tobytes()[6:]
    piece = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    for place in (33, len(plain) - 12):  # before and after the pixels
        pixels = array(decode(tmp_path, plain[:place] + piece + plain[place:], exif_orientation=True))
        np.testing.assert_allclose(pixels, np.rot90(values, -1) * (255 / 65535), rtol=1e-6)


def smooth(height: int, width: int) -> Image.Image:
    """A picture without detail of single pixels, as photographs are."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_may_be_decoded_smaller(mode: str, tmp_path: Path) -> None:
    """By 2, 4 or 8, not below the sides asked for; then resized it is nearly the whole picture resized."""
    data = saved(smooth(240, 400).convert(mode), "JPEG", quality=95)
    whole = decode(tmp_path, data)
    assert whole.size == (400, 240)
    for least, size in (((120, 200), (200, 120)), ((60, 100), (100, 60)), ((1, 1), (50, 30))):
        assert decode(tmp_path, data, draft_size=lambda height, width, least=least: least).size == size
    for least in ((121, 200), (120, 201), (1000, 1000)):
        found = decode(tmp_path, data, draft_size=lambda height, width, least=least: least)
        np.testing.assert_array_equal(array(found), array(whole))
    reduced = decode(tmp_path, data, draft_size=lambda height, width: (height // 2, width // 2))
    both = [array(pixels.resize((100, 60), Image.Resampling.BILINEAR)).astype(float) for pixels in (whole, reduced)]
    assert 0 < np.abs(both[0] - both[1]).mean() < 2


def test_only_jpegs_are_decoded_smaller(tmp_path: Path) -> None:
    """Other formats have no such thing."""
    for kind in ("PNG", "TIFF", "BMP", "WEBP"):
        data = saved(smooth(240, 400), kind)
        whole = array(decode(tmp_path, data))
        np.testing.assert_array_equal(array(decode(tmp_path, data, draft_size=lambda height, width: (1, 1))), whole)


def test_damaged_exif_matters_only_with_the_switch(tmp_path: Path) -> None:
    """With the switch an unknown orientation is an error; without it nobody asks."""
    data = saved(picture(), "JPEG", exif=b"Exif\0\0not exif at all")
    assert decode(tmp_path, data).mode == "RGB"
    with pytest.raises(ImageError, match="EXIF data are damaged"):
        decode(tmp_path, data, exif_orientation=True)


def test_a_truncated_image_is_an_error_even_where_others_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that told Pillow to accept truncated files does not get gray areas predicted."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(picture(200, 200), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode(tmp_path, data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_highest_pixel_of_more_than_8_bits_is_known(tmp_path: Path) -> None:
    """Of PNG and TIFF, gray or colour, turned or inverted; not where white is stated, nor of 8 bits."""
    gray, colours = deep(1, 6, 10, highest=4000), deep(3, highest=4000)
    turned = Image.Exif()
    turned[0x0112] = 6
    for data, white in (
        (png16(gray), 65535),
        (png16(colours), 65535),
        (saved(Image.fromarray(gray), "PNG", exif=turned), 65535),
        (tiff(gray, photometric=0), 65535),
        (tiff(colours), 65535),
        (tiff(gray, bits=12), 4095),
        (saved(Image.fromarray(gray), "JPEG2000", no_jp2=True), 65535),
    ):
        for color in ("rgb", "gray"):
            assert find_peak(decode(tmp_path, data, color, exif_orientation=True)) == Peak(4000, white)
            assert find_peak(decode(tmp_path, data, color, max_value=4095)) is None
    named = PngInfo()
    named.add_text("peak", "9")
    pgm = b"P5 10 6 4000\n" + gray.astype(">u2").tobytes()
    for data in (pgm, saved(picture(), "PNG", pnginfo=named), saved(picture(), "JPEG")):
        assert find_peak(decode(tmp_path, data)) is None


@pytest.mark.parametrize("maximum", [1023, 65535])
def test_colours_of_more_than_8_bits_in_a_ppm_are_read_without_loss(maximum: int, tmp_path: Path) -> None:
    """Binary or plain, by the range that the header states; Pillow alone rounds them to 8 bits."""
    values = deep(3, highest=maximum)
    height, width = values.shape[:2]
    head = f"P6 # a comment\n{width} {height}\n{maximum}\n".encode()
    plain = head.replace(b"P6", b"P3") + " ".join(map(str, values.ravel())).encode() + b"\n"
    expected = values * (255 / maximum)
    for data in (head + values.astype(">u2").tobytes(), plain):
        np.testing.assert_allclose(array(decode(tmp_path, data)), expected, atol=1e-4)
    with pytest.raises(ImageError, match="the file is truncated"):
        decode(tmp_path, head + values.astype(">u2").tobytes()[:-2])
    if maximum < 65535:
        with pytest.raises(ImageError, match=f"the highest pixel is 65535, above the {maximum} that the file states"):
            decode(tmp_path, head + np.full(values.shape, 65535, ">u2").tobytes())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "known format, but a Git LFS pointer in its place; get it with git lfs",
        ),
        (b"\n<!DOCTYPE html><html>", "an HTML page in its place; download it again"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "notes of macOS on another file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Windows or Office file"),
        (b"PK\3\4" + bytes(40), "a zip archive; unpack it"),
        (b"\x1f\x8b" + bytes(40), "a gzip-compressed file; unpack it"),
        (b"PF\n2 1\n-1.0\n" + bytes(24), "a picture of floating-point numbers, which is not read"),
        (b"hello", "not an image in a known format"),
    ],
)
def test_what_only_has_a_picture_s_name_is_told(data: bytes, reason: str, tmp_path: Path) -> None:
    """What stands in the place of images after a clone without LFS, a failed download, a copy from a Mac."""
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ImageError) as refused:
        decode_image(tmp_path / "x.jpg", "rgb")
    assert reason in str(refused.value)

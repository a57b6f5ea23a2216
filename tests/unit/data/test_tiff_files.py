"""TIFF against tifffile, an independent reader: which page is the picture, and 16 bits that Pillow does not read."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.data.pixels import Peak, find_peak
from imbalance_perturb.errors import ImageError
from tests.image_samples import deep, picture, saved

SMALL, THUMBNAIL, MASK = (slice(None, None, 2),) * 2, {"subfiletype": 1}, {"subfiletype": 4}


def pages(*written: tuple[np.ndarray, dict[str, Any]], **options: Any) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, **options) as file:
        for values, own in written:
            file.write(values, **({"photometric": "rgb" if values.ndim == 3 else "minisblack"} | own))
    return stream.getvalue()


def decoded(tmp_path: Path, data: bytes, **options: Any) -> np.ndarray:
    path = tmp_path / "x.tif"
    path.write_bytes(data)
    found = decode_image(path, "rgb", **options)
    return np.stack([np.asarray(plane) for plane in found], -1) if isinstance(found, tuple) else np.asarray(found)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(tmp_path, data)
    return str(caught.value)


@pytest.mark.parametrize("bits", [8, 16])
def test_smaller_copies_and_masks_are_not_the_picture(bits: int, tmp_path: Path) -> None:
    """A thumbnail behind or before it, a pyramid of tiles, a mask: the one page that is none of them is read."""
    whole = np.asarray(picture(32, 48)) if bits == 8 else deep(3, 32, 48)
    expected = whole if bits == 8 else whole * (255 / 65535)
    small, tiled = whole[SMALL], {"tile": (16, 16)}
    mask = np.zeros(whole.shape[:2], bool)
    for data in (
        pages((whole, {}), (small, THUMBNAIL)),
        pages((small, THUMBNAIL), (whole, {})),
        pages((whole, tiled), (small, THUMBNAIL | tiled), (small[SMALL], THUMBNAIL | tiled), bigtiff=True),
        pages((whole, {}), (mask, MASK)),
        pages((small, THUMBNAIL | {"compression": "deflate"}), (whole, {"compression": "deflate"}), byteorder=">"),
        pages((whole, {"subifds": 1}), (small, THUMBNAIL)),
        pages((whole, {}), (small, {"extratags": [(255, 3, 1, 2, True)]})),
    ):
        np.testing.assert_allclose(decoded(tmp_path, data), expected, atol=1e-4)


def test_the_page_that_is_read_is_turned_as_it_says(tmp_path: Path) -> None:
    """Its own orientation counts, not that of the thumbnail before it."""
    whole = np.asarray(picture(12, 20))
    turned = {"extratags": [(274, 3, 1, 6, True)]}
    data = pages((whole[SMALL], THUMBNAIL), (whole, turned))
    np.testing.assert_array_equal(decoded(tmp_path, data), np.rot90(whole, -1))
    np.testing.assert_array_equal(decoded(tmp_path, pages((whole[SMALL], THUMBNAIL | turned), (whole, {}))), whole)


def test_several_pictures_or_none_are_refused(tmp_path: Path) -> None:
    """Which of two is meant is not guessed; a copy alone is no picture."""
    whole = np.asarray(picture())
    two = (whole, {}), (whole[SMALL], THUMBNAIL), (whole, {})
    assert refused(tmp_path, pages(*two)) == "TIFF with 3 pages; split it into one file a page"
    assert "only a small copy" in refused(tmp_path, pages((whole, THUMBNAIL), (whole[SMALL], THUMBNAIL)))
    planar = {"planarconfig": "separate", "photometric": "rgb"}
    both = np.moveaxis(deep(3), -1, 0)
    assert "TIFF with 2 pages" in refused(tmp_path, pages((both, planar), (both, planar)))
    extra = {"compression": "png"}
    assert "TIFF with 2 pages" in refused(tmp_path, pages((deep(3), extra), (deep(3), extra)))


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_planes_of_16_bits_are_read_without_loss(compression: str | None, tmp_path: Path) -> None:
    """Pillow would keep one byte of them; turned as the file says, and with its peak known."""
    values = deep(3, 10, 16, highest=4000)
    planar = {"planarconfig": "separate", "photometric": "rgb", "compression": compression}
    planes = np.moveaxis(values, -1, 0)
    for byteorder in "<>":
        found = decoded(
            tmp_path, pages((planes, planar), (planes[:, ::2, ::2], planar | THUMBNAIL), byteorder=byteorder)
        )
        np.testing.assert_allclose(found, values * (255 / 65535), atol=1e-4)
    assert find_peak(decode_image(tmp_path / "x.tif", "rgb")) == Peak(4000, 65535)
    np.testing.assert_allclose(
        decoded(tmp_path, pages((planes, planar)), max_value=4095), values * (255 / 4095), atol=1e-4
    )
    for number in range(1, 9):
        stated = {"extratags": [(274, 3, 1, number, True)]}
        # Of 8 bits Pillow turns it.
        eighths = (values >> 8).astype(np.uint8)
        np.testing.assert_array_equal(
            np.rint(decoded(tmp_path, pages((np.moveaxis(eighths.astype(np.uint16) * 257, -1, 0), planar | stated)))),
            decoded(tmp_path, pages((eighths, stated))),
        )


@pytest.mark.parametrize("compression", ["jpeg2000", "png"])
def test_16_bits_in_compressions_that_pillow_lacks_are_read(compression: str, tmp_path: Path) -> None:
    """Gray, white as zero, and colours; with alpha, which is dropped."""
    gray, colours, both = deep(1), deep(3), deep(4)
    for values, options, expected in (
        (gray, {"photometric": "minisblack"}, gray),
        (gray, {"photometric": "miniswhite"}, 65535 - gray),
        (colours, {"photometric": "rgb"}, colours),
        (both, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, both[..., :3]),
    ):
        data = pages((values, options | {"compression": compression}))
        np.testing.assert_allclose(decoded(tmp_path, data), expected * (255 / 65535), atol=1e-4)


def test_pixels_of_no_known_range_are_refused_by_their_kind(tmp_path: Path) -> None:
    """Also where Pillow knows nothing of them: floats, signed, 32 bits; alpha that is multiplied in; inks."""
    colours, both = deep(3), deep(4)
    unknown = "begins like a TIFF but cannot be read as one: damaged, or of a rare kind"
    for values, options, reason in (
        (colours.astype(np.float32), {}, "pixels are floating-point numbers with no known range"),
        ((colours[..., 0] / 65535).astype(np.float16), {}, "pixels are floating-point numbers with no known range"),
        (colours.astype(np.int16), {}, "TIFF with signed pixels"),
        (colours.astype(np.uint32), {}, "pixels are 32-bit whole numbers with no known range"),
        (both, {"extrasamples": ["assocalpha"], "compression": "png"}, unknown),
        (both, {"photometric": "separated", "compression": "png"}, unknown),
        (colours, {"photometric": "cielab"}, unknown),
    ):
        assert reason in refused(tmp_path, pages((values, options)))
    assert unknown in refused(tmp_path, pages((colours, {"compression": "png"}))[:60])
    planar = pages((np.moveaxis(colours, -1, 0), {"planarconfig": "separate", "photometric": "rgb"}))
    assert "separate planes" in refused(tmp_path, planar[:-1])
    unknown_main = (colours[SMALL].astype(np.uint8), THUMBNAIL), (colours.astype(np.float64), {})
    assert "only a small copy" in refused(tmp_path, pages(*unknown_main))


def test_strips_and_tiles_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """A height that the file does not fill, or a part of no bytes: refused, at once, and not shown as black."""
    for options in ({"rowsperstrip": 2}, {"tile": (16, 16)}):
        data = pages((deep(3, 32, 32), options | {"compression": "png"}))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            tags = file.pages[0].tags  # type: ignore[union-attr]
            height, counts = tags["ImageLength"].valueoffset, tags["TileByteCounts" if "tile" in options else 279]
        taller = data[:height] + (5_000_000).to_bytes(4, "little") + data[height + 4 :]
        emptied = (
            data[: counts.valueoffset]
            + bytes(counts.valuebytecount)
            + data[counts.valueoffset + counts.valuebytecount :]
        )
        plain = pages((np.asarray(picture()), {"rowsperstrip": 24}))
        with tifffile.TiffFile(io.BytesIO(plain)) as file:
            place = file.pages[0].tags["ImageLength"].valueoffset  # type: ignore[union-attr]
        assert "strips end above the last row" in refused(tmp_path, plain[:place] + b"\x40" + plain[place + 1 :])
        for damaged in (taller, emptied):
            assert "cannot be read as one: damaged" in refused(tmp_path, damaged)


def test_without_tifffile_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would read says how; what it would not, does not."""
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *rest)

    data = pages((deep(3), {"compression": "png"})), pages((deep(3).astype(np.float32), {}))
    monkeypatch.setattr(builtins, "__import__", without)
    remedy = "a TIFF of 16 bits that Pillow cannot read; pip install 'imbalance-perturb[tiff]'"
    assert refused(tmp_path, data[0]) == remedy
    assert "tiff]" not in refused(tmp_path, data[1])


def test_a_png_with_large_texts_is_read(tmp_path: Path) -> None:
    """Up to 64 MiB, packed or not, before or behind the pixels; the limits of the process stay."""
    path, text = tmp_path / "x.png", "workflow " * 300_000
    for packed in (True, False):
        notes = PngInfo()
        notes.add_text("workflow", text, zip=packed)
        notes.add_itxt("prompt", text, zip=packed)
        path.write_bytes(saved(picture(), "PNG", pnginfo=notes))
        assert len(text) > PngImagePlugin.MAX_TEXT_CHUNK
        np.testing.assert_array_equal(
            np.asarray(decode_image(path, "rgb", exif_orientation=True)), np.asarray(picture())
        )
    profile = saved(picture(), "PNG", icc_profile=b"\0" * 2_000_000)
    path.write_bytes(profile)
    np.testing.assert_array_equal(np.asarray(decode_image(path, "rgb")), np.asarray(picture()))
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20
    bomb = PngInfo()
    bomb.add_text("x", "0" * (65 << 20), zip=True)
    Image.new("L", (3, 3)).save(path, pnginfo=bomb)
    with pytest.raises(ImageError, match="texts or profile of the PNG unpack to more than 64 MiB; save it without"):
        decode_image(path, "rgb")

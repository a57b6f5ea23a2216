"""TIFF: which of its pages is the picture, what Pillow would lose or mistake, and the 16 bits that tifffile reads."""

from __future__ import annotations

import logging
import math
from itertools import count
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from imbalance_perturb.data.pixels import Pixels, check_pixel_count, scale_to_white
from imbalance_perturb.errors import ImageError

#: TIFF tags.
BITS, PHOTOMETRIC = 258, 262
_NEW_SUBFILE, _SUBFILE, _LENGTH, _ORIENTATION, _PLANAR, _SAMPLE_FORMAT, _DNG_VERSION = (
    254,
    255,
    257,
    274,
    284,
    339,
    50706,
)

WHITE_IS_ZERO = 0
_REDUCED, _MASK = 1, 4  # bits of the new tag
_OLD_REDUCED = 2  # value of the old one
_SIGNED, _FLOAT = 2, 3
_SEPARATE = 2
_ALPHA = 2  # that is not multiplied into the colours

_GRAYS, _RGB = (0, 1), 2  # photometric interpretations

_SIGNED_PIXELS = "TIFF with signed pixels, of which black and white are not known; convert to unsigned"
_ONLY_SMALL = "holds only a small copy of the picture: a camera's raw file? develop it to TIFF or PNG"

#: To be upright, by the number that a TIFF states: whether rows and columns change places, and which axes are reversed.
_TURNS = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}


def select_page(image: Any) -> bool:
    """Seek to the one page that is the picture: smaller copies of it (thumbnails, pyramids) and masks are not meant.

    Returns:
        Whether Pillow reads it without loss.

    Raises:
        ImageError: if there is no such page, or more than one, or black and white of its pixels are not known.
    """
    if _DNG_VERSION in image.tag_v2:
        raise ImageError(_ONLY_SMALL)
    main: list[int] = []
    unknown: list[int] = []
    for page in count():
        try:
            image.seek(page)
        except SyntaxError:  # of pixels that Pillow does not know, such as a mask's or a camera's
            unknown.append(page)
        except EOFError:
            break
        if not _is_aside(image.tag_v2):
            main.append(page)
    if not main or (len(main) == 1 and main[0] in unknown):
        raise ImageError(_ONLY_SMALL)
    if len(main) > 1:
        raise ImageError(f"TIFF with {page} pages; split it into one file a page")
    image.seek(main[0])
    tags = image.tag_v2
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError(_SIGNED_PIXELS)
    # Of rows that no strip holds Pillow makes black ones.
    if max((extents[3] for _, extents, *_ in image.tile), default=0) < int(tags.get(_LENGTH, 0)):
        raise ImageError("the file is truncated: its strips end above the last row")
    # Of separate planes Pillow keeps one byte without a word.
    colours = max(tags.get(BITS, (1,))) > 8 and not image.mode.startswith("I")
    return not (colours and tags.get(_PLANAR) == _SEPARATE)


def _is_aside(tags: Any) -> bool:
    flags = int(tags.get(_NEW_SUBFILE, 0))
    return bool(flags & (_REDUCED | _MASK)) or int(tags.get(_SUBFILE, 0)) == _OLD_REDUCED


def read_unknown(stream: BinaryIO, color: str, max_value: int | None, error: Exception) -> Pixels:
    """Read a TIFF that Pillow does not know for a picture, if its pixels are 16 bits of gray or RGB.

    Args:
        stream, color, max_value: as for :func:`read_deep`.
        error: to raise for any other.

    Raises:
        ImageError: if black and white of its pixels are not known, or as :func:`read_deep`.
    """
    tags = _find_tags(stream)
    bits, formats = max(tags.get(BITS, (0,)), default=0), tags.get(_SAMPLE_FORMAT, ())
    if _FLOAT in formats:
        raise ImageError("pixels are floating-point numbers with no known range; convert to 8 or 16 bits")
    if _SIGNED in formats:
        raise ImageError(_SIGNED_PIXELS)
    if bits > 16:
        raise ImageError(f"pixels are {bits}-bit whole numbers with no known range; convert to 8 or 16 bits")
    if bits != 16:
        raise error
    return read_deep(stream, None, color, max_value, error)


def _find_tags(stream: BinaryIO) -> Any:
    """The tags of the first page; none where they cannot be read."""
    stream.seek(0)
    try:
        header = stream.read(8)
        header += stream.read(8) if header[2:4] in (b"+\0", b"\0+") else b""
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        stream.seek(tags.next)
        tags.load(stream)
        return {tag: tags[tag] for tag in (BITS, _SAMPLE_FORMAT) if tag in tags}
    except Exception:  # noqa: BLE001 - damaged tags raise anything; the caller has its own reason
        return {}


def read_deep(stream: BinaryIO, page: int | None, color: str, max_value: int | None, error: Exception) -> Pixels:
    """Read 16 bits of a TIFF by tifffile, upright as the file says.

    Args:
        stream: the open file.
        page: which page is the picture; ``None`` if only one is none of :func:`select_page` leaves aside.
        color: ``rgb`` or ``gray``.
        max_value: the pixel value of white; ``None`` is 65,535.
        error: to raise where tifffile is of no help.

    Raises:
        ImageError: if tifffile is not installed, or there are several pages.
    """
    try:
        import tifffile
    except ImportError:
        raise ImageError("a TIFF of 16 bits that Pillow cannot read; pip install 'imbalance-perturb[tiff]'") from None
    # What it says of damaged files the row says; a program's own log has it.
    tifffile.logger().addHandler(logging.NullHandler())
    stream.seek(0)
    try:
        with tifffile.TiffFile(stream) as file:
            pages: list[Any] = list(file.pages) if page is None else [file.pages[page]]
            if page is None:
                pages = [one for one in pages if not _is_aside({tag.code: tag.value for tag in one.tags})]
            found = pages[0]
            values = _read_samples(found) if len(pages) == 1 else None
            orientation = int(found.tags.valueof(_ORIENTATION, 1))
            inverted = int(found.photometric) == WHITE_IS_ZERO
    except ImageError:
        raise
    except Exception as cause:  # a damaged file leads to anything
        raise error from cause
    if len(pages) > 1:
        raise ImageError(f"TIFF with {len(pages)} pages; split it into one file a page")
    if values is None:
        raise error
    swap, reverse = _TURNS.get(orientation, (False, ()))
    values = np.flip(values.swapaxes(0, 1) if swap else values, reverse)
    return scale_to_white(values, 65535, max_value, color, inverted=inverted)


def _read_samples(page: Any) -> npt.NDArray[np.uint16] | None:
    """The pixels (H, W) or (H, W, 3) of a page of 16 bits, gray or RGB, alpha dropped; ``None`` for any other."""
    photometric = int(page.photometric)
    samples = 1 if photometric in _GRAYS else 3 if photometric == _RGB else 0
    if page.dtype != np.uint16 or page.bitspersample != 16 or page.imagedepth != 1 or not samples:
        return None
    extra = [int(one) for one in page.extrasamples]
    if page.samplesperpixel != samples + len(extra) or extra not in ([], [_ALPHA]):
        return None
    check_pixel_count(page.imagelength, page.imagewidth)
    if not _has_all_segments(page):
        return None
    values: npt.NDArray[np.uint16] = page.asarray(maxworkers=1)
    if page.planarconfig == _SEPARATE and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)[..., :samples]
    return values[..., 0] if samples == 1 else values


def _has_all_segments(page: Any) -> bool:
    """Whether all strips or tiles are there that the sides come to: tifffile would fill up with zeros, for minutes."""
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if height < 1 or width < 1:
        return False
    check_pixel_count(height if page.is_tiled else 1, width)
    planes = page.samplesperpixel if page.planarconfig == _SEPARATE else 1
    expected = planes * math.ceil(page.imagelength / height) * math.ceil(page.imagewidth / width)
    return bool(len(page.dataoffsets) == len(page.databytecounts) == expected and min(page.databytecounts) > 0)

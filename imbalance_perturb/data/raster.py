"""Pictures in the formats that Pillow reads, with care where it loses or mistakes pixels."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from imbalance_perturb.data.boxed_pictures import check_available, check_avif, find_jpeg2000_bits, read_heif
from imbalance_perturb.data.picture_formats import HEAD_BYTES, find_kind
from imbalance_perturb.data.pixels import DraftSize, Pixels, check_pixel_count, scale_pixels, scale_to_white
from imbalance_perturb.data.tiff_files import (
    BITS,
    PHOTOMETRIC,
    WHITE_IS_ZERO,
    read_deep,
    read_unknown,
    select_page,
)
from imbalance_perturb.errors import ImageError

#: Formats by Pillow's names. Others are left out on purpose: for some, such as EPS, Pillow starts another program.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")

#: Of a PNG's texts, which are not looked at but for the orientation, as many bytes are unpacked: one, and all together.
_MOST_TEXT, _MOST_TEXTS = 64 << 20, 256 << 20
_ORIENTATION = 0x0112

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow keeps the high byte of 16-bit colours; read in the other byte order it keeps the low one.
_OTHER_ORDER = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}


def read_raster(
    stream: BinaryIO, color: str, max_value: int | None, exif_orientation: bool, draft_size: DraftSize
) -> Pixels:
    """Read the first picture of an image file.

    Args:
        stream: the open file.
        color: ``rgb`` or ``gray``.
        max_value: the pixel value of white in files of more than 8 bits; ``None`` is the highest of the type.
        exif_orientation: whether to turn the picture upright as its EXIF data say.
        draft_size: for the height and width of a JPEG those that it may be decoded at instead, or more; ``None``
            for the whole.

    Raises:
        ImageError: for what is not supported; whatever else Pillow raises is for the caller to word.
    """
    kind = find_kind(stream.read(HEAD_BYTES))
    stream.seek(0)
    if kind == "a HEIC":
        return read_heif(stream, color, max_value)
    with _strict_but_generous(), ExitStack() as opened:
        try:
            image = opened.enter_context(_open(stream, kind))
        except UnidentifiedImageError as error:
            if kind != "a TIFF":
                raise
            return read_unknown(stream, color, max_value, error)
        lossless = image.format != "TIFF" or select_page(image)
        check_pixel_count(image.height, image.width)
        _refuse_unusable(image)
        if not lossless:
            reason = ImageError("16-bit TIFF with its colours in separate planes; convert to interleaved colours")
            return read_deep(stream, image.tell(), color, max_value, reason)
        _shrink_jpeg(image, draft_size)
        pixels = _read(image, stream, color, max_value)
        # Pillow itself has turned a TIFF upright when it loaded it. Asking before would load a PNG too early. In an
        # AVIF the turn is part of the picture, which Pillow reports as EXIF.
        wanted = exif_orientation or image.format == "AVIF"
        turn = None if image.format == "TIFF" or not wanted else _find_turn(image)
        if turn is None:
            return pixels
        if isinstance(pixels, tuple):
            red, green, blue = (plane.transpose(turn) for plane in pixels)
            return red, green, blue
        return pixels.transpose(turn)


def _open(stream: BinaryIO, kind: object) -> Image.Image:
    formats: tuple[str, ...] = FORMATS
    if kind == "an AVIF":
        check_available("avif", "an AVIF")
        check_avif(stream)
        _decode_avif_alone()
        formats = ("AVIF",)
    elif kind == "a JPEG 2000":
        check_available("jpg_2000", "a JPEG 2000")
        formats = ("JPEG2000",)
    stream.seek(0)
    return Image.open(stream, formats=formats)


def _decode_avif_alone() -> None:
    from PIL import AvifImagePlugin

    # Other images are decoded beside it.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _shrink_jpeg(image: Image.Image, draft_size: DraftSize) -> None:
    """Let the decoder itself leave out detail, by a factor of 2, 4 or 8, down to no less than what is asked for."""
    if isinstance(image, JpegImageFile) and (least := draft_size(image.height, image.width)) is not None:
        image.draft(None, (least[1], least[0]))


@contextmanager
def _strict_but_generous() -> Iterator[None]:
    # Some libraries switch the first on for the whole process: the missing part would be predicted as gray. Of the
    # others Pillow allows 1 MiB, which notes of microscopes and image generators are larger than.
    wanted = (
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
        (PngImagePlugin, "MAX_TEXT_CHUNK", _MOST_TEXT),
        (PngImagePlugin, "MAX_TEXT_MEMORY", _MOST_TEXTS),
    )
    before = [getattr(module, name) for module, name, _ in wanted]
    for module, name, value in wanted:
        setattr(module, name, value)
    try:
        yield
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        most = f"{_MOST_TEXT >> 20} MiB"
        raise ImageError(f"texts or profile of the PNG unpack to more than {most}; save it without") from None
    finally:
        for (module, name, _), value in zip(wanted, before, strict=True):
            setattr(module, name, value)


def _refuse_unusable(image: Any) -> None:
    if image.mode == "F":
        raise ImageError("pixels are floating-point numbers with no known range; convert to 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ImageError("pixels are 32-bit whole numbers with no known range; convert to 8 or 16 bits")


def _read(image: Image.Image, stream: BinaryIO, color: str, max_value: int | None) -> Pixels:
    raw_mode = _raw_mode(image)
    if image.format == "JPEG2000" and (bits := find_jpeg2000_bits(stream)) > 8:
        # Pillow has shifted them to the upper end of 16 bits.
        values = np.asarray(image).astype(np.uint16) >> (16 - bits)
        return scale_to_white(values, 2**bits - 1, max_value, color)
    if image.mode.startswith("I"):
        return _scale_gray(image, color, max_value)
    if image.format == "PPM" and (maximum := _find_maximum(image)) > 255:
        return scale_pixels(_read_ppm(image, stream, maximum), 0, maximum, color)
    if ";16" in raw_mode:
        values = _read_colours(image, stream, raw_mode)
        return scale_to_white(values, 65535, max_value, color)
    # As torchvision loads images: alpha is dropped, not blended; CMYK is taken for inverted in JPEG, as Adobe does.
    return image.convert("L" if color == "gray" else "RGB")


def _scale_gray(image: Any, color: str, max_value: int | None) -> Pixels:
    # convert("RGB") would clip everything above 255.
    values = np.asarray(image).astype(np.uint16)
    if image.format == "PPM":
        # Pillow has scaled a PGM, which states its own highest value, to all 16 bits.
        return scale_pixels(values, 0, 65535, color)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    assumed = 2 ** max(tags.get(BITS, (16,))) - 1
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return scale_to_white(values, assumed, max_value, color, inverted=inverted)


def _find_maximum(image: Any) -> int:
    """The highest value that a PPM states, where Pillow has kept it; else 255."""
    args = image.tile[0][3]
    return int(args[1]) if isinstance(args, tuple) and len(args) > 1 and image.mode == "RGB" else 255


def _read_ppm(image: Any, stream: BinaryIO, maximum: int) -> npt.NDArray[Any]:
    # Pillow would round colours to 8 bits.
    decoder, _, offset, _ = image.tile[0]
    length = image.height * image.width * 3
    stream.seek(offset)
    if decoder == "ppm_plain":
        numbers = re.sub(rb"#[^\r\n]*", b"", stream.read()).split()[:length]
        values: npt.NDArray[Any] = np.array([int(number) for number in numbers], dtype=np.uint32)
    else:
        values = np.frombuffer(stream.read(2 * length), dtype=">u2")
    if len(values) < length:
        raise ImageError("the file is truncated")
    if (highest := int(values.max())) > maximum:
        raise ImageError(f"the highest pixel is {highest}, above the {maximum} that the file states")
    return values.reshape(image.height, image.width, 3)


def _read_colours(image: Image.Image, stream: BinaryIO, raw_mode: str) -> npt.NDArray[Any]:
    kind, _, order = raw_mode.partition(";")
    if kind == "LA":
        # Gray and alpha of two bytes each are as long as four channels of one byte each.
        both = _load_as(image, "RGBA")
        return both[..., 0].astype(np.uint16) << 8 | both[..., 1]
    if kind not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
        raise ImageError(f"16-bit pixels of the kind {kind} cannot be read without loss; convert to 16-bit RGB")
    high = np.asarray(image)[..., :3].astype(np.uint16)
    stream.seek(0)
    with Image.open(stream, formats=FORMATS) as again:
        again.seek(image.tell())
        return high << 8 | _load_as(again, f"{kind};{_OTHER_ORDER[order]}")[..., :3]


def _load_as(image: Any, raw_mode: str) -> npt.NDArray[np.uint8]:
    tiles = []
    for codec, extents, offset, args in image.tile:
        tiles.append((codec, extents, offset, raw_mode if isinstance(args, str) else (raw_mode, *args[1:])))
    image.tile = [
        type(old)(*new) if hasattr(old, "_fields") else new for old, new in zip(image.tile, tiles, strict=True)
    ]
    return np.asarray(image)


def _raw_mode(image: Any) -> str:
    """Name the layout of the pixels in the file in Pillow's words, such as ``RGB;16B``."""
    args = image.tile[0][3] if image.tile else ""
    return str(args if isinstance(args, str) else args[0] if args else "")


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    try:
        exif = image.getexif()  # with a PNG's that follow its pixels, and with XMP
        if data := image.info.get("exif"):
            # Asked for the second time, damaged data look like none to Pillow, and it asks itself while opening.
            Image.Exif().load(data)
        return _TRANSPOSES.get(exif.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken EXIF raises anything
        raise ImageError("its EXIF data are damaged, so its orientation is not known; repair or remove them") from None

"""HEIC, AVIF and JPEG 2000, files of boxes in boxes: what their decoders would lose or mistake is found first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, features

from imbalance_perturb.data.pixels import Pixels, check_highest, check_pixel_count, scale_pixels
from imbalance_perturb.errors import ImageError

#: No box but that of the pixels is longer.
_MOST_BYTES = 8 << 20

_CODESTREAM = b"\xff\x4f\xff\x51"
_SIZ_BYTES = 40

# Of JPEG 2000's enumerated colour spaces those that Pillow knows: CMYK, sRGB, gray, YCC.
_COLOUR_SPACES = (12, 16, 17, 18)


def check_available(feature: str, name: str) -> None:
    """Refuse a format that this Pillow was built without.

    Raises:
        ImageError: naming the remedy.
    """
    if not features.check(feature):
        raise ImageError(f"{name} file, which this Pillow was built without; pip install -U pillow, or convert it")


def check_avif(stream: BinaryIO) -> None:
    """Refuse an AVIF of more than 8 bits: Pillow would round it to 8 without a word.

    Raises:
        ImageError: with the number of bits.
    """
    for name, content in _iter_boxes(stream):
        if name not in (b"meta", b"moov"):
            continue
        start = content.find(b"av1C")
        while start >= 0:
            flags = content[start + 6 : start + 7]
            if flags and flags[0] & 0x40:
                bits = 12 if flags[0] & 0x20 else 10
                raise ImageError(f"AVIF of {bits} bits cannot be read without loss; convert it to a 16-bit PNG or TIFF")
            start = content.find(b"av1C", start + 4)


def find_jpeg2000_bits(stream: BinaryIO) -> int:
    """Find the bits of each channel of a JPEG 2000: 8, or 9 to 16 where it is gray.

    Raises:
        ImageError: for what Pillow does not read exactly.
    """
    colour_spaces: list[int] = []
    stream.seek(0)
    header = stream.read(_SIZ_BYTES + 3 * 16)
    if not header.startswith(_CODESTREAM):
        header = b""
        for name, content in _iter_boxes(stream):
            if name == b"jp2h":
                colour_spaces = _find_colour_spaces(content)
            elif name == b"jp2c":
                header = content
                break
    if not header.startswith(_CODESTREAM) or len(header) < _SIZ_BYTES + 2:
        raise ImageError("begins like a JPEG 2000 but cannot be read as one: damaged, or of a rare kind")
    if unknown := [space for space in colour_spaces if space not in _COLOUR_SPACES]:
        raise ImageError(f"JPEG 2000 in the colour space {unknown[0]}, which is not read; convert it to RGB")
    channels = int.from_bytes(header[_SIZ_BYTES : _SIZ_BYTES + 2], "big")
    depths = header[_SIZ_BYTES + 2 : _SIZ_BYTES + 2 + 3 * channels : 3]
    if not depths or len(depths) != channels:
        raise ImageError(f"JPEG 2000 with {channels} channels is not read")
    if any(depth & 0x80 for depth in depths):
        raise ImageError("JPEG 2000 with signed pixels, of which black and white are not known; convert to unsigned")
    bits = sorted({depth + 1 for depth in depths})
    if bits == [8] or (channels == 1 and 9 <= bits[0] <= 16):
        return bits[0]
    raise ImageError(
        f"JPEG 2000 of {' and '.join(map(str, bits))} bits in {channels} channels cannot be read without loss; convert"
        " it to PNG or TIFF"
    )


def _find_colour_spaces(content: bytes) -> list[int]:
    """Find the numbers of the colour spaces that a JPEG 2000's header names; -1 for a palette of more than 8 bits."""
    found = []
    for name, box in _split_boxes(content):
        if name == b"colr" and box[:1] == b"\1":
            found.append(int.from_bytes(box[3:7], "big"))
        # Pillow would show the palette's indices as gray.
        if name == b"pclr" and any((depth & 0x7F) > 7 for depth in box[3 : 3 + box[2]]):
            raise ImageError("JPEG 2000 with a palette of more than 8 bits cannot be read without loss; convert it")
    return found


def read_heif(stream: BinaryIO, color: str, max_value: int | None) -> Pixels:
    """Read the main picture of a HEIC file, upright as the file itself says; 10 and 12 bits without loss.

    Raises:
        ImageError: with the reason; whatever else the decoder raises is for the caller to word.
    """
    try:
        import pillow_heif
    except ImportError:
        raise ImageError("a HEIC file; to read it, pip install 'imbalance-perturb[heif]'") from None
    # Other images are decoded beside it.
    pillow_heif.options.DECODE_THREADS = 1
    stream.seek(0)
    picture = pillow_heif.open_heif(stream, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    check_pixel_count(picture.size[1], picture.size[0])
    kind = picture.mode.partition(";")[0]
    if kind not in ("L", "LA", "I", "RGB", "RGBA"):
        raise ImageError(f"HEIC with pixels of the kind {picture.mode} cannot be read without loss; convert it")
    values: np.ndarray[Any, Any] = np.asarray(picture)
    if values.ndim == 3:
        values = values[..., 0] if kind == "LA" else values[..., :3]
    bits = int(picture.info["bit_depth"])
    if bits == 8 and values.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(values))
        return image.convert("L" if color == "gray" else "RGB")
    highest = max_value or 2**bits - 1
    check_highest(values, highest)
    return scale_pixels(values, 0, highest, color)


def _iter_boxes(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each box of a file, of the pixels the beginning only; end where it is damaged."""
    stream.seek(0)
    position = 0
    while len(head := stream.read(8)) == 8:
        length, name, begins = int.from_bytes(head[:4], "big"), head[4:], 8
        if length == 1:
            length, begins = int.from_bytes(stream.read(8), "big"), 16
        if 0 < length < begins:
            return
        most = _SIZ_BYTES + 3 * 16 if name in (b"mdat", b"jp2c") else _MOST_BYTES
        yield name, stream.read(min(length - begins, most) if length else most)
        if not length:  # to the end of the file
            return
        position += length
        stream.seek(position)


def _split_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big") or len(content) - position
        if length < 8:
            return
        yield content[position + 4 : position + 8], content[position + 8 : position + length]
        position += length

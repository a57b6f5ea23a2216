"""Decoded pixels whatever the file format: how many there may be, and more than 8 bits without loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from imbalance_perturb.errors import ImageError

#: No image may have more pixels than this, decoded or resized: Pillow's own limit against decompression bombs.
MAX_PIXELS = 178_956_970

#: An image in mode ``RGB`` or ``L``; or, where a file has more than 8 bits, one in mode ``F`` for each channel
#: (one or three), its full range scaled to [0, 255] with fractions.
Pixels: TypeAlias = Image.Image | tuple[Image.Image, Image.Image, Image.Image]

#: For the height and width of a JPEG the least ones that it may be decoded at, or ``None`` for the whole.
DraftSize: TypeAlias = Callable[[int, int], tuple[int, int] | None]

# ITU-R 601-2, as Pillow's convert("L") has it.
_LUMA = (0.299, 0.587, 0.114)


def check_pixel_count(height: int, width: int) -> None:
    """Refuse, before memory is taken, an image that is empty or a decompression bomb.

    Raises:
        ImageError: naming both sides.
    """
    if height < 1 or width < 1:
        raise ImageError(f"{height} x {width} pixels: the image is empty")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{height} x {width} pixels are more than {MAX_PIXELS:,} (a decompression bomb?); make the image smaller"
        )


class Peak(NamedTuple):
    """Of an image of more than 8 bits its highest pixel, and the white that was assumed since nothing states one."""

    highest: int
    white: int


def check_highest(values: npt.NDArray[Any], highest: int) -> int:
    """Return the highest pixel; refuse one above the highest expected, which clipping would hide.

    Raises:
        ImageError: naming the value found.
    """
    found = int(values.max())
    if found > highest:
        raise ImageError(
            f"the highest pixel is {found}, above the {highest} expected; give --max-value {found} or more"
        )
    return found


def scale_to_white(
    values: npt.NDArray[Any], assumed: int, max_value: int | None, color: str, *, inverted: bool = False
) -> Pixels:
    """Scale unsigned pixels to float images in [0, 255], 0 to white or, if ``inverted``, white to 0.

    White is ``max_value`` where that is given, else ``assumed``, and then :func:`find_peak` knows of it.

    Raises:
        ImageError: if a pixel is above white.
    """
    white = max_value or assumed
    highest = check_highest(values, white)
    low, high = (white, 0) if inverted else (0, white)
    return scale_pixels(values, low, high, color, None if max_value else Peak(highest, white))


def find_peak(pixels: Pixels) -> Peak | None:
    """Find the peak of an image of more than 8 bits whose white was assumed."""
    # A file can name its own texts there, by any word.
    peak = (pixels[0] if isinstance(pixels, tuple) else pixels).info.get(_PEAK)
    return peak if isinstance(peak, Peak) else None


_PEAK = "peak"


def scale_pixels(values: npt.NDArray[Any], low: float, high: float, color: str, peak: Peak | None = None) -> Pixels:
    """Scale pixels of any number type, ``low`` (black) to ``high``, to float images in [0, 255].

    Args:
        values: (H, W), or (H, W, 3) red, green and blue.
        low: the value that becomes 0; may be above ``high``, which inverts.
        high: the value that becomes 255.
        color: ``rgb`` or ``gray``; one channel stays one for either.
        peak: for :func:`find_peak` to find.
    """
    # Of 32 bits, and of rescaled values far from 0, float32 would lose the difference of two pixels.
    exact = np.float64 if values.dtype.itemsize > 4 else np.float32
    scaled: npt.NDArray[Any] = values.astype(exact)
    scaled -= exact(low)
    scaled *= exact(255 / (high - low))
    # The ends of the range may be off by a rounding.
    np.clip(scaled, 0, 255, out=scaled)
    scaled = scaled.astype(np.float32, copy=False)
    if scaled.ndim == 3 and color == "gray":
        scaled = scaled @ np.asarray(_LUMA, dtype=np.float32)
    planes = [scaled] if scaled.ndim == 2 else [np.ascontiguousarray(scaled[..., channel]) for channel in range(3)]
    first, *others = (Image.fromarray(plane) for plane in planes)
    if peak is not None:
        first.info[_PEAK] = peak
    return (first, *others) if others else first  # type: ignore[return-value]

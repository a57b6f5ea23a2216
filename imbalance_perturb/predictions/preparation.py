"""How images were prepared, as a run file has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from imbalance_perturb.files.typed_json import OPTIONAL, Count


@dataclass(frozen=True, kw_only=True)
class PreprocessingEntry:
    """What was done to every image, complete.

    Attributes:
        resize: pixels of the shorter side, or height and width; null leaves the size.
        crop: height and width in pixels of the centred crop; null for none.
        mean, std: one number for each channel, in units of [0, 1] pixels.
        interpolation: of the resize, as Pillow names it.
        color: rgb (3 channels) or gray (1 channel).
        max_value: pixel value of white in images of more than 8 bits; null for the highest of the type.
        exif_orientation: whether pictures were turned upright as their EXIF data say.
        jpeg_draft: whether large JPEGs were decoded at a half, a quarter or an eighth of their sides.
        crop_rounding: where the crop lies if an odd number of pixels is left beside it, even or down.
    """

    resize: Count | tuple[Count, Count] | None
    crop: tuple[Count, Count] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    color: str
    max_value: Count | None
    exif_orientation: bool
    jpeg_draft: bool
    crop_rounding: str = field(default="even", metadata=OPTIONAL)

    @property
    def is_one_size(self) -> bool:
        """Whether every image comes out at the same size."""
        return self.crop is not None or isinstance(self.resize, tuple)

"""From the pixels of an image to the tensor the model receives, with torchvision's transforms v2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imbalance_perturb.config.settings import INTERPOLATIONS, PreprocessSettings
from imbalance_perturb.data.pixels import MAX_PIXELS
from imbalance_perturb.errors import ImageError, SettingsError
from imbalance_perturb.method.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from PIL import Image

    from imbalance_perturb.data.pixels import Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: How many times larger than what is made of it a JPEG is left by ``jpeg_draft``.
_DRAFT_GAP = 2


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every image, complete: nothing else is applied.

    ``resize``: the shorter side (int), (height, width), or ``None``; ``crop``: centred (height, width) or ``None``;
    ``mean``, ``std``: one number a channel, in units of [0, 1] pixels; ``interpolation``: as Pillow names it,
    antialiased; ``color``: ``rgb`` (3 channels) or ``gray`` (1 channel); ``max_value``: the pixel value that becomes
    1 in images of more than 8 bits, ``None`` for the highest of the type; ``exif_orientation``: whether pictures are
    turned upright as their EXIF data say; ``jpeg_draft``: whether large JPEGs are decoded at a half, a quarter or an
    eighth of their sides, which is faster and changes pixels a little; ``crop_rounding``: where the crop lies if an odd
    number of pixels is left beside it, ``even`` (half of it, rounded to the even number) or ``down``.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    color: str
    max_value: int | None = None
    exif_orientation: bool = False
    jpeg_draft: bool = False
    crop_rounding: str = "even"

    @property
    def channels(self) -> int:
        """Number of channels of the tensor: 3 or 1."""
        return 1 if self.color == "gray" else 3

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every tensor, or ``None`` where it depends on the image."""
        if self.crop is not None:
            return self.crop
        return self.resize if isinstance(self.resize, tuple) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON and TOML have them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def describe(self) -> str:
        """Describe in one line what is done to an image, in order."""
        parts = ["large JPEGs decoded at reduced size"] if self.jpeg_draft else []
        if self.exif_orientation:
            parts.append("upright by EXIF")
        parts.append("RGB" if self.color == "rgb" else "grayscale")
        if isinstance(self.resize, int):
            parts.append(f"shorter side to {self.resize} ({self.interpolation}, antialiased)")
        elif self.resize is not None:
            parts.append(f"resize to {self.resize[0]} x {self.resize[1]} ({self.interpolation}, antialiased)")
        if self.crop is not None:
            down = " (rounded down)" if self.crop_rounding == "down" else ""
            parts.append(f"centre crop {self.crop[0]} x {self.crop[1]}{down}")
        parts.append("[0, 1]" + (f" (above 8 bits: {self.max_value} is 1)" if self.max_value is not None else ""))
        if any(self.mean) or any(s != 1 for s in self.std):
            mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
            parts.append(f"minus ({mean}), over ({std})")
        return " -> ".join(parts)

    def draft_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Compute the least (height, width) of a JPEG of ``height`` x ``width`` pixels before the resize.

        Twice of what the resize makes of it, as Pillow's ``thumbnail`` has it: the antialiasing filter then hides
        nearly all that differs. ``None`` where JPEGs are decoded whole.
        """
        if not self.jpeg_draft or self.resize is None:
            return None
        if isinstance(self.resize, tuple):
            # As they are stored, pictures that will be turned upright may lie on their side.
            sides = (max(self.resize),) * 2 if self.exif_orientation else self.resize
            return _DRAFT_GAP * sides[0], _DRAFT_GAP * sides[1]
        shorter = min(height, width)
        least = _DRAFT_GAP * self.resize
        return math.ceil(least * height / shorter), math.ceil(least * width / shorter)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels in [0, 255], uint8 or float32, on any device, to model input (N, C, H, W), float32."""
        mean, std = _per_channel(self.mean, pixels.device), _per_channel(self.std, pixels.device)
        # In place: new memory for each of the four steps took several times as long as the arithmetic.
        return pixels.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Compute the lowest and highest model input that is a pixel in [0, 1]: two (1, C, 1, 1) tensors."""
        mean, std = _per_channel(self.mean), _per_channel(self.std)
        return (0 - mean) / std, (1 - mean) / std

    def pixel_eps(self, eps: float) -> Tensor:
        """Convert a step of ``eps`` in [0, 1] pixels to units of the model input: (1, C, 1, 1)."""
        return eps / _per_channel(self.std)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device | None = None) -> Tensor:
    """Numbers as a tensor (1, C, 1, 1), on a device once and for all: not to be changed."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def make_geometry(preprocessing: Preprocessing) -> Callable[[Pixels], Tensor]:
    """Make the part that worker processes do: a function from decoded pixels to (C, H, W) pixels in [0, 255].

    uint8, or float32 for an image of more than 8 bits. The function raises :class:`ImageError` for an image that
    cannot be resized or is smaller than the crop.
    """
    v2 = import_torchvision().transforms.v2

    p = preprocessing
    interpolation = v2.InterpolationMode(p.interpolation)
    resize = None if p.resize is None else v2.Resize(p.resize, interpolation=interpolation, antialias=True)
    crop = None if p.crop is None else v2.CenterCrop(p.crop)
    to_tensor = v2.PILToTensor()

    def fit(image: Image.Image) -> Tensor:
        _check_size(image.size, p)
        if resize is not None:
            image = resize(image)
        if crop is not None:
            if image.height < p.crop[0] or image.width < p.crop[1]:  # type: ignore[index]
                raise ImageError(
                    f"{image.height} x {image.width} pixels is smaller than the crop; resize before cropping"
                )
            image = image.crop(_box(image.size, p.crop)) if p.crop_rounding == "down" else crop(image)  # type: ignore[arg-type]
        pixels: Tensor = to_tensor(image)
        # Between bright and dark the wider filters overshoot; 8-bit pixels are clipped there by their type.
        return pixels.clamp_(0, 255) if pixels.is_floating_point() else pixels

    def geometry(image: Pixels) -> Tensor:
        # Pillow has no float image of three channels: each goes through the same filter on its own.
        pixels = torch.cat([fit(plane) for plane in image]) if isinstance(image, tuple) else fit(image)
        return pixels.expand(p.channels, -1, -1) if pixels.shape[0] != p.channels else pixels

    return geometry


def _box(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, upper, right and lower of a centred crop (height, width), rounded towards the top left."""
    left, top = (size[0] - crop[1]) // 2, (size[1] - crop[0]) // 2
    return left, top, left + crop[1], top + crop[0]


def _check_size(size: tuple[int, int], p: Preprocessing) -> None:
    # Before any memory is taken: a strip of 1 x 20,000 pixels would become one of 256 x 5 million.
    if isinstance(p.resize, int):
        longer = p.resize * max(size) / min(size)
        if longer * p.resize > MAX_PIXELS:
            raise ImageError(
                f"{size[1]} x {size[0]} pixels cannot be resized to a shorter side of {p.resize}: too long and thin"
            )


def select_preprocessing(
    settings: PreprocessSettings, in_channels: int | None = None, own: PreprocessSettings | None = None
) -> Preprocessing:
    """Select the preset that the settings name, and put the entries that they give over it.

    Args:
        settings: what the user said; without a preset what the model says takes its place, else ``imagenet``.
        own: what the model says, where it does.
        in_channels: what the model's first layer takes, where that is known; 1 makes ``gray`` the default.

    Raises:
        SettingsError: for an unknown preset, or entries that do not fit together.
    """
    if settings.preset is None and own is not None:
        preset, name = _as_preset(own), "the model's own config"
    else:
        preset, name = _preset(settings.preset or "imagenet"), f"preset {settings.preset or 'imagenet'}"
    color = settings.color or ("gray" if in_channels == 1 else "rgb")
    channels = 1 if color == "gray" else 3
    if in_channels is not None and in_channels != channels:
        raise SettingsError(f"color is {color} ({channels} channels) but the model takes {in_channels}")
    resize = _size(settings.resize, preset.resize)
    crop = _square(_size(settings.crop, preset.crop))
    result = Preprocessing(
        resize=resize,
        crop=crop,
        mean=_channel_values("mean", settings.mean, preset.mean, channels, name),
        std=_channel_values("std", settings.std, preset.std, channels, name),
        interpolation=settings.interpolation or preset.interpolation,
        color=color,
        max_value=settings.max_value,
        exif_orientation=settings.exif_orientation,
        jpeg_draft=settings.jpeg_draft,
        crop_rounding=settings.crop_rounding or preset.crop_rounding,
    )
    if result.jpeg_draft and result.resize is None:
        raise SettingsError("jpeg_draft decodes JPEGs smaller before they are resized, but resize is none; drop one")
    _check_crop(result)
    return result


def _check_crop(p: Preprocessing) -> None:
    if p.crop is None or p.resize is None:
        return
    smallest = p.resize if isinstance(p.resize, tuple) else (p.resize, p.resize)
    if p.crop[0] > smallest[0] or p.crop[1] > smallest[1]:
        raise SettingsError(
            f"crop {p.crop[0]},{p.crop[1]} is larger than resize leaves ({smallest[0]},{smallest[1]}):"
            " make crop smaller (or none) or resize larger"
        )


def _size(given: int | tuple[int, int] | str | None, preset: int | tuple[int, int] | None) -> Any:
    if given == "none":
        return None
    return preset if given is None else given


def _square(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _channel_values(
    option: str, given: tuple[float, ...] | None, preset: tuple[float, ...], channels: int, name: str
) -> tuple[float, ...]:
    values = preset if given is None else given
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    source = "given" if given is not None else f"in {name}"
    raise SettingsError(
        f"{option} has {len(values)} numbers ({source}) for {channels} channel(s); give --{option} one each"
    )


def _as_preset(own: PreprocessSettings) -> Preprocessing:
    base = _preset("none")
    return replace(
        base,
        resize=_size(own.resize, base.resize),
        crop=_square(_size(own.crop, base.crop)),
        mean=own.mean or base.mean,
        std=own.std or base.std,
        interpolation=own.interpolation or base.interpolation,
        crop_rounding=own.crop_rounding or base.crop_rounding,
    )


def _preset(name: str) -> Preprocessing:
    if name == "imagenet":
        return Preprocessing(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD, "bilinear", "rgb")
    if name == "none":
        return Preprocessing(None, None, (0.0,), (1.0,), "bilinear", "rgb")
    get_weight = import_torchvision().models.get_weight
    try:
        transforms = get_weight(name).transforms()
        resize, crop = list(transforms.resize_size), list(transforms.crop_size)
        interpolation = transforms.interpolation.value
        mean, std = tuple(transforms.mean), tuple(transforms.std)
    except (ValueError, AttributeError, KeyError):
        raise SettingsError(
            f"preset {name!r} is not known; use imagenet, none or a torchvision classification weights name"
            " such as ResNet50_Weights.IMAGENET1K_V2"
        ) from None
    assert interpolation in INTERPOLATIONS
    return Preprocessing(
        resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        (crop[0], crop[-1]),
        mean,
        std,
        interpolation,
        "rgb",
    )

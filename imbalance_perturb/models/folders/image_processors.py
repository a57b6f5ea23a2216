"""How transformers' image processors prepare an image, read from their config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from imbalance_perturb.errors import brief, first_few
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing, refuse, settle


class _Processor(NamedTuple):
    """What a class of processors does of itself.

    ``square``: whether a size of one number is of both sides, else the shorter one; ``crops``: whether it crops where
    the config does not say.
    """

    square: bool = True
    crops: bool = False


#: By their names without what tells versions of one processor apart.
_PROCESSORS = {
    "Beit": _Processor(),
    "Bit": _Processor(square=False, crops=True),
    "CLIP": _Processor(square=False, crops=True),
    "ConvNext": _Processor(square=False),
    "DeiT": _Processor(crops=True),
    "EfficientNet": _Processor(),
    "Levit": _Processor(square=False, crops=True),
    "MobileNetV1": _Processor(square=False, crops=True),
    "MobileNetV2": _Processor(square=False, crops=True),
    "MobileViT": _Processor(square=False, crops=True),
    "PoolFormer": _Processor(square=False, crops=True),
    "Pvt": _Processor(),
    "Segformer": _Processor(),
    "Siglip": _Processor(square=False),
    "ViT": _Processor(),
}
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
#: PIL's numbers of its filters.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
#: Entries that this module reads, of all processors and of some, and such as change nothing here.
_READ = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
}  # fmt: skip
_OF_SOME = {
    "crop_pct": ("ConvNext", "PoolFormer"),
    "rescale_offset": ("EfficientNet",),
    "include_top": ("EfficientNet",),
    "do_flip_channel_order": ("MobileViT",),
}
_WITHOUT_EFFECT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "do_convert_rgb", "default_to_square",
    "do_reduce_labels", "reduce_labels", "model_input_names", "transformers_version", "_processor_class",
}  # fmt: skip
#: From this size on ConvNeXT's processor squeezes images into the square; below it crops them.
_CONVNEXT_SQUEEZES = 384


class _UnusableError(Exception):
    """What a processor does is not known, or not to be had."""


class Prepared(NamedTuple):
    """``preprocessing`` of a processor, and ``bgr``: whether the network receives blue, green and red in that order."""

    preprocessing: OwnPreprocessing
    bgr: bool = False


def read_processor(config: Mapping[str, Any], default: str | None, source: str) -> Prepared:
    """Read how images are prepared from a processor's config.

    Args:
        config: the entries of ``preprocessor_config.json``.
        default: the processor's name, where the config does not say it.
        source: of the config, for messages.
    """
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or default
    name = str(named)
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    try:
        if name not in _PROCESSORS:
            raise _UnusableError(f"what its {brief(named)} does is not known")
        odd = [key for key, value in config.items() if value and key not in _READ | _WITHOUT_EFFECT]
        odd = [key for key in odd if name not in _OF_SOME.get(key, ())]
        if odd:
            raise _UnusableError(f"there is no such thing here as its {first_few(odd)}")
        bgr = name == "MobileViT" and bool(config.get("do_flip_channel_order", True))
        values = {**_geometry(config, name), **_levels(config, name)}
        return Prepared(settle(f"{source} ({named})", crop_rounding="down", **values), bgr)
    except _UnusableError as error:
        return Prepared(refuse(source, str(error)))


def _geometry(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    processor = _PROCESSORS[name]
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    if config.get("do_resize", True):
        resize, crop = _resize(_size(config, "size", processor.square), config.get("crop_pct"), name)
    if config.get("do_center_crop", processor.crops):
        second = _size(config, "crop_size", True)
        if crop is not None or isinstance(second, int):
            raise _UnusableError(
                f"its crop to {brief(config['crop_size'])} is not of height and width, or a second one"
            )
        crop = second
    resample = config.get("resample")
    if resize is not None and (not isinstance(resample, int) or not 0 <= resample < len(_RESAMPLE)):
        raise _UnusableError(f"its resample is {brief(resample)}; expected a number from 0 to {len(_RESAMPLE) - 1}")
    return {
        "resize": "none" if resize is None else resize,
        "crop": "none" if crop is None else crop,
        "interpolation": None if resize is None else _RESAMPLE[int(resample or 0)],
    }


def _resize(size: int | tuple[int, int], part: Any, name: str) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """The resize, and the crop that belongs to it."""
    if name == "ConvNext":
        if not isinstance(size, int):
            raise _UnusableError("its size has no shortest_edge")
        if size >= _CONVNEXT_SQUEEZES:
            return (size, size), None
        return int(size / _part(part)), (size, size)
    if name == "Levit" and isinstance(size, int):
        return int((256 / 224) * size), None
    if name == "PoolFormer" and part is not None:
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) > 1:
            raise _UnusableError("its size is not square")
        return int(sides.pop() / _part(part)), None
    return size, None


def _part(part: Any) -> float:
    if not isinstance(part, int | float) or isinstance(part, bool) or not 0 < part <= 1:
        raise _UnusableError(f"its crop_pct is {brief(part)}; expected a number above 0, at most 1")
    return float(part)


def _size(config: Mapping[str, Any], key: str, square: bool) -> int | tuple[int, int]:
    size = config.get(key)
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size) if square else size
    if isinstance(size, list):
        size = dict(zip(("height", "width"), size, strict=False)) if len(size) == 2 else None
    given = {name: value for name, value in size.items() if value is not None} if isinstance(size, dict) else {}
    if all(isinstance(value, int) for value in given.values()):
        if set(given) == {"shortest_edge"}:
            return int(given["shortest_edge"])
        if set(given) == {"height", "width"}:
            return int(given["height"]), int(given["width"])
    raise _UnusableError(f"its {key} is {brief(config.get(key))}; expected shortest_edge, or height and width")


def _levels(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Mean and standard deviation in [0, 1] pixels, of all that is done to a pixel's value."""
    factor = _number(config, "rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    white = 255 * factor
    if math.isclose(white, 1, rel_tol=1e-6):
        white = 1.0
    if white <= 0:
        raise _UnusableError(f"its rescale_factor is {factor}")
    offset = 1.0 if config.get("rescale_offset") and config.get("do_rescale", True) else 0.0
    normalises = config.get("do_normalize", True) and name != "MobileViT"
    again = name == "EfficientNet" and config.get("include_top", True)
    mean = _channels(config, "image_mean") if normalises else (0.0,)
    std = _channels(config, "image_std") if normalises or again else (1.0,)
    if again and normalises:
        std = tuple(value * value for value in std)  # divided twice, the second time without a mean
    return {
        "mean": tuple((value + offset) / white for value in mean),
        "std": tuple(value / white for value in std),
    }


def _channels(config: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = config.get(key)
    numbers: list[Any] = values if isinstance(values, list) and values else [values]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        raise _UnusableError(f"its {key} is {brief(values)}; expected a number for each channel")
    return tuple(float(value) for value in numbers)


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _UnusableError(f"its {key} is {brief(value)}; expected a number")
    return float(value)

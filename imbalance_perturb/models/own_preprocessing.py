"""What a model says of how its images are prepared, as settings that a user could have given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from imbalance_perturb.config.settings import INTERPOLATIONS, PreprocessSettings
from imbalance_perturb.errors import SettingsError, brief

#: What to do where a model's own preprocessing cannot be had.
SAY_IT = "say it outright: --preset none with --resize, --crop, --mean, --std and --interpolation, or --preset imagenet"


class OwnPreprocessing(NamedTuple):
    """How a model's images are prepared, or why that cannot be done here.

    Attributes:
        source: who says it.
        settings: complete, with the preset ``none``.
        refusal: in place of the settings, what cannot be done, with the way out.
    """

    source: str
    settings: PreprocessSettings | None
    refusal: str = ""

    @property
    def note(self) -> str:
        """What was found, in a sentence; the line on what is done to each image has the figures."""
        told = "cannot be used: options say it" if self.settings is None else "is taken where no --preset is given"
        return f"the preprocessing of {self.source} {told}"


def settle(source: str, **values: Any) -> OwnPreprocessing:
    """Make it of the settings' values, refusing such as they cannot have."""
    try:
        return OwnPreprocessing(source, PreprocessSettings(preset="none", **values))
    except SettingsError as error:
        return refuse(source, str(error))


def refuse(source: str, what: str) -> OwnPreprocessing:
    """Make it where something of it cannot be done."""
    return OwnPreprocessing(source, None, f"the preprocessing of {source} cannot be used: {what}; {SAY_IT}")


def timm_preprocessing(source: str, data: Mapping[str, Any]) -> OwnPreprocessing:
    """What ``timm.data.create_transform`` does in evaluation, of what ``timm.data.resolve_data_config`` gave."""
    try:
        _, height, width = data["input_size"]
        mode, part = data["crop_mode"], data["crop_pct"]
        scaled = (math.floor(height / part), math.floor(width / part))
        mean, std = tuple(data["mean"]), tuple(data["std"])
    except (TypeError, ValueError, ArithmeticError):
        return refuse(source, "its input_size, crop_pct, mean or std are not as timm writes them")
    if data["interpolation"] not in INTERPOLATIONS:
        return refuse(
            source, f"its interpolation {brief(data['interpolation'])} is none of {', '.join(INTERPOLATIONS)}"
        )
    if mode == "border":
        return refuse(source, "its crop_mode 'border' pads images with a border")
    if mode != "squash" and scaled[0] != scaled[1]:
        return refuse(
            source, f"its input of {height} x {width} is not square, and crop_mode {brief(mode)} keeps the aspect"
        )
    return settle(
        source,
        resize=scaled if mode == "squash" else scaled[0],
        crop=(height, width),
        mean=mean,
        std=std,
        interpolation=data["interpolation"],
    )

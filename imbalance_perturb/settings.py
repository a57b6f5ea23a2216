"""The settings of a run as plain values: the four tables of a recipe, each entry checked on its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from imbalance_perturb.errors import SettingsError

LOSSES = ("cross-entropy", "mse", "focal")
TARGETS = ("log", "inverse", "sqrt", "effective-number")
EPS_SPACES = ("input", "pixel")
OUTPUTS = ("auto", "logits", "probabilities")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COLORS = ("rgb", "gray")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def _check(ok: bool, option: str, value: object, expected: str) -> None:
    if not ok:
        raise SettingsError(f"{option} is {value!r}; expected {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_text_and_flags(settings: Any) -> None:
    # A recipe can hold any type: texts and switches are checked here, numbers with their ranges.
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if entry.type in ("str", "str | None") and not (value is None and "None" in str(entry.type)):
            _check(isinstance(value, str), entry.name, value, "text")
        if entry.type == "bool":
            _check(isinstance(value, bool), entry.name, value, "true or false")


def _one_of(option: str, value: object, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    _check(value in allowed, option, value, "one of " + ", ".join(allowed))


def _each(values: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(values, tuple) and bool(values) and all(map(test, values))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Where the model and the counts are, and how the model file is read (recipe table ``[model]``)."""

    model: str | None = None
    counts: str | None = None
    arch: str | None = None
    factory: str | None = None
    outputs: str = "auto"
    trust_model_file: bool | str = False  # a text is the SHA-256 of the only file that is trusted

    def __post_init__(self) -> None:
        _check_text_and_flags(self)
        trust = self.trust_model_file
        ok = isinstance(trust, bool) or (isinstance(trust, str) and re.fullmatch("[0-9a-f]{64}", trust) is not None)
        _check(ok, "trust_model_file", trust, "true, false or the SHA-256 of the model file")
        _one_of("outputs", self.outputs, OUTPUTS)
        if self.arch and self.factory:
            raise SettingsError("arch and factory are both given; each names the network, so give one")
        if self.factory is not None:
            _check(self.factory.count(":") == 1, "factory", self.factory, "package.module:function")


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """What the user says about preprocessing; ``None`` leaves an entry to the preset (``[preprocess]``).

    ``resize`` and ``crop``: one number (shorter side; square), (height, width), or ``"none"``.
    """

    preset: str = "imagenet"
    resize: int | tuple[int, int] | str | None = None
    crop: int | tuple[int, int] | str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    color: str | None = None
    max_value: int | None = None
    exif_orientation: bool = False
    jpeg_draft: bool = False

    def __post_init__(self) -> None:
        _check_text_and_flags(self)
        for option, size in (("resize", self.resize), ("crop", self.crop)):
            if size is None or size == "none":
                continue
            sides = size if isinstance(size, tuple) else (size,)
            ok = len(sides) <= 2 and all(isinstance(side, int) and side > 0 for side in sides)
            _check(ok, option, size, "a number of pixels, H,W or none")
        if self.mean is not None:
            _check(_each(self.mean, _is_number), "mean", self.mean, "one number for each channel")
        if self.std is not None:
            ok = _each(self.std, lambda s: _is_number(s) and s > 0)
            _check(ok, "std", self.std, "one number above 0 for each channel")
        if self.interpolation is not None:
            _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if self.color is not None:
            _one_of("color", self.color, COLORS)
        if self.max_value is not None:
            ok = _is_int(self.max_value) and 1 <= self.max_value <= 65535
            _check(ok, "max_value", self.max_value, "a whole number from 1 to 65535")


@dataclass(frozen=True, kw_only=True)
class DebiasSettings:
    """The method's own parameters; defaults are the paper's (``[debias]``)."""

    eps: float = 1e-3
    temperature: float = 1000.0
    loss: str = "cross-entropy"
    target: str = "log"
    target_m: int | None = None
    eps_space: str = "input"
    clip: bool = False
    steps: int = 1
    tau: float = 0.0

    def __post_init__(self) -> None:
        _check_text_and_flags(self)
        _check(_is_number(self.eps) and self.eps >= 0, "eps", self.eps, "a number, at least 0")
        _check(
            _is_number(self.temperature) and self.temperature > 0,
            "temperature",
            self.temperature,
            "a number above 0",
        )
        _one_of("loss", self.loss, LOSSES)
        ok = self.target in TARGETS or self.target.endswith(".json")
        _check(
            ok,
            "target",
            self.target,
            "one of " + ", ".join(TARGETS) + " or a .json file with the distribution",
        )
        if self.target_m is not None:
            _check(
                _is_int(self.target_m) and self.target_m > 0,
                "target_m",
                self.target_m,
                "a whole number above 0",
            )
        _one_of("eps_space", self.eps_space, EPS_SPACES)
        _check(_is_int(self.steps) and self.steps >= 1, "steps", self.steps, "a whole number, at least 1")
        _check(_is_number(self.tau), "tau", self.tau, "a number")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where and how fast it runs; none of these may change a label beyond near-ties (``[run]``).

    ``batch_size`` and ``workers`` of ``None`` are chosen from the machine.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    precision: str = "auto"
    close_calls_only: bool = False
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        _check_text_and_flags(self)
        kind, _, index = self.device.partition(":")
        ok = kind in ("auto", "cpu", "cuda") and (not index or (kind == "cuda" and index.isdecimal()))
        _check(ok and not self.device.endswith(":"), "device", self.device, "auto, cpu, cuda or cuda:N")
        if self.batch_size is not None:
            _check(_is_int(self.batch_size) and self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        if self.workers is not None:
            _check(_is_int(self.workers) and self.workers >= 0, "workers", self.workers, "at least 0")
        _one_of("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run, one attribute for each table of the recipe."""

    model: ModelSettings = ModelSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    debias: DebiasSettings = DebiasSettings()
    run: RunSettings = RunSettings()

"""The settings of a run as plain values: the four tables of a recipe, each setting declared here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from imbalance_perturb.config.allowed import (
    Flag,
    FlagOrHash,
    Number,
    NumberOrAuto,
    PerChannel,
    PerClass,
    Prior,
    Size,
    Text,
)
from imbalance_perturb.config.declarations import Table, setting
from imbalance_perturb.config.machine_settings import MachineSettings
from imbalance_perturb.errors import SettingsError

#: What a correction may be, the paper's first; those that move the input take three passes, the others one.
METHODS = ("perturb", "la", "perturb+la", "tau-norm", "offsets", "none")
STEPPING = ("perturb", "perturb+la")

LOSSES = ("cross-entropy", "mse", "focal")
TARGETS = ("log", "inverse", "sqrt", "effective-number")
EPS_SPACES = ("input", "pixel")
#: Where the paper takes the step.
INPUT = "input"
HEAD_ACTIVATIONS = ("relu", "gelu", "silu", "leaky_relu", "tanh", "none")
WEIGHTS = ("ema", "model")
OUTPUTS = ("auto", "logits", "probabilities")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COLORS = ("rgb", "gray")
CROP_ROUNDINGS = ("even", "down")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Table):
    """Where the model and the counts are, and how the model file is read (recipe table ``[model]``)."""

    panel: ClassVar[str] = "Model file"
    comment: ClassVar[str] = "the classifier file and the class counts; paths are relative to this file"

    # Two runs are of one model by its hash and what was found in it, wherever it lies and however it was named.
    model: str | None = setting(
        None,
        Text(),
        "Trained classifier: a file, a timm or transformers folder, or hf-hub:owner/name@revision.",
        argument=True,
        path=True,
        compared=False,
    )
    counts: str | None = setting(
        None, Text(), "JSON of training images per class.", argument=True, path=True, compared=False
    )
    arch: str | None = setting(
        None,
        Text(),
        "Architecture of a state_dict: a torchvision name or timm:NAME.",
        default_text="recognised from the tensors",
        compared=False,
    )
    factory: str | None = setting(
        None,
        Text(pattern="[^:]*:[^:]*", form="package.module:function"),
        "package.module:function that builds the network, called with num_classes=. Given again in each run: a recipe"
        " cannot make code run.",
    )
    head_activation: str | None = setting(
        None,
        Text(HEAD_ACTIVATIONS),
        "What lies between the Linears of a replaced head, in the first place after each that has a layer without"
        " tensors:",
        default_text="ReLU where numbers show such a place, with a warning; else refused",
    )
    weights: str | None = setting(
        None,
        Text(WEIGHTS),
        "Which are meant where the file holds several sets of weights, as trained and averaged (teacher):",
        default_text="the only ones; two that differ are refused",
    )
    outputs: str = setting("auto", Text(OUTPUTS), "What the model returns:", compared=False)
    # A text is the SHA-256 of the only file that is trusted.
    trust_model_file: bool | str = setting(
        False,
        FlagOrHash(),
        "Load a model file that runs code of its own. Only for files you made; no recipe can give it.",
        compared=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch and self.factory:
            raise SettingsError("arch and factory are both given; each names the network, so give one")


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings(Table):
    """What the user says about preprocessing; ``None`` leaves an entry to the preset (``[preprocess]``).

    ``resize`` and ``crop``: one number (shorter side; square), (height, width), or ``"none"``.
    """

    panel: ClassVar[str] = "Preprocessing"
    comment: ClassVar[str] = "what happens to an image before the model sees it"

    preset: str | None = setting(
        None,
        Text(),
        "imagenet (resize 256, crop 224, ImageNet mean and std), none ([0, 1] pixels as they are) or a torchvision"
        " weights name; the options below override it.",
        default_text="what the model's own config says; imagenet where it says nothing",
    )
    resize: int | tuple[int, int] | str | None = setting(
        None, Size(), "Shorter side S, or height and width.", of_preset=True
    )
    crop: int | tuple[int, int] | str | None = setting(
        None, Size(), "Centred crop, S square or height and width.", of_preset=True
    )
    crop_rounding: str | None = setting(
        None,
        Text(CROP_ROUNDINGS),
        "Of the crop's place where an odd number of pixels is left beside it: even (as torchvision and timm) or down"
        " (towards the top left, as transformers):",
        default_text="even",
        of_preset=True,
    )
    mean: tuple[float, ...] | None = setting(None, PerChannel(), "Mean to subtract, in [0, 1] pixels.", of_preset=True)
    std: tuple[float, ...] | None = setting(
        None, PerChannel(Number(above=0)), "Standard deviation to divide by.", of_preset=True
    )
    interpolation: str | None = setting(
        None, Text(INTERPOLATIONS), "Of the resize:", default_text="bilinear", of_preset=True
    )
    color: str | None = setting(
        None, Text(COLORS), "What the model takes:", default_text="from its first layer, else rgb", of_preset=True
    )
    max_value: int | None = setting(
        None,
        Number(whole=True, at_least=1, at_most=65535),
        "Pixel value of white in images of more than 8 bits.",
        default_text="the highest of the type",
    )
    exif_orientation: bool = setting(False, Flag(), "Turn pictures upright as their EXIF data say.")
    jpeg_draft: bool = setting(
        False, Flag(), "Decode large JPEGs at 1/2, 1/4 or 1/8 of their sides: faster, pixels differ a little."
    )


@dataclass(frozen=True, kw_only=True)
class DebiasSettings(Table):
    """The correction and its parameters; defaults are the paper's (``[debias]``)."""

    panel: ClassVar[str] = "Correction"
    comment: ClassVar[str] = "the correction: x~ = x - eps * sign(gradient); eps = 0 switches it off"

    method: str = setting(
        "perturb",
        Text(METHODS),
        "What corrects: a step of the input, logit adjustment, both, tau-normalisation of the last layer, offsets of"
        " the logits, or nothing:",
    )
    eps: float | str = setting(
        1e-3,
        NumberOrAuto(at_least=0),
        "Size of the step; 0 switches it off; auto finds the one at which half of the images lose all of the log prior"
        " from their logits, auto*0.5 half of that.",
    )
    perturb_at: str = setting(
        INPUT,
        Text(words=(INPUT, "auto"), pattern=r"[^\s.]+(\.[^\s.]+)*", form="the name of a layer", listed="LAYER"),
        "Where the step is taken: at the input, as in the paper, or at the output of a layer by its name in the"
        " state_dict, which costs less and has units of eps of its own (--eps auto); auto takes the first block behind"
        " which at most 30% of a forward pass lies:",
    )
    temperature: float = setting(1000.0, Number(above=0), "T of the softened output.")
    loss: str = setting("cross-entropy", Text(LOSSES), "Between softened output and target:")
    target: str = setting(
        "log",
        Text(TARGETS, r".*\.json", "a .json file with the distribution", "FILE.json with p* itself"),
        "Target distribution p* as a function of the counts:",
        path=True,
    )
    target_m: int | None = setting(
        None, Number(whole=True, above=0), "M of the log target, log(M/n).", default_text="the largest count"
    )
    prior: str | Mapping[str, float] = setting(
        "balanced",
        Prior(),
        "Class shares to correct for: equal ones, or those where the model is used, in a JSON file (that of shares will"
        ' do) or as JSON {"class": share, ...}.',
        path=True,
    )
    eps_space: str = setting("input", Text(EPS_SPACES), "Units of eps, the model's input or [0, 1] pixels:")
    clip: bool = setting(False, Flag(), "Keep perturbed pixels within [0, 1].")
    steps: int = setting(1, Number(whole=True, at_least=1), "Number of steps of size eps.")
    tau: float | None = setting(
        None,
        Number(),
        "Strength of logit adjustment, which perturb adds on top as well, or of tau-normalisation; 1 is the whole.",
        default_text="1; 0 for perturb",
    )
    offsets: tuple[float, ...] | None = setting(
        None, PerClass(), "Of method offsets: what is added to the logit of each class."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "offsets" and self.offsets is None:
            raise SettingsError("method is offsets, but there are none; give --offsets, or let compare find them")
        if self.prior != "balanced" and self.method in ("tau-norm", "offsets"):
            raise SettingsError(f"method is {self.method}, which takes no account of a prior; make prior balanced")
        if self.hidden and (self.clip or self.eps_space != "input"):
            raise SettingsError(
                f"perturb_at is {self.perturb_at}, where there are no pixels: leave out clip and eps_space, which"
                " are about pixels"
            )
        if isinstance(self.eps, str) and self.steps != 1:
            raise SettingsError(f"eps is {self.eps} and steps is {self.steps}; auto is of one step: give eps a number")

    @property
    def moves_input(self) -> bool:
        """Whether the method moves the input, by ``eps``."""
        return self.method in STEPPING

    @property
    def hidden(self) -> bool:
        """Whether the step is taken behind a layer, and not at the input."""
        return self.moves_input and self.perturb_at != INPUT

    @property
    def used_tau(self) -> float:
        """``tau``, or what it is where nothing is said."""
        if self.method in ("offsets", "none"):
            return 0.0
        return self.tau if self.tau is not None else float(self.method != "perturb")


@dataclass(frozen=True, kw_only=True)
class RunSettings(MachineSettings):
    """Where and how fast it runs; none of these may change a label beyond near-ties (``[run]``)."""

    panel: ClassVar[str] = "Running"
    comment: ClassVar[str] = "where and how fast; changes no label"

    precision: str = setting(
        "auto",
        Text(PRECISIONS),
        "Number format of the passes; auto computes in a fast one, and again in fp32 where a label is a close call:",
    )
    close_calls_only: bool = setting(
        False,
        Flag(),
        "predict: correct only images whose label the correction may change, and mark them in a column 'corrected'.",
        default_text="no",
    )
    compile: bool = setting(False, Flag(), "Compile the passes by torch.compile, where that is faster on trial.")
    deterministic: bool = setting(False, Flag(), "Only algorithms that repeat bit for bit.", default_text="no")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run, one attribute for each table of the recipe."""

    model: ModelSettings = ModelSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    debias: DebiasSettings = DebiasSettings()
    run: RunSettings = RunSettings()


#: The tables by their names.
TABLES: dict[str, type[Any]] = {entry.name: type(entry.default) for entry in fields(Settings)}

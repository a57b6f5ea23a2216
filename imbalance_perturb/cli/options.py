"""The options that commands share, each declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from imbalance_perturb.settings import (
    COLORS,
    EPS_SPACES,
    INTERPOLATIONS,
    LOSSES,
    OUTPUTS,
    PRECISIONS,
    TARGETS,
)

#: Exit codes besides 0: a failure, a wrong use, and done but with images that have an error.
FAILED, WRONG_USAGE, SOME_FAILED = 1, 2, 3

_MODEL, _PREPROCESS, _DEBIAS, _RUN = "Model file", "Preprocessing", "Correction", "Running"


def _help(text: str, *, default: str | None = None, choices: tuple[str, ...] = ()) -> str:
    # Defaults stand in the text: the option's own default is 'not given', so that a recipe can fill it.
    listed = f" {' | '.join(choices)}." if choices else ""
    return f"{text}{listed}" + (f" (default: {default})" if default is not None else "")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the model file is read; ``None`` is 'not given'."""

    arch: Annotated[
        str | None,
        Option(
            help=_help(
                "Architecture of a state_dict: a torchvision name or timm:NAME.", default="recognised from the tensors"
            ),
            rich_help_panel=_MODEL,
        ),
    ] = None
    factory: Annotated[
        str | None,
        Option(
            help="package.module:function that builds the network, called with num_classes=. Given again in each run: a"
            " recipe cannot make code run.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    outputs: Annotated[
        str | None,
        Option(help=_help("What the model returns:", default="auto", choices=OUTPUTS), rich_help_panel=_MODEL),
    ] = None
    trust_model_file: Annotated[
        bool | None,
        Option(
            "--trust-model-file/--no-trust-model-file",
            help="Load a model file that runs code of its own. Only for files you made; no recipe can give it.",
            rich_help_panel=_MODEL,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """What happens to an image before the model sees it."""

    preset: Annotated[
        str | None,
        Option(
            help=_help(
                "imagenet (resize 256, crop 224, ImageNet mean and std), none ([0, 1] pixels as they are) or a"
                " torchvision weights name; the options below override it.",
                default="imagenet",
            ),
            rich_help_panel=_PREPROCESS,
        ),
    ] = None
    resize: Annotated[
        str | None,
        Option(metavar="S|H,W|none", help="Shorter side S, or height and width.", rich_help_panel=_PREPROCESS),
    ] = None
    crop: Annotated[
        str | None,
        Option(metavar="S|H,W|none", help="Centred crop, S square or height and width.", rich_help_panel=_PREPROCESS),
    ] = None
    mean: Annotated[
        str | None,
        Option(metavar="R,G,B", help="Mean to subtract, in [0, 1] pixels.", rich_help_panel=_PREPROCESS),
    ] = None
    std: Annotated[
        str | None,
        Option(metavar="R,G,B", help="Standard deviation to divide by.", rich_help_panel=_PREPROCESS),
    ] = None
    interpolation: Annotated[
        str | None,
        Option(help=_help("Of the resize:", default="bilinear", choices=INTERPOLATIONS), rich_help_panel=_PREPROCESS),
    ] = None
    color: Annotated[
        str | None,
        Option(
            help=_help("What the model takes:", default="from its first layer, else rgb", choices=COLORS),
            rich_help_panel=_PREPROCESS,
        ),
    ] = None
    max_value: Annotated[
        int | None,
        Option(
            help=_help("Pixel value of white in images of more than 8 bits.", default="the highest of the type"),
            rich_help_panel=_PREPROCESS,
        ),
    ] = None
    exif_orientation: Annotated[
        bool | None,
        Option(
            "--exif-orientation/--no-exif-orientation",
            help=_help("Turn pictures upright as their EXIF data say.", default="no-exif-orientation"),
            rich_help_panel=_PREPROCESS,
        ),
    ] = None
    jpeg_draft: Annotated[
        bool | None,
        Option(
            "--jpeg-draft/--no-jpeg-draft",
            help=_help(
                "Decode large JPEGs at 1/2, 1/4 or 1/8 of their sides: faster, pixels differ a little.",
                default="no-jpeg-draft",
            ),
            rich_help_panel=_PREPROCESS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DebiasOptions:
    """The method's own parameters."""

    eps: Annotated[
        float | None,
        Option(help=_help("Size of the step; 0 switches it off.", default="0.001"), rich_help_panel=_DEBIAS),
    ] = None
    temperature: Annotated[
        float | None, Option(help=_help("T of the softened output.", default="1000"), rich_help_panel=_DEBIAS)
    ] = None
    loss: Annotated[
        str | None,
        Option(
            help=_help("Between softened output and target:", default="cross-entropy", choices=LOSSES),
            rich_help_panel=_DEBIAS,
        ),
    ] = None
    target: Annotated[
        str | None,
        Option(
            help=_help(
                "Target distribution p* as a function of the counts:",
                default="log",
                choices=(*TARGETS, "FILE.json with p* itself"),
            ),
            rich_help_panel=_DEBIAS,
        ),
    ] = None
    target_m: Annotated[
        int | None,
        Option(
            help=_help("M of the log target, log(M/n).", default="the largest count"),
            rich_help_panel=_DEBIAS,
        ),
    ] = None
    eps_space: Annotated[
        str | None,
        Option(
            help=_help("Units of eps, the model's input or [0, 1] pixels:", default="input", choices=EPS_SPACES),
            rich_help_panel=_DEBIAS,
        ),
    ] = None
    clip: Annotated[
        bool | None,
        Option(
            "--clip/--no-clip",
            help=_help("Keep perturbed pixels within [0, 1].", default="no-clip"),
            rich_help_panel=_DEBIAS,
        ),
    ] = None
    steps: Annotated[
        int | None, Option(help=_help("Number of steps of size eps.", default="1"), rich_help_panel=_DEBIAS)
    ] = None
    tau: Annotated[
        float | None,
        Option(help=_help("Strength of post-hoc logit adjustment added on top.", default="0"), rich_help_panel=_DEBIAS),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how fast it runs."""

    device: Annotated[
        str | None, Option(help=_help("auto | cpu | cuda[:N].", default="auto"), rich_help_panel=_RUN)
    ] = None
    batch_size: Annotated[
        int | None,
        Option(help=_help("Images a batch.", default="measured, or from the image size"), rich_help_panel=_RUN),
    ] = None
    workers: Annotated[
        int | None,
        Option(
            help=_help("Decoding processes; 0 decodes in the main one.", default="from the cores"), rich_help_panel=_RUN
        ),
    ] = None
    precision: Annotated[
        str | None,
        Option(
            help=_help(
                "Number format of the passes; auto computes in a fast one, and again in fp32 where a label is a close"
                " call:",
                default="auto",
                choices=PRECISIONS,
            ),
            rich_help_panel=_RUN,
        ),
    ] = None
    close_calls_only: Annotated[
        bool | None,
        Option(
            "--close-calls-only/--no-close-calls-only",
            help=_help(
                "predict: correct only images whose label the correction may change, and mark them in a column"
                " 'corrected'.",
                default="no",
            ),
            rich_help_panel=_RUN,
        ),
    ] = None
    compile: Annotated[
        bool | None,
        Option(
            "--compile/--no-compile",
            help=_help("Compile the passes by torch.compile, where that is faster on trial.", default="no-compile"),
            rich_help_panel=_RUN,
        ),
    ] = None
    deterministic: Annotated[
        bool | None,
        Option(
            "--deterministic/--no-deterministic",
            help=_help("Only algorithms that repeat bit for bit.", default="no"),
            rich_help_panel=_RUN,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command that reads settings."""

    recipe: Annotated[
        Path | None, Option(metavar="FILE", help="Recipe to read. (default: ./imbperturb.toml where there is one)")
    ] = None
    quiet: Annotated[bool, Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")] = False


#: The groups that stand in recipes, and the tables of theirs.
GROUPS: dict[type, str] = {
    ModelOptions: "model",
    PreprocessOptions: "preprocess",
    DebiasOptions: "debias",
    RunOptions: "run",
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take whole groups of options: a parameter annotated with one becomes the group's options.

    Typer reads a command's signature, so the wrapper shows one in which each group's parameter is replaced by
    the group's fields, and hands the command the group built from what was given.
    """
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in own if hints[name] in (*GROUPS, CommonOptions)}
    parameters = [p.replace(annotation=hints[p.name]) for p in own.values() if p.name not in groups]
    for group in groups.values():
        types = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=types[entry.name]
            )
            for entry in fields(group)
        ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        built = {
            name: group(**{entry.name: given.pop(entry.name) for entry in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **built)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapper.__wrapped__  # or the original signature would be found behind it
    return wrapper

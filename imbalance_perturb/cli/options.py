"""The options that commands share: those of the settings as they were declared, and a few of the command line's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_type_hints

from typer import Argument, Option

from imbalance_perturb.config.allowed import Flag
from imbalance_perturb.config.declarations import Declaration, declarations
from imbalance_perturb.config.settings import TABLES, ModelSettings, RunSettings

if TYPE_CHECKING:
    from imbalance_perturb.selection.rule import SelectionRule

#: What the settings of ``[run]`` are declared as.
RUN = declarations(RunSettings)

#: Exit codes besides 0: a failure, a wrong use, and done but with images that have an error.
FAILED, WRONG_USAGE, SOME_FAILED = 1, 2, 3


class ModelOptions(SimpleNamespace):
    """How the model file is read; of each group of options an attribute, ``None`` is 'not given'."""


class PreprocessOptions(SimpleNamespace):
    """What happens to an image before the model sees it."""


class DebiasOptions(SimpleNamespace):
    """The method's own parameters."""


class RunOptions(SimpleNamespace):
    """Where and how fast it runs."""


class PredictRunOptions(RunOptions):
    """The same, with which machines it runs on."""


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command that reads settings."""

    recipe: Annotated[
        Path | None, Option(metavar="FILE", help="Recipe to read. (default: ./imbperturb.toml where there is one)")
    ] = None
    quiet: Annotated[bool, Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")] = False


#: Their heading in the help.
RERUN_PANEL = "The run's files, to compute images again"


@dataclass(frozen=True, kw_only=True)
class RerunOptions:
    """Options of every command that computes images of a run again."""

    model: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Where the model file is now. (default: as the run says)",
            rich_help_panel=RERUN_PANEL,
        ),
    ] = None
    images: Annotated[
        Path | None,
        Option(
            metavar="PATH", help="Where the images are now. (default: as the run says)", rich_help_panel=RERUN_PANEL
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(help=RUN["device"].describe("that of the run"), show_default=False, rich_help_panel=RERUN_PANEL),
    ] = None
    factory: Annotated[
        str | None,
        Option(
            metavar="PACKAGE.MODULE:FUNCTION",
            show_default=False,
            help="Builds the network, where the run had a factory: a run file cannot make code run.",
            rich_help_panel=RERUN_PANEL,
        ),
    ] = None
    trust_model_file: Annotated[
        bool,
        Option(
            "--trust-model-file",
            help="Load a model file that runs code of its own. Only for files you made.",
            rich_help_panel=RERUN_PANEL,
        ),
    ] = False


#: Their heading in the help.
CHOICE_PANEL = "Choice"


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """Options of every command that chooses parameters on labelled images."""

    objective: Annotated[
        str,
        Option(
            help="What to maximise: mcr (mean class recall) | scr (recall of the smallest class) | worst (recall of the"
            " worst class) | gmean (geometric mean of the recalls).",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = "mcr"
    max_accuracy_drop: Annotated[
        float | None,
        Option(
            metavar="X",
            show_default=False,
            help="Largest loss of accuracy, as a share: 0.01 is one point. (default: no limit)",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None
    significance: Annotated[
        float,
        Option(
            help="Largest p-value of a gain by eps that is believed, adjusted for the number of attempts; 1 believes"
            " any.",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = 0.05
    folds: Annotated[int, Option(help="Parts held out in turn.", rich_help_panel=CHOICE_PANEL)] = 5
    repeats: Annotated[int, Option(help="How often the images are split anew.", rich_help_panel=CHOICE_PANEL)] = 10
    seed: Annotated[int, Option(help="Of splits, tests and resampling.", rich_help_panel=CHOICE_PANEL)] = 0

    def rule(self) -> SelectionRule:
        """The rule they say."""
        from imbalance_perturb.selection.rule import SelectionRule

        return SelectionRule(**{field.name: getattr(self, field.name) for field in fields(self)})


#: The groups that are not of settings.
OWN_GROUPS = (CommonOptions, RerunOptions, ChoiceOptions)

#: The groups that stand in recipes, and the tables of theirs.
GROUPS: dict[type, str] = {
    ModelOptions: "model",
    PreprocessOptions: "preprocess",
    DebiasOptions: "debias",
    RunOptions: "run",
    PredictRunOptions: "run",
}

#: The groups that have what one command alone takes.
_OF_COMMAND: dict[type, str] = {PredictRunOptions: "predict"}

#: What the settings of ``[model]`` are declared as.
MODEL = declarations(ModelSettings)
ModelArgument = Annotated[str | None, Argument(metavar="MODEL", show_default=False, help=MODEL["model"].describe())]
CountsArgument = Annotated[str | None, Argument(metavar="COUNTS", show_default=False, help=MODEL["counts"].describe())]

GroupOption = Annotated[
    str | None,
    Option(
        "--group",
        metavar="COLUMN",
        show_default=False,
        help="Column of the labels' CSV that says which images are alike (lesion, patient, camera): intervals, tests"
        " and folds are then by group. (default: images are taken as independent)",
    ),
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take whole groups of options: a parameter annotated with one becomes the group's options.

    Typer reads a command's signature, so the wrapper shows one in which each group's parameter is replaced by
    the group's options, and hands the command the group built from what was given.
    """
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    groups = {name: list(_options(hints[name])) for name in own if hints[name] in (*GROUPS, *OWN_GROUPS)}
    parameters = [p.replace(annotation=hints[p.name]) for p in own.values() if p.name not in groups]
    parameters += [option for options in groups.values() for option in options]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        built = {
            name: hints[name](**{option.name: given.pop(option.name) for option in options})
            for name, options in groups.items()
        }
        command(**given, **built)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapper.__wrapped__  # or the original signature would be found behind it
    return wrapper


def _options(group: type) -> Iterator[inspect.Parameter]:
    if group in OWN_GROUPS:
        types = get_type_hints(group, include_extras=True)
        options = [(entry.name, entry.default, types[entry.name]) for entry in fields(group)]
    else:
        table = TABLES[GROUPS[group]]
        shown = ("", _OF_COMMAND.get(group))
        entries = [entry for entry in declarations(table).values() if not entry.argument and entry.only in shown]
        options = [(entry.name, None, _option(entry, table.panel)) for entry in entries]
    for name, default, annotation in options:
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(entry: Declaration, panel: str) -> Any:
    allowed, names = entry.allowed, f"--{entry.option}"
    if isinstance(allowed, Flag) and allowed.off:
        names += f"/--no-{entry.option}"
    # Nothing is given by default, so that a recipe can fill it.
    given_as: Any = Optional[allowed.given_as]  # noqa: UP045 (a type that is known when it runs)
    return Annotated[given_as, Option(names, help=entry.describe(), metavar=allowed.metavar, rich_help_panel=panel)]

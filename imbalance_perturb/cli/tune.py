"""The command ``tune-eps``: which eps to use, how sure that is, and whether any helps at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.handover import hand_over
from imbalance_perturb.cli.narration import Narrator, describe_eps_space
from imbalance_perturb.cli.options import (
    CHOICE_PANEL,
    SOME_FAILED,
    ChoiceOptions,
    CommonOptions,
    CountsArgument,
    DebiasOptions,
    GroupOption,
    ModelArgument,
    ModelOptions,
    PreprocessOptions,
    RunOptions,
    with_options,
)
from imbalance_perturb.cli.settings import resolve_settings
from imbalance_perturb.config.allowed import parse_list
from imbalance_perturb.errors import SettingsError

if TYPE_CHECKING:
    from imbalance_perturb.config.settings import ModelSettings
    from imbalance_perturb.inference.progress import LoadedPipeline
    from imbalance_perturb.selection.rule import SelectionRule
    from imbalance_perturb.selection.tuning.eps_tuning import TuningOptions
    from imbalance_perturb.selection.tuning.results import Tuning


@with_options
def tune_eps(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    *,
    val: Annotated[
        str,
        Option(
            "--val",
            metavar="PATH",
            help="Images the model was not trained on: a folder, or a CSV with 'image'.",
        ),
    ],
    labels: Annotated[
        Path | None,
        Option(
            "--labels",
            metavar="PATH",
            show_default=False,
            help="CSV with image,label, or a folder of class folders. (default: --val itself)",
        ),
    ] = None,
    group: GroupOption = None,
    costs: Annotated[
        Path | None,
        Option(
            "--costs",
            metavar="FILE",
            show_default=False,
            help="JSON of what each prediction costs, {true class: {predicted class: cost}}: lower that, in place of"
            " --objective.",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    eps_grid: Annotated[
        str | None,
        Option(
            metavar="A,B,...",
            show_default=False,
            help="Values of eps to try; 0 is always tried. (default: 13 around that of --eps auto)",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    temperatures: Annotated[
        str | None,
        Option(
            metavar="A,B,...",
            show_default=False,
            help="Values of T to try. (default: that of --temperature)",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    losses: Annotated[
        str | None,
        Option(
            metavar="A,B,...",
            show_default=False,
            help="Losses to try. (default: that of --loss)",
            rich_help_panel=CHOICE_PANEL,
        ),
    ] = None,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="JSON to write.")] = Path("tune-eps.json"),
    plot: Annotated[
        Path | None, Option("--plot", metavar="FILE", help="PNG to write: figures against eps and T.")
    ] = None,
    report: Annotated[
        Path | None, Option("--report", metavar="FILE", help="HTML page to write, with plot and tables.")
    ] = None,
    choice: ChoiceOptions,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: RunOptions,
    common: CommonOptions,
) -> None:
    """Choose eps on labelled images that the model was not trained on; the answer may be 0: no correction helps.

    MODEL and COUNTS may be left out where the recipe names them; the recipe then gets the chosen eps. Exit code 3:
    done, but some images have an error.
    """
    from imbalance_perturb.files.writing import check_output
    from imbalance_perturb.selection.chosen_recipe import check_recipe
    from imbalance_perturb.selection.tuning.eps_tuning import TuningOptions, tune, tuned_debias

    _check_given(debias, temperatures, losses)
    rule = choice.rule()
    options = TuningOptions(**_lists(eps_grid, temperatures, losses), rule=rule, group=group)  # type: ignore[arg-type]
    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)
    options = options if costs is None else replace(options, rule=_by_costs(rule, costs, settings.model))
    for path, suffixes in ((out, (".json",)), (plot, (".png",)), (report, (".html", ".htm"))):
        check_output(path, suffixes)
    check_recipe(recipe, settings)
    say = _TuningNarrator(common.quiet, options)
    say.recipe(recipe)
    tuning = tune(settings, val, labels, options, progress=say)
    _write_files(tuning, out, plot, report)
    _show(tuning, as_json=common.as_json)
    for text in tuning.notes:
        say.line(f"note: {text}")
    say.line("written: " + ", ".join(str(path) for path in (out, plot, report) if path is not None))
    hand_over(recipe, settings, tuned_debias(tuning, settings.debias), say)
    raise typer.Exit(SOME_FAILED if tuning.failed else 0)


def _by_costs(rule: SelectionRule, costs: Path, model: ModelSettings) -> SelectionRule:
    """The rule with the costs of a file as its objective."""
    from imbalance_perturb.inference.model_loading import load_counts
    from imbalance_perturb.method.class_files import load_costs
    from imbalance_perturb.selection.rule import COST

    if rule.objective != "mcr":
        raise SettingsError(f"--costs is an objective of its own; leave --objective {rule.objective} out")
    matrix = load_costs(costs, load_counts(model).counts.names)
    return replace(rule, objective=COST, costs=tuple(map(tuple, matrix.tolist())))


def _check_given(debias: DebiasOptions, temperatures: str | None, losses: str | None) -> None:
    """Refuse a single value of what is being tried."""
    if debias.eps is not None:
        raise SettingsError("eps is what tune-eps chooses: leave --eps out; --eps-grid A,B,... says what to try")
    for single, several, one, many in (
        (debias.temperature, temperatures, "--temperature", "--temperatures"),
        (debias.loss, losses, "--loss", "--losses"),
    ):
        if single is not None and several is not None:
            raise SettingsError(f"{one} and {many} are both given; {many} alone says what to try")


def _lists(eps_grid: str | None, temperatures: str | None, losses: str | None) -> dict[str, tuple[object, ...]]:
    given: tuple[tuple[str, str | None, Callable[[str], object]], ...] = (
        ("eps_grid", eps_grid, float),
        ("temperatures", temperatures, float),
        ("losses", losses, str.strip),
    )
    return {name: parse_list(name.replace("_", "-"), text, kind) for name, text, kind in given if text is not None}


class _TuningNarrator(Narrator):
    def __init__(self, quiet: bool, options: TuningOptions) -> None:
        super().__init__(quiet)
        self._options = options

    def correction(self, pipeline: LoadedPipeline) -> str:
        debias = pipeline.settings.debias
        variants = self._options.variants(debias, pipeline.strength)
        loss_specs = len({variant.loss_spec for variant in variants})
        tau = f", tau {debias.used_tau:g} throughout" if debias.used_tau else ""
        part = ", of which all but the first are of what lies behind it" if debias.hidden else ""
        return (
            f"trying: {len(variants)} corrections with eps in units of the {describe_eps_space(debias)}, target"
            f" {debias.target}{tau}; 1 + {loss_specs} + {len(variants)} passes an image{part}"
        )


def _write_files(tuning: Tuning, out: Path, plot: Path | None, report: Path | None) -> None:
    from imbalance_perturb.files.writing import write_json, write_whole

    write_json(out, tuning.to_dict())
    if plot is not None:
        from imbalance_perturb.reports.tuning_plots import plot_tuning

        write_whole(plot, plot_tuning(tuning))
    if report is not None:
        from imbalance_perturb.reports.tuning_page import tuning_page

        # A file name that is not UTF-8 must not end the report.
        write_whole(report, tuning_page(tuning).encode("utf-8", errors="backslashreplace"))


def _show(tuning: Tuning, *, as_json: bool) -> None:
    if as_json:
        terminal.show_json(tuning.to_dict())
    else:
        from imbalance_perturb.reports.tuning_tables import print_tuning

        print_tuning(tuning)
        sys.stdout.flush()

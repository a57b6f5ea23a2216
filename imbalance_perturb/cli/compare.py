"""The command ``compare``: the method beside other post-hoc corrections, on the user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.handover import hand_over
from imbalance_perturb.cli.narration import Narrator
from imbalance_perturb.cli.options import (
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
    from imbalance_perturb.data.image_files import ImageList
    from imbalance_perturb.inference.progress import LoadedPipeline
    from imbalance_perturb.predictions.shards import Shard
    from imbalance_perturb.selection.comparison.results import Comparison

#: Options of the shared group that a comparison chooses by itself, and what to give instead.
_CHOSEN = {
    "eps": "give the steps to try as --eps-grid",
    "tau": "give the strengths to try as --tau-grid",
    "steps": "methods are compared with one step",
    "method": "name those to compare with --methods",
    "offsets": "they are fitted",
}


@with_options
def compare(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    *,
    val: Annotated[str, Option("--val", metavar="PATH", help="Images to choose parameters on: folder or CSV.")],
    labels: Annotated[
        str | None,
        Option("--labels", metavar="PATH", help="CSV with image,label. (default: the class folders, or CSV, of --val)"),
    ] = None,
    test: Annotated[
        str | None,
        Option("--test", metavar="PATH", help="Other images to score on. (default: --val, by nested cross-validation)"),
    ] = None,
    test_labels: Annotated[str | None, Option("--test-labels", metavar="PATH", help="As --labels, for --test.")] = None,
    group: GroupOption = None,
    methods: Annotated[
        str | None,
        Option(
            "--methods",
            metavar="A,B,...",
            help="Of none, perturb, perturb-at (a hidden layer, --perturb-at), la, perturb+la, tau-norm, offsets, p2p,"
            " random-sign, minus-eps. (default: all)",
        ),
    ] = None,
    eps_grid: Annotated[
        str | None,
        Option(
            "--eps-grid",
            metavar="E,E,...",
            help="Steps to try; 0 is added, except to a single value. (default: those of tune-eps)",
        ),
    ] = None,
    tau_grid: Annotated[
        str | None,
        Option(
            "--tau-grid",
            metavar="T,T,...",
            help="Strengths of la, p2p and tau-norm to try, likewise. (default: 17 from 0 to 4)",
        ),
    ] = None,
    confidence_level: Annotated[float, Option("--confidence-level", help="Of all intervals.")] = 0.95,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="JSON file to write.")] = Path("compare.json"),
    report: Annotated[Path | None, Option("--report", metavar="FILE", help="HTML page to write.")] = None,
    no_recipe: Annotated[bool, Option("--no-recipe", help="Leave the recipe as it is.")] = False,
    choice: ChoiceOptions,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: RunOptions,
    common: CommonOptions,
) -> None:
    """Line up the method with simpler corrections on the same images, and say which to use.

    Each method's parameters are chosen on --val; scored are images that had no part in the choice. MODEL and COUNTS
    may be left out where the recipe names them; the recipe then gets the method that is advised. Exit code 3: done,
    but some images have an error.
    """
    for option, instead in _CHOSEN.items():
        if getattr(debias, option) is not None:
            raise SettingsError(f"--{option} is chosen by compare: {instead}")
    if test is None and test_labels is not None:
        raise SettingsError("--test-labels is given without --test: name the images to score on")
    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)
    if settings.debias.steps != 1:
        raise SettingsError(f"steps is {settings.debias.steps} in the recipe: {_CHOSEN['steps']}")
    from imbalance_perturb.files.writing import check_output
    from imbalance_perturb.selection.chosen_recipe import check_recipe

    check_output(out, (".json",))
    check_output(report, (".html", ".htm"))
    say = _ComparisonNarrator(common.quiet)
    say.recipe(recipe)
    kept = None if no_recipe else recipe
    check_recipe(kept, settings)

    from imbalance_perturb.selection.comparison.method_comparison import ComparisonFiles, compare_methods
    from imbalance_perturb.selection.comparison.methods import METHODS, TAU_GRID, ComparisonOptions
    from imbalance_perturb.selection.comparison.results import applied_debias

    options = ComparisonOptions(
        methods=METHODS if methods is None else parse_list("methods", methods, str.strip),
        eps_grid=None if eps_grid is None else parse_list("eps-grid", eps_grid),
        tau_grid=TAU_GRID if tau_grid is None else parse_list("tau-grid", tau_grid),
        rule=choice.rule(),
        level=confidence_level,
        group=group,
    )
    files = ComparisonFiles(val, labels, test, test_labels)
    comparison = compare_methods(settings, files, options, progress=say)
    _show(comparison, out, report, common)
    advised = comparison.advised
    chosen = applied_debias(advised, settings.debias)
    hand_over(kept, settings, chosen, say, always=("method", *advised.parameters))
    raise typer.Exit(SOME_FAILED if comparison.failed else 0)


class _ComparisonNarrator(Narrator):
    def found(self, images: ImageList, shard: Shard | None = None) -> None:
        """Nothing: the comparison's notes tell of the images."""

    def correction(self, pipeline: LoadedPipeline) -> str:
        debias = pipeline.settings.debias
        return f"perturbation: T {debias.temperature:g}, {debias.loss}, target {debias.target}"


def _show(comparison: Comparison, out: Path, report: Path | None, common: CommonOptions) -> None:
    from imbalance_perturb.files.writing import write_json, write_whole

    write_json(out, comparison.to_dict())
    if report is not None:
        from imbalance_perturb.reports.comparison_page import comparison_page

        write_whole(report, comparison_page(comparison).encode("utf-8", errors="backslashreplace"))
    if common.as_json:
        terminal.show_json(comparison.to_dict())
    else:
        from imbalance_perturb.reports.comparison_tables import print_comparison

        print_comparison(comparison)
    if not common.quiet:
        for note in comparison.notes:
            terminal.say(f"note: {note}")
        for path in (out, report):
            if path is not None:
                terminal.say(f"written: {path}")

"""``imbperturb inspect`` and ``imbperturb init``: what a model file holds, and a recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.options import (
    MODEL,
    CommonOptions,
    CountsArgument,
    DebiasOptions,
    ModelArgument,
    ModelOptions,
    PreprocessOptions,
    RunOptions,
    with_options,
)
from imbalance_perturb.cli.settings import resolve_settings


@with_options
def inspect(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    *,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: RunOptions,
    common: CommonOptions,
) -> None:
    """Say what a model file holds, try it out, and show the table class -> index -> count -> p*.

    Of a .pt2 or .onnx that export wrote: what it says of itself.
    """
    from imbalance_perturb.cli import narration

    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)
    say = narration.Narrator(common.quiet)
    say.recipe(recipe)

    from imbalance_perturb.inference.inspection import inspect_exported, inspect_model
    from imbalance_perturb.reports.inspection_tables import print_card, print_inspection

    card = inspect_exported(settings)
    if card is not None:
        assert settings.model.model is not None
        if common.as_json:
            terminal.show_json(card.to_dict())
        else:
            print_card(settings.model.model, card)
        return
    inspection = inspect_model(settings)
    if common.as_json:
        terminal.show_json(inspection)
    else:
        print_inspection(inspection)
    say.assumptions(inspection.model.assumptions)


@with_options
def init(
    model: Annotated[str, Argument(help=MODEL["model"].describe())],
    counts: Annotated[str, Argument(help=MODEL["counts"].describe())],
    *,
    out: Annotated[Path, Option("--out", "-o", help="Where to write the recipe.")] = Path("imbperturb.toml"),
    force: Annotated[bool, Option("--force", help="Replace a recipe that is there.")] = False,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: RunOptions,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
) -> None:
    """Check a model with its counts and write both, with all settings, into a recipe."""
    from imbalance_perturb.cli import narration
    from imbalance_perturb.errors import OutputFileError
    from imbalance_perturb.files.writing import check_writable

    if out.exists() and not force:
        raise OutputFileError(f"{out}: there is a recipe already; --force replaces it, -o writes elsewhere")
    check_writable(out)
    settings, _ = resolve_settings(None, model_options, preprocess, debias, run, model=model, counts=counts)

    from imbalance_perturb.inference.inspection import inspect_model, write_complete_recipe

    inspection = inspect_model(settings)
    write_complete_recipe(out, settings, inspection.preprocessing, sha256=inspection.model.sha256)
    say = narration.Narrator(quiet)
    say.inspection(inspection)
    say.line(f"recipe: {out} (commands run from its folder read it by themselves)")
    for given, option in (
        (settings.model.factory, "--factory"),
        (settings.model.trust_model_file, "--trust-model-file"),
    ):
        if given:
            say.line(f"note: a recipe cannot make code run: give {option} again in each run")

"""The command ``shares``: the class shares of a folder of unlabelled images."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.given_images import tell_apart
from imbalance_perturb.cli.narration import Narrator
from imbalance_perturb.cli.options import (
    SOME_FAILED,
    CommonOptions,
    CountsArgument,
    ModelArgument,
    ModelOptions,
    PreprocessOptions,
    RunOptions,
    with_options,
)
from imbalance_perturb.cli.settings import find_recipe, resolve_settings
from imbalance_perturb.errors import printable

if TYPE_CHECKING:
    from imbalance_perturb.inference.progress import LoadedPipeline
    from imbalance_perturb.inference.share_estimation import ClassShares

#: Images that failed and are named; the file has all of them.
_NAMED = 5


@with_options
def shares(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    images: Annotated[
        list[str] | None,
        Argument(
            metavar="IMAGES",
            show_default=False,
            help="Unlabelled images, as predict takes them: folders, images, tables with 'image', lists of paths, URL.",
        ),
    ] = None,
    *,
    resamples: Annotated[int, Option("--resamples", help="Of the bootstrap that gives the intervals.")] = 1000,
    seed: Annotated[int, Option("--seed", help="Of the resampling.")] = 0,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="JSON file to write.")] = Path("shares.json"),
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    run: RunOptions,
    common: CommonOptions,
) -> None:
    """Estimate the class shares of unlabelled images, with 95% intervals; --prior takes the file.

    By expectation-maximisation (Saerens et al. 2002) from the plain model, one pass an image. It assumes that only the
    class shares differ from training, and that the model's probabilities are calibrated to the class mix of COUNTS.
    MODEL and COUNTS may be left out where the recipe names them. Exit code 3: done, but some images have an error.
    """
    from imbalance_perturb.files.writing import check_output, write_json
    from imbalance_perturb.inference.share_estimation import SharesOptions, estimate_shares

    given = [model, counts, *(images or [])]
    model, counts, found = tell_apart("shares", given, has_recipe=find_recipe(common) is not None)
    settings, recipe = resolve_settings(common, model_options, preprocess, run, model=model, counts=counts)
    options = SharesOptions(resamples=resamples, seed=seed)
    check_output(out, (".json",))
    say = _SharesNarrator(common.quiet)
    say.recipe(recipe)
    estimated = estimate_shares(settings, found, options, progress=say)
    write_json(out, estimated.to_dict())
    if common.as_json:
        terminal.show_json(estimated.to_dict())
    else:
        from imbalance_perturb.reports.shares_table import print_shares

        print_shares(estimated)
    say.end(estimated, out)
    raise typer.Exit(SOME_FAILED if estimated.failed else 0)


class _SharesNarrator(Narrator):
    def correction(self, pipeline: LoadedPipeline) -> str:
        return "class shares: by EM from the plain model's probabilities, one pass an image"

    def end(self, estimated: ClassShares, out: Path) -> None:
        """Say what failed, and where the shares are."""
        for warning in estimated.warnings:
            self.line(f"warning: {warning}")
        for image, error in islice(estimated.errors.items(), _NAMED):
            self.line(f"  failed: {printable(image)}: {printable(error)}")
        if estimated.failed > _NAMED:
            self.line(f"  and {estimated.failed - _NAMED} more: see 'errors' in {out}")
        self.line(f"{estimated.images:,} images, {estimated.failed:,} failed -> {out}")

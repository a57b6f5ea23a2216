"""``imbperturb predict``: every image twice, plain and corrected, into one table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer
from typer import Argument, Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.given_images import tell_apart
from imbalance_perturb.cli.interruption import interruptible
from imbalance_perturb.cli.narration import Narrator
from imbalance_perturb.cli.options import (
    SOME_FAILED,
    CommonOptions,
    CountsArgument,
    DebiasOptions,
    ModelArgument,
    ModelOptions,
    PredictRunOptions,
    PreprocessOptions,
    with_options,
)
from imbalance_perturb.cli.settings import find_recipe, resolve_settings
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.files.writing import STDOUT


@with_options
def predict(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    images: Annotated[
        list[str] | None,
        Argument(
            metavar="IMAGES",
            show_default=False,
            help="Folders (searched recursively), images, tables (CSV, Parquet) with 'image', text files of paths, one"
            " a line; or a URL of one of these (s3://, gs://).",
        ),
    ] = None,
    *,
    out: Annotated[
        str, Option("--out", "-o", help=".csv, .jsonl or .parquet file, or - for CSV on stdout.")
    ] = "predictions.csv",
    probs: Annotated[bool, Option("--probs", help="Also write the probabilities of all classes.")] = False,
    margin: Annotated[
        bool,
        Option(
            "--margin",
            help="Also write by how much each label was decided: the two largest corrected probabilities' difference.",
        ),
    ] = False,
    bom: Annotated[
        bool, Option("--bom", help="Begin the CSV with a byte-order mark, so that Excel reads it as UTF-8.")
    ] = False,
    resume: Annotated[
        bool | None,
        Option(
            "--resume/--no-resume",
            help="Go on with a run that was cut off, where there is one; or drop its rows and start anew. Without"
            " either such rows are not touched.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        Option(metavar="I/N", show_default=False, help="Only the I-th of N parts of the images, told by their paths."),
    ] = None,
    on_error: Annotated[
        str,
        Option(metavar="skip|fail", help="What an image that cannot be used does: a row with the reason, or the end."),
    ] = "skip",
    max_failures: Annotated[
        str | None,
        Option(metavar="N|P%", show_default=False, help="End when more images fail: a number or a share of all."),
    ] = None,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: PredictRunOptions,
    common: CommonOptions,
) -> None:
    """Predict every image twice, plain and corrected, into one table.

    MODEL and COUNTS may be left out where the recipe names them. Exit code 3: done, but some images have an error.
    """
    from imbalance_perturb.inference.prediction_job import PredictOptions, predict_folder

    given = [model, counts, *(images or [])]
    model, counts, found = tell_apart("predict", given, has_recipe=find_recipe(common) is not None)
    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)
    _check_cluster(settings.run.engine, run)
    options = PredictOptions(
        probs=probs,
        margin=margin,
        resume=resume,
        shard=shard,
        on_error=on_error,
        max_failures=max_failures,
        bom=bom,
    )
    say = _InterruptibleNarrator(common.quiet)
    say.recipe(recipe)
    summary = predict_folder(settings, found, out, options, progress=say)
    say.summary(summary)
    if common.as_json and out != STDOUT:
        terminal.show_json(summary)
    raise typer.Exit(SOME_FAILED if summary.failed else 0)


def _check_cluster(engine: str, run: PredictRunOptions) -> None:
    """Refuse what is said of a cluster on the command line where none is asked for; a recipe may say it for later."""
    given = [name for name in ("ray_address", "ray_workers", "ray_worker_cpus", "ray_worker_gpus") if vars(run)[name]]
    if given and engine != "ray":
        raise SettingsError(f"--{given[0].replace('_', '-')} is of a cluster, and engine is {engine}; add --engine ray")


class _InterruptibleNarrator(Narrator):
    """While images are counted, the first Ctrl-C or SIGTERM stops the run where nothing is lost."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet)
        self._counting = ExitStack()
        self._asked: Callable[[], str | None] = lambda: None

    def started(self, total: int, done: int = 0) -> None:
        self._asked = self._counting.enter_context(interruptible())
        super().started(total, done)

    def should_stop(self) -> str | None:
        return self._asked()

    def ended(self) -> None:
        super().ended()
        self._counting.close()

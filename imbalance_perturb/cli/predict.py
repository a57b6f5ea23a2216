"""``imbperturb predict``: every image twice, plain and corrected, into one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.options import (
    SOME_FAILED,
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
from imbalance_perturb.errors import SettingsError


@with_options
def predict(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    images: Annotated[
        str | None,
        Argument(
            metavar="IMAGES", show_default=False, help="Folder (searched recursively), image, or CSV with 'image'."
        ),
    ] = None,
    *,
    out: Annotated[
        str, Option("--out", "-o", help=".csv, .jsonl or .parquet file, or - for CSV on stdout.")
    ] = "predictions.csv",
    probs: Annotated[bool, Option("--probs", help="Also write the probabilities of all classes.")] = False,
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
    run: RunOptions,
    common: CommonOptions,
) -> None:
    """Predict every image twice, plain and corrected, into one table.

    MODEL and COUNTS may be left out where the recipe names them. Exit code 3: done, but some images have an error.
    """
    from imbalance_perturb.cli import narration
    from imbalance_perturb.cli.interruption import interruptible
    from imbalance_perturb.data.image_files import find_images
    from imbalance_perturb.files.writing import STDOUT
    from imbalance_perturb.inference.failure_limit import select_limit
    from imbalance_perturb.predictions.journal import check_place
    from imbalance_perturb.predictions.shards import parse_shard
    from imbalance_perturb.predictions.writing import check_bom

    if counts is None and images is None:
        model, images = None, model
    if images is None:
        raise SettingsError("no images are given: imbperturb predict MODEL COUNTS IMAGES (or IMAGES with a recipe)")
    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)
    part = None if shard is None else parse_shard(shard)
    if bom:
        check_bom(out)
    if out != STDOUT:
        check_place(Path(out))
    say = narration.Narrator(common.quiet)
    say.recipe(recipe)
    found = find_images(images)
    found = found if part is None else found.part(part.holds)
    say.images(found, part)
    failures = select_limit(on_error, max_failures, len(found))

    from imbalance_perturb.inference.folder_prediction import predict_folder
    from imbalance_perturb.inference.pipeline import load_pipeline
    from imbalance_perturb.predictions.resuming import check_unfinished, recorded_batch_size

    check_unfinished(out, resume)
    if resume and settings.run.batch_size is None:
        settings = replace(settings, run=replace(settings.run, batch_size=recorded_batch_size(out)))
    pipeline = load_pipeline(settings, found)
    say.pipeline(pipeline)
    with interruptible() as should_stop, say.progress(len(found)) as progress:
        summary = predict_folder(
            pipeline,
            found,
            out,
            probabilities=probs,
            bom=bom,
            resume=resume,
            shard=part,
            failures=failures,
            progress=progress,
            resumed=progress.skip,
            should_stop=should_stop,
        )
    say.summary(summary)
    if common.as_json and out != STDOUT:
        terminal.show_json(summary)
    raise typer.Exit(SOME_FAILED if summary.failed else 0)

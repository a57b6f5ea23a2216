"""The commands: each parses, calls one function of the library and renders what it returns."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import Argument, Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.compare import compare
from imbalance_perturb.cli.evaluate import evaluate
from imbalance_perturb.cli.merge import merge
from imbalance_perturb.cli.options import (
    FAILED,
    MODEL,
    SOME_FAILED,
    WRONG_USAGE,
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
from imbalance_perturb.cli.tune import tune_eps
from imbalance_perturb.cli.verify import verify
from imbalance_perturb.errors import ImbperturbError, SettingsError
from imbalance_perturb.inference.allocator import keep_freed_memory

# Its own base is what every wrong use of options and arguments has in common, and has no public name.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="imbperturb",
    help="Correct a classifier trained on imbalanced data, after training, by perturbing its input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; a user's mistake ends in one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here so that it may stand anywhere; the callback only documents it.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    keep_freed_memory()
    terminal.prepare()
    try:
        # Typer alone would show what is wrong with the arguments as they were given, terminal commands and all.
        code = app(args=arguments, prog_name="imbperturb", standalone_mode=False)
    except _UsageError as error:
        _fail_usage(error)
    except Exception as error:
        if debug:
            sys.excepthook = terminal.show_traceback
            raise
        if isinstance(error, ImbperturbError):
            _fail(str(error), WRONG_USAGE if isinstance(error, SettingsError) else FAILED)
        # The last resort: one line instead of a traceback.
        what = f"{type(error).__name__}: {error}"
        _fail(f"{what} (this is a fault of imbperturb, not of yours; --debug shows where)", FAILED)
    raise SystemExit(code or 0)


def _fail(message: str, code: int) -> NoReturn:
    terminal.say(f"imbperturb: error: {message}")
    raise SystemExit(code)


def _fail_usage(error: Any) -> NoReturn:
    message = error.format_message()
    if not message:  # no arguments at all: the help has been shown
        raise SystemExit(WRONG_USAGE)
    command = "imbperturb" if error.ctx is None else error.ctx.command_path
    _fail(f"{message.rstrip('.')} ({command} --help says more)", WRONG_USAGE)


def _show_version(wanted: bool) -> None:
    if wanted:
        import imbalance_perturb

        terminal.show(imbalance_perturb.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    pass


@app.command()
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
    from imbalance_perturb.inference.pipeline import assemble
    from imbalance_perturb.predictions.resuming import check_unfinished, recorded_batch_size

    check_unfinished(out, resume)
    if resume and settings.run.batch_size is None:
        settings = replace(settings, run=replace(settings.run, batch_size=recorded_batch_size(out)))
    assembly = assemble(settings, found)
    say.assembly(assembly)
    with interruptible() as should_stop, say.progress(len(found)) as progress:
        summary = predict_folder(
            assembly,
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


app.command()(merge)
app.command()(verify)
app.command()(evaluate)
app.command()(tune_eps)
app.command()(compare)


@app.command()
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
    """Say what a model file holds, try it out, and show the table class -> index -> count -> p*."""
    from imbalance_perturb.cli import narration

    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)
    say = narration.Narrator(common.quiet)
    say.recipe(recipe)

    from imbalance_perturb.inference.inspection import inspect_model

    inspection = inspect_model(settings)
    if common.as_json:
        terminal.show_json(inspection)
    else:
        narration.print_inspection(inspection)
    say.assumptions(inspection.model.assumptions)


@app.command()
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


@app.command()
def counts(
    train: Annotated[str, Argument(metavar="TRAIN", help="Folder of class folders, or CSV with image,label.")],
    out: Annotated[
        Path | None, Option("--out", "-o", help="JSON file to write (default: JSON on stdout).", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        Option(
            metavar="A,B,...",
            help="Class names in class-index order (default: sorted as text, as ImageFolder has them, so 10 before 2;"
            " labels of a CSV that are all whole numbers by value).",
        ),
    ] = None,
) -> None:
    """Count the training images of each class, in class-index order."""
    from imbalance_perturb.cli import narration
    from imbalance_perturb.data.labels import count_labels, describe_order
    from imbalance_perturb.files.writing import check_writable

    if out is not None:
        check_writable(out)
    say = narration.Narrator(quiet=False)
    found = count_labels(train, None if classes is None else classes.split(","), describe=say.counted)
    order = "as given" if classes is not None else describe_order(train, found.names)
    narration.write_counts(found, out, order=order)


@app.command()
def demo(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="New or empty folder to work in.")] = Path(
        "imbperturb-demo"
    ),
) -> None:
    """Run the whole job on real images that come with a dependency: handwritten digits, made long-tailed."""
    from imbalance_perturb.cli.demo import run_demo

    run_demo(folder, terminal.show)

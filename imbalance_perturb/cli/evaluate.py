"""The command ``evaluate``: does it help, what does it cost, and is it more than noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.options import SOME_FAILED, CommonOptions, GroupOption, RerunOptions, with_options
from imbalance_perturb.cli.settings import resolve_settings

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.results import Evaluation
    from imbalance_perturb.reports.gallery import GalleryCards


@with_options
def evaluate(
    predictions: Annotated[Path, Argument(metavar="PREDICTIONS", help="File that predict wrote.")] = Path(
        "predictions.csv"
    ),
    *,
    labels: Annotated[
        Path, Option("--labels", metavar="PATH", help="CSV with image,label, or a folder of class folders.")
    ],
    counts: Annotated[
        Path | None,
        Option(
            "--counts",
            metavar="FILE",
            help="JSON of training images per class. (default: those of the run file beside PREDICTIONS)",
        ),
    ] = None,
    prevalence: Annotated[
        Path | None,
        Option(
            "--prevalence",
            metavar="FILE",
            help="JSON of the classes' shares where the model is used: PPV, NPV and costs are stated at these."
            " (default: the shares of the labels)",
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        Option(
            "--costs",
            metavar="FILE",
            help="JSON of what each prediction costs, {true class: {predicted class: cost}}: adds the expected cost.",
        ),
    ] = None,
    group: GroupOption = None,
    report: Annotated[
        Path | None, Option("--report", metavar="FILE", help="HTML page to write, with plots and all tables.")
    ] = None,
    gallery: Annotated[
        int | None,
        Option(
            "--gallery",
            metavar="N",
            show_default=False,
            help="Put up to N images of each kind whose label changed into the report, with their perturbation: the"
            " model runs again for it, on the files named below. They may be of patients.",
        ),
    ] = None,
    plot: Annotated[Path | None, Option("--plot", metavar="FILE", help="PNG to write, with all plots.")] = None,
    confidence_level: Annotated[float, Option("--confidence-level", help="Of all intervals.")] = 0.95,
    seed: Annotated[int, Option("--seed", help="Of the resampling, and of the gallery's draw.")] = 0,
    files: RerunOptions,
    common: CommonOptions,
) -> None:
    """Compare base and perturbed predictions with labels: gains, costs, intervals and tests.

    Exit code 3: done, but some images have an error instead of a prediction.
    """
    from imbalance_perturb.evaluation.evaluation_files import evaluate_files
    from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions
    from imbalance_perturb.files.writing import check_output
    from imbalance_perturb.predictions.run_file import run_path

    _check_gallery(gallery, report)
    options = IntervalOptions(level=confidence_level, seed=seed)
    for path, suffixes in ((report, (".html", ".htm")), (plot, (".png",))):
        check_output(path, suffixes)
    if counts is None and not run_path(predictions).is_file():
        # Only where nothing nearer tells: a recipe may be of another run than the predictions.
        recipe_counts = resolve_settings(common)[0].model.counts
        counts = None if recipe_counts is None else Path(recipe_counts)
    evaluation = evaluate_files(
        predictions, labels, options, counts=counts, prevalence=prevalence, costs=costs, group=group
    )
    cards = None if gallery is None else _make_cards(predictions, labels, gallery, seed, files)
    written = _write_files(evaluation, report, plot, cards)
    if common.as_json:
        terminal.show_json(evaluation.to_dict())
    else:
        from imbalance_perturb.reports.evaluation_tables import print_evaluation

        print_evaluation(evaluation)
    if not common.quiet:
        for note in evaluation.notes:
            terminal.say(f"note: {note}")
        for path in written:
            terminal.say(f"written: {path}")
    raise typer.Exit(SOME_FAILED if evaluation.failed else 0)


def _check_gallery(gallery: int | None, report: Path | None) -> None:
    from imbalance_perturb.errors import SettingsError
    from imbalance_perturb.evaluation.changed_images import check_number

    if gallery is not None:
        check_number(gallery)
        if report is None:
            raise SettingsError("--gallery puts images into the report; say where that is to be, with --report FILE")


def _make_cards(predictions: Path, labels: Path, number: int, seed: int, files: RerunOptions) -> GalleryCards:
    from imbalance_perturb.evaluation.changed_images import draw_changed
    from imbalance_perturb.inference import rerun
    from imbalance_perturb.inference.gallery import make_gallery
    from imbalance_perturb.reports.gallery import make_cards

    changed = draw_changed(predictions, labels, number, seed)
    return make_cards(changed, make_gallery(predictions, changed.rows, rerun.RerunOptions(**vars(files))))


def _write_files(
    evaluation: Evaluation, report: Path | None, plot: Path | None, gallery: GalleryCards | None
) -> list[Path]:
    from imbalance_perturb.files.writing import write_whole

    if report is not None:
        from imbalance_perturb.reports.evaluation_page import evaluation_page

        # A file name that is not UTF-8 must not end the report.
        write_whole(report, evaluation_page(evaluation, gallery).encode("utf-8", errors="backslashreplace"))
    if plot is not None:
        from imbalance_perturb.reports.evaluation_plots import plot_evaluation

        write_whole(plot, plot_evaluation(evaluation))
    return [path for path in (report, plot) if path is not None]

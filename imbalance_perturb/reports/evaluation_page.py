"""An evaluation as one HTML page: what is gained, what it costs, how sure that is, and on what it rests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from markupsafe import Markup

from imbalance_perturb.evaluation.formatting import (
    changes_sentence,
    costs_sentence,
    falls_sentence,
    metric_text,
    shares_text,
    shown_classes,
)
from imbalance_perturb.evaluation.results import METRICS, MOST_MATRIX_CLASSES, Evaluation, Scores
from imbalance_perturb.reports.calibration_plots import draw_reliability
from imbalance_perturb.reports.drawing import draw_svg
from imbalance_perturb.reports.evaluation_plots import draw_gains, draw_matrix, draw_recalls, recall_size
from imbalance_perturb.reports.html import iter_facts, render_page
from imbalance_perturb.reports.in_use_tables import CALIBRATION, NO_PROBABILITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imbalance_perturb.reports.gallery import GalleryCards


#: Above so many classes the table has only some of them.
_MOST_ROWS = 1000


def evaluation_page(evaluation: Evaluation, gallery: GalleryCards | None = None) -> str:
    """Render the page as HTML text, with images whose label changed where they are given."""
    order, left_out = shown_classes(evaluation, _MOST_ROWS)
    tests = {metric_text(name): entry.test for name, entry in evaluation.differences.items() if entry.test}
    return render_page(
        "evaluation.html",
        evaluation=evaluation,
        changes=changes_sentence(evaluation),
        falls=falls_sentence(evaluation),
        costs=costs_sentence(evaluation),
        shares_text=shares_text(evaluation),
        calibration=list(CALIBRATION.items()),
        no_probabilities=NO_PROBABILITIES,
        summary=[(name, METRICS[name], _class_of(evaluation, name)) for name in evaluation.metrics],
        tests="; ".join(f"{name}: {test}" for name, test in tests.items()),
        order=order,
        left_out=left_out,
        most_matrix=MOST_MATRIX_CLASSES,
        source=list(_facts(evaluation)),
        drawings=_draw(evaluation),
        gallery=gallery,
    )


def _class_of(evaluation: Evaluation, metric: str) -> str:
    """Name the class that a metric is about, or none."""
    if metric == "scr":
        return evaluation.smallest_class
    return ", then ".join(evaluation.worst_classes) if metric == "worst_class_recall" else ""


def _draw(evaluation: Evaluation) -> dict[str, Markup]:
    size = min(5.0 + 0.12 * max(len(evaluation.classes) - 7, 0), 8.0)

    def draw(name: str, scores: Scores) -> Markup:
        def fill(drawn: Figure) -> None:
            draw_matrix(drawn.subplots(), scores, evaluation.classes, name.capitalize())

        return draw_svg(name, (size, size), fill)

    drawings = {
        "recalls": draw_svg(
            "recalls", recall_size(evaluation), lambda drawn: draw_recalls(drawn.subplots(), evaluation)
        ),
        "gains": draw_svg("gains", (8.0, 4.0), lambda drawn: draw_gains(drawn.subplots(), evaluation)),
    }
    if evaluation.perturbed.calibration is not None:
        drawings["reliability"] = draw_svg(
            "reliability", (6.0, 4.5), lambda drawn: draw_reliability(drawn.subplots(), evaluation)
        )
    if len(evaluation.classes) <= MOST_MATRIX_CLASSES:
        drawings |= {name: draw(name, getattr(evaluation, name)) for name in ("base", "perturbed")}
    return drawings


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, object]]:
    yield from evaluation.source.items()
    yield "images", f"{evaluation.n:,} with a prediction and a label, {len(evaluation.failed):,} failed"
    names = ("model", "counts", "settings", "preprocessing", "execution", "versions", "finished")
    yield from iter_facts("", {name: evaluation.run[name] for name in names if name in evaluation.run})

"""A tuning as one HTML page: the choice, how sure it is, the whole sweep, and on what it rests."""

from __future__ import annotations

from collections.abc import Iterator

from imbalance_perturb.evaluation.formatting import by_count
from imbalance_perturb.reports.drawing import draw_svg
from imbalance_perturb.reports.html import iter_facts, render_page
from imbalance_perturb.reports.tuning_plots import draw_tuning, plot_size
from imbalance_perturb.selection.tuning.results import Tuning
from imbalance_perturb.selection.tuning.summary import correction_text, list_chosen, objective_text


def tuning_page(tuning: Tuning) -> str:
    """Render the page as HTML text."""
    return render_page(
        "tuning.html",
        tuning=tuning,
        figures=tuning.figures,
        objective=objective_text(tuning),
        chosen=[(correction_text(tuning, tried), count) for count, tried in list_chosen(tuning)],
        order=by_count(tuning.counts),
        source=list(_facts(tuning)),
        drawing=draw_svg("tuning", plot_size(tuning), lambda drawn: draw_tuning(drawn, tuning)),
    )


def _facts(tuning: Tuning) -> Iterator[tuple[str, object]]:
    yield "images", f"{tuning.n:,} used, {len(tuning.failed):,} failed"
    yield "passes", ", ".join(f"{count:,} {kind}" for kind, count in tuning.passes.items()) + " (batches)"
    yield from iter_facts("", tuning.source)

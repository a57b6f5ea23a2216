"""A comparison as one HTML page: the figures of each method, what it costs, and which to use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from markupsafe import Markup

from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.formatting import by_count
from imbalance_perturb.reports.drawing import BASE, INK, PERTURBED, SOFT, draw_svg
from imbalance_perturb.reports.html import iter_facts, render_page
from imbalance_perturb.selection.comparison.results import Comparison, MethodResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = {"mcr": "MCR", "scr": "SCR", "worst_class_recall": "worst class recall", "accuracy": "accuracy"}

_ABOUT = {
    "none": "the model as it is",
    "perturb": "one signed-gradient step of the input towards the rare classes",
    "perturb-at": "the same step on the output of a hidden layer, of which only what lies behind is computed again",
    "la": "post-hoc logit adjustment: tau times the log prior is taken off the logits (Menon et al. 2021)",
    "perturb+la": "both, tuned together",
    "tau-norm": "rows of the last layer divided by their norm to the power of tau (Kang et al. 2020)",
    "offsets": "a number added to the logit of each class, fitted by balanced logistic regression with a ridge",
    "p2p": "as la, with the mean of the model's own probabilities in the place of the counts"
    " (Prior2Posterior, Bhat et al. 2025); predict has it as offsets",
    "random-sign": "control: a step of the same size in a random direction",
    "minus-eps": "control: the step of perturb, backwards",
}


def comparison_page(comparison: Comparison) -> str:
    """Render the page as HTML text."""
    return render_page(
        "comparison.html",
        comparison=comparison,
        figures=_FIGURES,
        about=[(result.method, _ABOUT.get(result.method, result.method)) for result in comparison.results],
        order=by_count(comparison.counts),
        source=list(_facts(comparison)),
        drawing=_draw(comparison),
    )


def _draw(comparison: Comparison) -> Markup | None:
    known = [result for result in comparison.results if result.differences]
    if not known:
        return None

    def draw(drawn: Figure) -> None:
        left, right = drawn.subplots(1, 2, sharey=True)
        _draw_differences(left, known, "mcr", "MCR")
        _draw_differences(right, known, "accuracy", "accuracy")

    return draw_svg("differences", (9.0, 1.2 + 0.42 * len(known)), draw)


def _draw_differences(axes: Axes, results: list[MethodResult], metric: str, title: str) -> None:
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, result in enumerate(results):
        difference, colour = result.differences[metric], BASE if result.control else PERTURBED
        if difference.interval is not None and result.changed:
            ends = [difference.interval.low, difference.interval.high]
            axes.plot(ends, [row, row], color=colour, alpha=0.5, linewidth=2)
        axes.plot([difference.value], [row], "o", color=colour, markersize=6.5)
    names = [printable(f"{result.method}  {result.setting}".rstrip()) for result in results]
    axes.set_yticks(range(len(results)), names, color=INK)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_title(f"{title}, against none")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x")


def _facts(comparison: Comparison) -> Iterator[tuple[str, object]]:
    yield "images", f"{comparison.n:,} scored, {comparison.tuned_on:,} chosen on, {len(comparison.failed):,} failed"
    yield "objective", comparison.objective
    for result in comparison.results:
        if result.agreement is not None:
            same, splits = result.agreement
            yield f"choice for {result.method}", f"{result.setting}, the same in {same} of {splits} splits"
    yield from iter_facts("", comparison.source)

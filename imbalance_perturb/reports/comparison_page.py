"""A comparison as one HTML page: what each method comes to, what it costs, and which to use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imbalance_perturb.lineup import Comparison, MethodResult
from imbalance_perturb.reports.drawing import BASE, INK, PERTURBED, SOFT, draw_svg
from imbalance_perturb.reports.page import cell, facts, figure, note_list, paragraph, render_page, section, table
from imbalance_perturb.scores import Difference
from imbalance_perturb.wording import interval_text, p_text, share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = {"mcr": "MCR", "scr": "SCR", "worst_class_recall": "worst class recall", "accuracy": "accuracy"}

_ABOUT = {
    "none": "the model as it is",
    "perturb": "one signed-gradient step of the input towards the rare classes",
    "la": "post-hoc logit adjustment: tau times the log prior is taken off the logits (Menon et al. 2021)",
    "perturb+la": "both, tuned together",
    "tau-norm": "rows of the last layer divided by their norm to the power of tau (Kang et al. 2020)",
    "em": "class shares of the scored images estimated from all of them, without labels (Saerens et al. 2002)",
    "random-sign": "control: a step of the same size in a random direction",
    "minus-eps": "control: the step of perturb, backwards",
}


def comparison_page(comparison: Comparison) -> str:
    """The page as HTML text."""
    level = f"{100 * comparison.confidence_level:g}%"
    return render_page(
        "Comparison of post-hoc corrections",
        [
            paragraph(comparison.advice.sentence, "lead"),
            paragraph(comparison.headline, "soft"),
            note_list(comparison.notes),
            section("Gain and cost in accuracy", _plot(comparison, level)),
            section("Figures", _figures(comparison), paragraph(_how(comparison, level), "soft")),
            section("Against no correction", _gains(comparison), paragraph(_COST, "soft")),
            section("Recall of each class", _classes(comparison)),
            section("Methods", facts((m, _ABOUT.get(m, m)) for m in (e.method for e in comparison.results))),
            section("What this rests on", facts(_facts(comparison))),
        ],
    )


_COST = (
    "Coloured: the interval of the difference leaves out zero. Passes: forward passes an image; a backward pass that is"
    " asked for the input's gradient alone counts as one. Images per second are measured and of the model alone, since"
    " decoding costs every method the same. The controls take the step that was chosen for perturb."
)


def _how(comparison: Comparison, level: str) -> str:
    return (
        f"In small print: {level} intervals. MCR is the mean class recall, SCR the recall of"
        f" {comparison.smallest_class}, the class with the fewest training images. No image took part in the choice of"
        " the parameters that it is scored with."
    )


def _figures(comparison: Comparison) -> str:
    rows = []
    for result in comparison.results:
        row = [cell(result.method, result.setting)]
        if result.scores is None:
            rows.append([*row, cell("not available"), *[cell("")] * len(_FIGURES)])
            continue
        for name in _FIGURES:
            row.append(cell(share_text(getattr(result.scores, name)), interval_text(result.scores.intervals.get(name))))
        rows.append([*row, cell(share_text(result.scores.macro_f1))])
    return table(["method", *_FIGURES.values(), "macro F1"], rows)


def _gains(comparison: Comparison) -> str:
    rows = []
    for result in comparison.results:
        if result.scores is None or not result.differences:
            continue
        row = [cell(result.method, result.setting)]
        for name in ("mcr", "scr", "accuracy"):
            row += _difference_cells(result, result.differences.get(name))
        rate = "–" if result.images_per_second is None else f"{result.images_per_second:,.1f}"
        rows.append([*row, cell(f"{result.changed:,}"), cell(str(result.passes)), cell(rate)])
    headers = ["method", "MCR", "p", "SCR", "p", "accuracy", "p", "predictions changed", "passes", "images/s"]
    return table(headers, rows)


def _difference_cells(result: MethodResult, difference: Difference | None) -> list[str]:
    if difference is None or result.changed == 0:
        return [cell("–" if difference is None else "same"), cell("–")]
    interval, colour = difference.interval, ""
    if interval is not None and not interval.low <= 0 <= interval.high:
        colour = "good" if difference.value > 0 else "bad"
    text = share_text(difference.value, signed=True)
    return [cell(text, interval_text(interval, signed=True), colour), cell(p_text(difference.p_value))]


def _classes(comparison: Comparison) -> str:
    known = [result for result in comparison.results if result.scores is not None]
    order = sorted(range(len(comparison.classes)), key=lambda c: (-comparison.counts[c], c))
    rows = []
    for c in order:
        of_class = [result.scores.per_class[c] for result in known if result.scores is not None]
        row = [cell(comparison.classes[c]), cell(f"{comparison.counts[c]:,}"), cell(f"{of_class[0].support:,}")]
        rows.append([*row, *(cell(share_text(scores.recall)) for scores in of_class)])
    return table(["class", "training images", "images here", *(result.method for result in known)], rows)


def _plot(comparison: Comparison, level: str) -> str:
    known = [result for result in comparison.results if result.differences]
    if not known:
        return paragraph("No other method was compared.")

    def draw(drawn: Figure) -> None:
        left, right = drawn.subplots(1, 2, sharey=True)
        _draw_differences(left, known, "mcr", "MCR")
        _draw_differences(right, known, "accuracy", "accuracy")

    svg = draw_svg("differences", (9.0, 1.2 + 0.42 * len(known)), draw)
    return figure(svg, f"Differences from no correction on the same images, with {level} intervals. Grey: controls.")


def _draw_differences(axes: Axes, results: list[MethodResult], metric: str, title: str) -> None:
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, result in enumerate(results):
        difference, colour = result.differences[metric], BASE if result.control else PERTURBED
        if difference.interval is not None and result.changed:
            ends = [difference.interval.low, difference.interval.high]
            axes.plot(ends, [row, row], color=colour, alpha=0.5, linewidth=2)
        axes.plot([difference.value], [row], "o", color=colour, markersize=6.5)
    names = [f"{result.method}  {result.setting}".rstrip() for result in results]
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
    yield from _flat("", comparison.source)


def _flat(prefix: str, entries: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in entries.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(name, value)
        elif value not in (None, [], ()):
            yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value

"""An evaluation as one HTML page: what is gained, what it costs, how sure that is, and on what it rests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imbalance_perturb.reports.drawing import draw_svg
from imbalance_perturb.reports.evaluation_plots import draw_gains, draw_matrix, draw_recalls, recall_size
from imbalance_perturb.reports.page import (
    cell,
    facts,
    figure,
    note_list,
    paragraph,
    render_page,
    section,
    side_by_side,
    table,
)
from imbalance_perturb.scores import METRICS, Difference, Evaluation, Interval, Scores
from imbalance_perturb.wording import by_count, changes_sentence, interval_text, p_text, share_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def evaluation_page(evaluation: Evaluation) -> str:
    """The page as HTML text."""
    level = f"{100 * evaluation.confidence_level:g}%"
    return render_page(
        "Evaluation: base against perturbed predictions",
        [
            paragraph(changes_sentence(evaluation), "lead"),
            note_list(evaluation.notes),
            section("Summary", _summary(evaluation), paragraph(_how(evaluation, level), "soft")),
            section("Classes", _recall_figure(evaluation, level), _classes(evaluation), paragraph(_CLASSES, "soft")),
            section("Gain against training count", _gain_figure(evaluation, level)),
            section("Confusion matrices", _matrices(evaluation)),
            section("What this rests on", facts(_facts(evaluation))),
        ],
    )


_CLASSES = (
    "From the largest class to the smallest. A class that was never predicted has precision and F1 of 0. The tests of"
    " single classes are exact McNemar tests, not corrected for their number."
)


def _summary(evaluation: Evaluation) -> str:
    rows = []
    for name, title in METRICS.items():
        before, after = getattr(evaluation.base, name), getattr(evaluation.perturbed, name)
        if name == "auc" and before is None and after is None:
            continue
        rows.append(
            [
                cell(title, _which(evaluation, name)),
                cell(share_text(before), interval_text(evaluation.base.intervals.get(name))),
                cell(share_text(after), interval_text(evaluation.perturbed.intervals.get(name))),
                *_difference_cells(evaluation.differences.get(name)),
            ]
        )
    return table(["", "base", "perturbed", "difference", "p"], rows)


def _which(evaluation: Evaluation, name: str) -> str:
    if name == "scr":
        return evaluation.smallest_class
    if name == "worst_class_recall":
        before, after = evaluation.base.worst_class, evaluation.perturbed.worst_class
        return before if before == after else f"{before}, then {after}"
    return ""


def _difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return [cell("–"), cell("–")]
    text = share_text(difference.value, signed=True)
    interval = interval_text(difference.interval, signed=True)
    return [cell(text, interval, _colour(difference.value, difference.interval)), cell(p_text(difference.p_value))]


def _colour(value: float, interval: Interval | None) -> str:
    """A colour only where the interval leaves out zero."""
    if interval is None or interval.low <= 0 <= interval.high:
        return ""
    return "good" if value > 0 else "bad"


def _how(evaluation: Evaluation, level: str) -> str:
    short = {name: title.partition(" (")[0] for name, title in METRICS.items()}
    tests = "; ".join(f"{short[name]}: {entry.test}" for name, entry in evaluation.differences.items() if entry.test)
    return (
        f"{evaluation.n:,} images. In small print: {level} intervals, Wilson's for the recall of one class, smoothed"
        f" bootstrap within classes ({evaluation.resamples:,} resamples, seed {evaluation.seed}) for means and for all"
        f" differences, which are of the same images. Coloured: the interval of the difference leaves out zero. Tests:"
        f" {tests}. An exact test of a few changed images needs more than an interval to leave out zero."
    )


def _classes(evaluation: Evaluation) -> str:
    rows = []
    for c in by_count(evaluation.counts):
        before, after, gain = evaluation.base.per_class[c], evaluation.perturbed.per_class[c], evaluation.gains[c]
        row = [cell(before.name), cell(f"{before.count:,}"), cell(f"{before.support:,}")]
        row += [cell(share_text(e.recall), interval_text(e.recall_interval)) for e in (before, after)]
        row += _difference_cells(gain)
        row += [cell(share_text(value)) for value in (before.precision, after.precision, before.f1, after.f1)]
        rows.append(row)
    headers = ["class", "training images", "images here", "recall, base", "perturbed", "gain", "p"]
    return table([*headers, "precision, base", "perturbed", "F1, base", "perturbed"], rows)


def _recall_figure(evaluation: Evaluation, level: str) -> str:
    svg = draw_svg("recalls", recall_size(evaluation), lambda drawn: draw_recalls(drawn.subplots(), evaluation))
    return figure(svg, f"Bars: {level} Wilson intervals. Classes without labelled images have no mark.")


def _gain_figure(evaluation: Evaluation, level: str) -> str:
    svg = draw_svg("gains", (8.0, 4.0), lambda drawn: draw_gains(drawn.subplots(), evaluation))
    return figure(svg, f"Bars: {level} intervals of the paired difference.")


def _matrices(evaluation: Evaluation) -> str:
    size = min(5.0 + 0.12 * max(len(evaluation.classes) - 7, 0), 8.0)
    parts = []
    for name, scores in (("Base", evaluation.base), ("Perturbed", evaluation.perturbed)):

        def draw(drawn: Figure, scores: Scores = scores, name: str = name) -> None:
            draw_matrix(drawn.subplots(), scores, evaluation.classes, name)

        svg = draw_svg(name.lower(), (size, size), draw)
        parts.append(figure(svg, f"{name}: images, coloured and in % by share of the true class."))
    return side_by_side(*parts)


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, object]]:
    yield from evaluation.source.items()
    yield "images", f"{evaluation.n:,} with a prediction and a label, {len(evaluation.failed):,} failed"
    run = evaluation.run
    for table_name in ("model", "counts", "settings", "preprocessing", "execution", "versions"):
        entry = run.get(table_name)
        if isinstance(entry, Mapping):
            yield from _flat(table_name, entry)
    if "finished" in run:
        yield "finished", run["finished"]


def _flat(prefix: str, entries: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in entries.items():
        name = f"{prefix} {key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(name, value)
        elif value not in (None, [], ()):
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else value

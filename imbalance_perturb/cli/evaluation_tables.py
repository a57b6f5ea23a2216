"""An evaluation in the terminal: the summary, the classes, and both confusion matrices where they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imbalance_perturb.scores import METRICS
from imbalance_perturb.wording import changes_sentence, interval_text, p_text, share_text

if TYPE_CHECKING:
    from imbalance_perturb.scores import Difference, Evaluation, Interval, Scores

#: From this width on a figure and its interval stand in one line.
_WIDE = 110

#: Widest a class name may be, in characters, before it is folded, and as the head of a column, cut.
_NAME_WIDTH, _COLUMN_WIDTH = 14, 8


def print_evaluation(evaluation: Evaluation) -> None:
    """The tables on stdout, as wide as the terminal (80 where there is none)."""
    console = Console(highlight=False)
    console.print(escape(changes_sentence(evaluation)))
    console.print(_summary(evaluation, console.width >= _WIDE))
    level = f"{100 * evaluation.confidence_level:g}%"
    console.print(
        f"MCR: mean class recall. SCR: recall of the class with the fewest training images. Ranges are {level}"
        " intervals; differences and their tests are paired: of the same images.",
        style="dim",
    )
    console.print()
    console.print(_classes(evaluation))
    for title, scores in (("base", evaluation.base), ("perturbed", evaluation.perturbed)):
        table = _matrix(scores, evaluation.classes, console.width)
        if table is None:
            console.print("The confusion matrices are too wide for this terminal: see --report or --json.", style="dim")
            break
        # Above the table, not in it: a narrow table would wrap its title.
        console.print(f"Confusion matrix, {title} (rows: true class)", style="bold")
        console.print(table)


def _new_table(title: str, first: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(first, overflow="fold", min_width=8, max_width=30 if title == "Summary" else _NAME_WIDTH)
    return table


def _summary(evaluation: Evaluation, wide: bool) -> Table:
    table = _new_table("Summary", "")
    for header in ("base", "perturbed", "difference", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    for name in METRICS:
        before, after = getattr(evaluation.base, name), getattr(evaluation.perturbed, name)
        if before is None and after is None and name == "auc":
            continue
        difference = evaluation.differences.get(name)
        table.add_row(
            escape(_title(evaluation, name)),
            _figure(before, evaluation.base.intervals.get(name), wide),
            _figure(after, evaluation.perturbed.intervals.get(name), wide),
            _gain(difference, wide),
            p_text(None if difference is None else difference.p_value),
        )
    return table


def _title(evaluation: Evaluation, name: str) -> str:
    if name == "scr":
        return f"SCR ({evaluation.smallest_class})"
    if name == "worst_class_recall":
        worst = dict.fromkeys((evaluation.base.worst_class, evaluation.perturbed.worst_class))
        return f"worst recall ({' -> '.join(worst)})"
    return METRICS[name].partition(" (")[0]


def _figure(value: float | None, interval: Interval | None, wide: bool) -> str:
    return _with_interval(share_text(value), interval_text(interval), wide)


def _gain(difference: Difference | None, wide: bool) -> str:
    if difference is None:
        return share_text(None)
    text = share_text(difference.value, signed=True)
    interval = difference.interval
    if interval is not None and not interval.low <= 0 <= interval.high:
        text = f"[{'green' if difference.value > 0 else 'red'}]{text}[/]"
    return _with_interval(text, interval_text(interval, signed=True), wide)


def _with_interval(text: str, interval: str, wide: bool) -> str:
    if not interval:
        return text
    return f"{text}{' ' if wide else chr(10)}[dim]{interval}[/]"


def _classes(evaluation: Evaluation) -> Table:
    table = _new_table("Classes, by training images (two columns: base, perturbed)", "class")
    for header in ("train", "images", "recall", "", "gain", "prec.", "", "F1", ""):
        table.add_column(header, justify="right", no_wrap=True)
    order = sorted(range(len(evaluation.classes)), key=lambda c: (-evaluation.counts[c], c))
    for c in order:
        before, after, gain = evaluation.base.per_class[c], evaluation.perturbed.per_class[c], evaluation.gains[c]
        pairs = (before.precision, after.precision, before.f1, after.f1)
        table.add_row(
            escape(before.name),
            f"{before.count:,}",
            f"{before.support:,}",
            _short(before.recall),
            _short(after.recall),
            "–" if gain is None else f"{round(gain.value, 3) + 0.0:+.3f}",
            *map(_short, pairs),
        )
    return table


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _matrix(scores: Scores, classes: tuple[str, ...], width: int) -> Table | None:
    """The matrix, or ``None`` where it does not fit: a number that lost a digit would be a lie."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    cells = [[f"{count:,}" for count in row] for row in scores.confusion_matrix]
    heads = [_cut(name, _COLUMN_WIDTH) for name in classes]
    widths = [max(5, *(cell_len(row[c]) for row in cells), cell_len(heads[c])) for c in range(len(classes))]
    first = max(map(cell_len, map(_name, classes)))
    if first + sum(widths) + 2 * len(classes) + 3 > width:
        return None
    table.add_column("", width=first, no_wrap=True)
    for head, column in zip(heads, widths, strict=True):
        table.add_column(escape(head), justify="right", width=column, no_wrap=True)
    for index, (name, row) in enumerate(zip(classes, cells, strict=True)):
        table.add_row(escape(_name(name)), *(f"[bold]{text}[/]" if c == index else text for c, text in enumerate(row)))
    return table


def _name(name: str) -> str:
    return _cut(name, _NAME_WIDTH)


def _cut(name: str, width: int) -> str:
    return name if cell_len(name) <= width else set_cell_size(name, width - 1).rstrip() + "…"

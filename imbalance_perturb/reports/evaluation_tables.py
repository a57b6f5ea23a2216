"""An evaluation in the terminal: the summary, the classes, and both confusion matrices where they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.table import Table

from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.formatting import (
    changes_sentence,
    independence_text,
    level_text,
    metric_text,
    p_text,
    share_text,
    shown_classes,
)
from imbalance_perturb.evaluation.results import MOST_MATRIX_CLASSES
from imbalance_perturb.reports.in_use_tables import iter_sentences, predictive_table
from imbalance_perturb.reports.terminal import (
    add_number_columns,
    difference_text,
    figure_text,
    new_console,
    new_table,
    styled,
)

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.results import Evaluation, Scores

#: From this width on a figure and its interval share a line.
_WIDE = 110

#: Above so many classes only some are shown.
_MOST_ROWS = 200

#: Widest a class name may be, in characters, before it is folded, and as the head of a column, cut.
_NAME_WIDTH, _COLUMN_WIDTH = 14, 8


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the tables on stdout, as wide as the terminal (80 where there is none)."""
    console = new_console()
    console.print(changes_sentence(evaluation))
    console.print(_summary(evaluation, console.width >= _WIDE))
    for sentence in iter_sentences(evaluation):
        console.print(sentence)
    level = level_text(evaluation.confidence_level)
    console.print(
        f"MCR: mean class recall. SCR: recall of the class with the fewest training images. Ranges are {level}"
        " intervals; differences and their tests are paired: of the same images.",
        style="dim",
    )
    console.print(independence_text(evaluation.group), style="dim")
    console.print()
    shown, left_out = shown_classes(evaluation, _MOST_ROWS)
    console.print(_classes(evaluation, shown))
    values = predictive_table(evaluation, shown, _NAME_WIDTH)
    if values is not None:
        console.print("PPV and NPV at the shares given (two columns: base, perturbed)", style="bold")
        console.print(values)
    if left_out:
        console.print(left_out, style="dim")
    for title, scores in (("base", evaluation.base), ("perturbed", evaluation.perturbed)):
        table = _matrix(scores, evaluation.classes, console.width)
        if table is None:
            console.print(_no_matrix(evaluation), style="dim")
            break
        # Above the table, not in it: a narrow table would wrap its title.
        console.print(f"Confusion matrix, {title} (rows: true class)", style="bold")
        console.print(table)


def _summary(evaluation: Evaluation, wide: bool) -> Table:
    table = new_table("Summary")
    table.add_column("", overflow="fold", min_width=8, max_width=30)
    add_number_columns(table, "base", "perturbed", "difference", "p")
    for name in evaluation.metrics:
        difference = evaluation.differences.get(name)
        table.add_row(
            _title(evaluation, name),
            *(
                figure_text(getattr(scores, name), scores.intervals.get(name), wide)
                for scores in (evaluation.base, evaluation.perturbed)
            ),
            difference_text(difference, wide),
            p_text(None if difference is None else difference.p_value),
        )
    return table


def _title(evaluation: Evaluation, name: str) -> str:
    if name == "scr":
        return f"SCR ({evaluation.smallest_class})"
    if name == "worst_class_recall":
        return f"worst recall ({' -> '.join(evaluation.worst_classes)})"
    return metric_text(name)


def _classes(evaluation: Evaluation, shown: list[int]) -> Table:
    table = new_table("Classes, by training images (two columns: base, perturbed)")
    table.add_column("class", overflow="fold", min_width=8, max_width=_NAME_WIDTH)
    add_number_columns(table, "train", "images", "recall", "", "gain", "prec.", "", "F1", "")
    for c in shown:
        before, after, gain = evaluation.base.per_class[c], evaluation.perturbed.per_class[c], evaluation.gains[c]
        pairs = (before.precision, after.precision, before.f1, after.f1)
        table.add_row(
            before.name,
            f"{before.count:,}",
            f"{before.support:,}",
            _short(before.recall),
            _short(after.recall),
            share_text(None if gain is None else gain.value, signed=True, digits=3),
            *map(_short, pairs),
        )
    return table


def _short(value: float | None) -> str:
    return share_text(value, digits=3)


def _matrix(scores: Scores, classes: tuple[str, ...], width: int) -> Table | None:
    """Build the matrix, or ``None`` where it does not fit: a number that lost a digit would be a lie."""
    if scores.confusion_matrix is None:
        return None
    table = new_table()
    cells = [[f"{count:,}" for count in row] for row in scores.confusion_matrix]
    heads = [_cut(name, _COLUMN_WIDTH) for name in classes]
    widths = [max(5, *(cell_len(row[c]) for row in cells), cell_len(heads[c])) for c in range(len(classes))]
    first = max(map(cell_len, map(_name, classes)))
    if first + sum(widths) + 2 * len(classes) + 3 > width:
        return None
    table.add_column("", width=first, no_wrap=True)
    for head, column in zip(heads, widths, strict=True):
        table.add_column(head, justify="right", width=column, no_wrap=True)
    for index, (name, row) in enumerate(zip(classes, cells, strict=True)):
        table.add_row(_name(name), *(styled((text, "bold" if c == index else "")) for c, text in enumerate(row)))
    return table


def _no_matrix(evaluation: Evaluation) -> str:
    if len(evaluation.classes) > MOST_MATRIX_CLASSES:
        return f"Confusion matrices are not shown above {MOST_MATRIX_CLASSES} classes: --json has their cells."
    return "The confusion matrices are too wide for this terminal: see --report or --json."


def _name(name: str) -> str:
    return _cut(name, _NAME_WIDTH)


def _cut(name: str, width: int) -> str:
    name = printable(name)
    return name if cell_len(name) <= width else set_cell_size(name, width - 1).rstrip() + "…"

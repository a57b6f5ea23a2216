"""A comparison in the terminal: figures and intervals, gains over no correction, costs, and the advice."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.table import Table

from imbalance_perturb.evaluation.formatting import independence_text, level_text, p_text, rate_text
from imbalance_perturb.reports.terminal import (
    Text,
    add_number_columns,
    difference_text,
    figure_text,
    new_console,
    new_table,
    styled,
)

if TYPE_CHECKING:
    from imbalance_perturb.selection.comparison.results import Comparison, MethodResult

#: From this width on a figure and its interval share a line.
_WIDE = 130

#: Letters of a line below a method's name, where the terminal is narrower.
_NARROW = 12

_FIGURES = {"mcr": "MCR", "scr": "SCR", "worst_class_recall": "worst recall", "accuracy": "accuracy"}


def print_comparison(comparison: Comparison) -> None:
    """Print the tables and the advice on stdout, as wide as the terminal (80 where there is none)."""
    console = new_console()
    wide = console.width >= _WIDE
    console.print(comparison.headline)
    console.print(_figures(comparison, wide))
    console.print(_gains(comparison, wide))
    level = level_text(comparison.confidence_level)
    console.print(
        f"MCR: mean class recall. SCR: recall of {comparison.smallest_class}, the class with the fewest"
        f" training images. Ranges are {level} intervals; gains and tests are paired: of the same images."
        " passes: forward passes an image, a backward pass to the input counting as one."
        " images/s: measured, of the model alone.",
        style="dim",
    )
    console.print(independence_text(comparison.group), style="dim")
    console.print()
    console.print(comparison.advice.sentence, style="bold")


def _new_table(title: str, *headers: str) -> Table:
    # No gap: beside the box's own blanks it would be a column too wide for 80.
    table = new_table(title, gap=0)
    table.add_column("method", no_wrap=True)
    add_number_columns(table, *headers)
    return table


def _figures(comparison: Comparison, wide: bool) -> Table:
    table = _new_table("Figures", *_FIGURES.values())
    for result in comparison.results:
        if result.scores is not None:
            values = [(getattr(result.scores, name), result.scores.intervals.get(name)) for name in _FIGURES]
            table.add_row(_name(result, wide), *(figure_text(value, interval, wide) for value, interval in values))
        else:
            table.add_row(_name(result, wide), styled(("not available", "dim")))
    return table


def _gains(comparison: Comparison, wide: bool) -> Table:
    table = _new_table("Gain over none, and cost", "MCR", "p", "accuracy", "p", "passes", "images/s")
    for result in comparison.results:
        if result.scores is None:
            continue
        cells: list[str | Text] = []
        for name in ("mcr", "accuracy"):
            difference = result.differences.get(name)
            if difference is not None and result.changed == 0:
                cells += [styled(("same", "dim")), p_text(None)]
            else:
                cells += [difference_text(difference, wide), p_text(None if difference is None else difference.p_value)]
        table.add_row(_name(result, wide), *cells, f"{result.passes:g}", rate_text(result.images_per_second))
    return table


def _short_lines(setting: str) -> list[str]:
    """Settings for a column that leaves room for others in a narrow terminal: the names of layers can be long."""
    return [line for part in setting.split(", ") for line in textwrap.wrap(part, _NARROW) or [part]]


def _name(result: MethodResult, wide: bool) -> Text:
    settings = [result.setting] if wide else _short_lines(result.setting)
    dim = [(setting, "dim") for setting in settings if result.parameters]
    return styled((result.method, "italic" if result.control else ""), *dim, between=" " if wide else "\n  ")

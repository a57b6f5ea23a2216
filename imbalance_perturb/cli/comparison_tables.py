"""A comparison in the terminal: figures and intervals, gains over no correction, costs, and the advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imbalance_perturb.wording import interval_text, p_text, share_text

if TYPE_CHECKING:
    from imbalance_perturb.lineup import Comparison, Entry
    from imbalance_perturb.scores import Difference, Interval

#: From this width on a figure and its interval stand in one line.
_WIDE = 130

_FIGURES = {"mcr": "MCR", "scr": "SCR", "worst_class_recall": "worst recall", "accuracy": "accuracy"}


def print_comparison(comparison: Comparison) -> None:
    """The tables and the advice on stdout, as wide as the terminal (80 where there is none)."""
    console = Console(highlight=False)
    wide = console.width >= _WIDE
    console.print(escape(comparison.headline))
    console.print(_figures(comparison, wide))
    console.print(_gains(comparison, wide))
    level = f"{100 * comparison.confidence_level:g}%"
    console.print(
        f"MCR: mean class recall. SCR: recall of {escape(comparison.smallest_class)}, the class with the fewest"
        f" training images. Ranges are {level} intervals; gains and tests are paired: of the same images."
        " passes: forward passes an image, a backward pass to the input counting as one."
        " images/s: measured, of the model alone.",
        style="dim",
    )
    console.print()
    console.print(f"[bold]{escape(comparison.advice.sentence)}[/]")


def _new_table(title: str) -> Table:
    # No padding: beside the box's own blanks it would be a column too wide for 80.
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("method", no_wrap=True)
    return table


def _figures(comparison: Comparison, wide: bool) -> Table:
    table = _new_table("Figures")
    for header in _FIGURES.values():
        table.add_column(header, justify="right", no_wrap=True)
    for entry in comparison.entries:
        if entry.scores is not None:
            values = [(getattr(entry.scores, name), entry.scores.intervals.get(name)) for name in _FIGURES]
            table.add_row(_name(entry, wide), *(_figure(value, interval, wide) for value, interval in values))
        else:
            table.add_row(_name(entry, wide), "[dim]not available[/]")
    return table


def _gains(comparison: Comparison, wide: bool) -> Table:
    table = _new_table("Gain over none, and cost")
    for header in ("MCR", "p", "accuracy", "p", "passes", "images/s"):
        table.add_column(header, justify="right", no_wrap=True)
    for entry in comparison.entries:
        if entry.scores is None:
            continue
        cells = []
        for name in ("mcr", "accuracy"):
            difference = entry.differences.get(name)
            if difference is not None and entry.changed == 0:
                cells += ["[dim]same[/]", p_text(None)]
            else:
                cells += [_gain(difference, wide), p_text(None if difference is None else difference.p_value)]
        rate = "–" if entry.images_per_second is None else f"{entry.images_per_second:,.{_digits(entry)}f}"
        table.add_row(_name(entry, wide), *cells, str(entry.passes), rate)
    return table


def _digits(entry: Entry) -> int:
    return 1 if (entry.images_per_second or 0) < 100 else 0


def _name(entry: Entry, wide: bool) -> str:
    name = f"[italic]{entry.method}[/]" if entry.control else entry.method
    if not entry.parameters:
        return name
    return f"{name} [dim]{entry.setting}[/]" if wide else "\n  ".join([name, *f"[dim]{entry.setting}[/]".split(", ")])


def _figure(value: float | None, interval: Interval | None, wide: bool, *, signed: bool = False) -> str:
    text, ends = share_text(value, signed=signed), interval_text(interval, signed=signed)
    return f"{text}{' ' if wide else chr(10)}[dim]{ends}[/]" if ends else text


def _gain(difference: Difference | None, wide: bool) -> str:
    if difference is None:
        return share_text(None)
    interval = difference.interval
    text = _figure(difference.value, interval, wide, signed=True)
    if interval is None or interval.low <= 0 <= interval.high:
        return text
    colour = "green" if difference.value > 0 else "red"
    figure = share_text(difference.value, signed=True)
    return text.replace(figure, f"[{colour}]{figure}[/]", 1)

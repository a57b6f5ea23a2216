"""The console of tables in the terminal, and what several of them are made of.

A plain ``str`` is one line of text from anywhere, shown literally and never as markup: style and line ends come from
:func:`styled` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.formatting import interval_text, share_text

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.results import Difference, Interval

__all__ = ["Text", "add_number_columns", "difference_text", "figure_text", "new_console", "new_table", "styled"]


class _PlainConsole(Console):
    """Every ``str`` passes here on its way to the terminal, also from the cells and titles of tables."""

    def render_str(self, text: str, **options: Any) -> Text:
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(printable(text), **options)


def new_console(*, stderr: bool = False) -> Console:
    """Open the console of stdout, or of stderr, as wide as the terminal (80 where there is none)."""
    return _PlainConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


def styled(*parts: str | tuple[str, str], between: str = "") -> Text:
    """Join parts, each plain or with a style, by the text ``between``; empty parts are left out."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text(between).join(Text(printable(text), style) for text, style in pairs if text)


def new_table(title: str | None = None, *, gap: int = 1) -> Table:
    """Make a table without columns; ``gap`` blanks separate them, beside the box's own."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )


def add_number_columns(table: Table, *headers: str | Text) -> None:
    """Add columns of figures, which are never cut or folded."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def figure_text(value: float | None, interval: Interval | None, wide: bool) -> Text:
    """Format a share with its interval, beside it where the terminal is wide, else below."""
    return _with_interval(share_text(value), interval_text(interval), wide)


def difference_text(difference: Difference | None, wide: bool) -> Text:
    """Format a difference with its interval, green or red where it is more than noise."""
    if difference is None:
        return styled(share_text(None))
    style = {1: "green", -1: "red"}.get(difference.direction, "")
    text = share_text(difference.value, signed=True)
    return _with_interval(text, interval_text(difference.interval, signed=True), wide, style)


def _with_interval(text: str, interval: str, wide: bool, style: str = "") -> Text:
    return styled((text, style), (interval, "dim"), between=" " if wide else "\n")

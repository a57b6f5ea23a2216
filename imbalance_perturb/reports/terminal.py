"""What several tables in the terminal are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from imbalance_perturb.cells import printable
from imbalance_perturb.wording import interval_text, share_text

if TYPE_CHECKING:
    from imbalance_perturb.scores import Difference, Interval


def new_table(title: str | None = None, *, gap: int = 1) -> Table:
    """A table without columns yet; ``gap`` blanks stand between columns, beside the box's own."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )


def add_number_columns(table: Table, *headers: str) -> None:
    """Columns of figures, which are never cut or folded."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def plain(text: str) -> str:
    """A name or sentence as it is, without markup or control characters."""
    return escape(printable(text))


def figure_text(value: float | None, interval: Interval | None, wide: bool) -> str:
    """A share with its interval, beside it where the terminal is wide, else below."""
    return _with_interval(share_text(value), interval_text(interval), wide)


def difference_text(difference: Difference | None, wide: bool) -> str:
    """A difference with its interval, green or red where it is more than noise."""
    if difference is None:
        return share_text(None)
    text = share_text(difference.value, signed=True)
    if difference.direction:
        text = f"[{'green' if difference.direction > 0 else 'red'}]{text}[/]"
    return _with_interval(text, interval_text(difference.interval, signed=True), wide)


def _with_interval(text: str, interval: str, wide: bool) -> str:
    return f"{text}{' ' if wide else chr(10)}[dim]{interval}[/]" if interval else text

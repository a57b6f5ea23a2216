"""A tuning in the terminal: the choice in words, the whole sweep, and what it is worth elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imbalance_perturb.tuning_results import FIGURES
from imbalance_perturb.tuning_wording import figure_of, objective_text
from imbalance_perturb.wording import interval_text, p_text, share_text

if TYPE_CHECKING:
    from imbalance_perturb.tuning_results import Attempt, Tuning

#: From this width on the standard error of a gain and the splits have their columns.
_WIDE = 100


def print_tuning(tuning: Tuning) -> None:
    """The tables on stdout, as wide as the terminal (80 where there is none)."""
    console = Console(highlight=False)
    for measure in tuning.measures:
        console.print(_sweep(tuning, measure, console.width >= _WIDE))
    console.print(_legend(tuning), style="dim")
    console.print()
    console.print(_worth(tuning))
    for sentence in tuning.summary:
        console.print(escape(sentence), style="bold" if sentence is tuning.summary[0] else "")


def _new_table(title: str, first: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(first, no_wrap=True)
    return table


def _sweep(tuning: Tuning, measure: tuple[str | None, float | None], wide: bool) -> Table:
    loss, temperature = measure
    table = _new_table(f"Sweep over eps, T {temperature:g}, {loss} ({tuning.n:,} images)", "eps")
    marked = figure_of(tuning.rule.objective)
    for name, title in FIGURES.items():
        table.add_column(f"[underline]{title}[/]" if name == marked else title, justify="right", no_wrap=True)
    table.add_column("changed", justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    if wide:
        table.add_column("± 1 SE", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    if wide:
        table.add_column("splits", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for index, attempt in enumerate(tuning.attempts):
        if attempt.eps > 0 and attempt.measure != measure:
            continue
        style = "bold" if index == tuning.chosen else "" if attempt.allowed else "dim"
        table.add_row(*_cells(tuning, index, attempt, wide), style=style)
    return table


def _cells(tuning: Tuning, index: int, attempt: Attempt, wide: bool) -> list[str]:
    cells = [f"{attempt.eps:g}", *(share_text(getattr(attempt.figures, name)) for name in FIGURES)]
    if attempt.eps == 0:
        cells += ["", "", *([""] if wide else []), ""]
    else:
        cells += [f"{attempt.changed:.1%}", share_text(attempt.gain, signed=True)]
        cells += [share_text(attempt.gain_error)] if wide else []
        cells.append(p_text(attempt.p_value))
    cells += [str(tuning.splits[index] or "")] if wide else []
    return [*cells, "<-" if index == tuning.chosen else ""]


def _legend(tuning: Tuning) -> str:
    limit, tried = tuning.rule.max_accuracy_drop, len(tuning.attempts) - 1
    dim = "" if limit is None else f" Dim: accuracy lower than with eps 0 by more than {limit:g}."
    return (
        f"gain: in {objective_text(tuning)} over eps 0. p: of a gain by chance, adjusted for all {tried} attempts."
        f" These images made the choice: the chosen line looks better than it is.{dim}"
    )


def _worth(tuning: Tuning) -> Table:
    table = _new_table("On images that had no part in the choice", "")
    for header in ("eps 0", "tuned", "difference", f"{100 * tuning.confidence_level:g}% interval"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, title in FIGURES.items():
        worth = tuning.worth[name]
        title = f"SCR ({escape(tuning.smallest_class)})" if name == "scr" else title
        table.add_row(
            title,
            share_text(worth.base),
            share_text(worth.tuned),
            share_text(worth.difference, signed=True),
            interval_text(worth.interval, signed=True),
        )
    return table

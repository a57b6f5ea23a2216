"""A tuning in the terminal: the whole sweep, the figures of images that were not chosen on, and the choice in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from imbalance_perturb.evaluation.formatting import independence_text, interval_text, level_text, p_text, share_text
from imbalance_perturb.reports.terminal import add_number_columns, new_console, new_table, styled
from imbalance_perturb.selection.tuning.summary import figure_of, objective_text

if TYPE_CHECKING:
    from imbalance_perturb.selection.tuning.results import TriedCorrection, Tuning

#: From this width on the standard error of a gain and the splits have their columns.
_WIDE = 100


def print_tuning(tuning: Tuning) -> None:
    """Print the tables on stdout, as wide as the terminal (80 where there is none)."""
    console = new_console()
    for loss_spec in tuning.loss_specs:
        console.print(_sweep(tuning, loss_spec, console.width >= _WIDE))
    console.print(_legend(tuning), style="dim")
    console.print(independence_text(tuning.group), style="dim")
    console.print()
    console.print(_held_out(tuning))
    for sentence in tuning.summary:
        console.print(sentence, style="bold" if sentence is tuning.summary[0] else "")


def _sweep(tuning: Tuning, loss_spec: tuple[str | None, float | None], wide: bool) -> Table:
    loss, temperature = loss_spec
    table = new_table(f"Sweep over eps, T {temperature:g}, {loss} ({tuning.n:,} images)")
    table.add_column("eps", no_wrap=True)
    marked = figure_of(tuning.rule.objective)
    figures = [styled((title, "underline" if name == marked else "")) for name, title in tuning.figures.items()]
    more = ("± 1 SE", "p", "splits") if wide else ("p",)
    add_number_columns(table, *figures, "changed", "gain", *more)
    table.add_column("", no_wrap=True)
    for index, correction in enumerate(tuning.tried):
        if correction.eps > 0 and correction.loss_spec != loss_spec:
            continue
        style = "bold" if index == tuning.chosen else "" if correction.allowed else "dim"
        table.add_row(*_cells(tuning, index, correction, wide), style=style)
    return table


def _cells(tuning: Tuning, index: int, correction: TriedCorrection, wide: bool) -> list[str]:
    cells = [f"{correction.eps:g}", *(share_text(getattr(correction.figures, name)) for name in tuning.figures)]
    if correction.eps == 0:
        cells += ["", "", *([""] if wide else []), ""]
    else:
        cells += [f"{correction.changed:.1%}", share_text(correction.gain, signed=True)]
        cells += [share_text(correction.gain_error)] if wide else []
        cells.append(p_text(correction.p_value))
    cells += [str(tuning.splits[index] or "")] if wide else []
    return [*cells, "<-" if index == tuning.chosen else ""]


def _legend(tuning: Tuning) -> str:
    limit, tried = tuning.rule.max_accuracy_drop, len(tuning.tried) - 1
    dim = "" if limit is None else f" Dim: accuracy lower than with eps 0 by more than {limit:g}."
    saved = " (what is saved)" if tuning.rule.costs else ""
    return (
        f"gain: in {objective_text(tuning)} over eps 0{saved}. p: of a gain by chance, adjusted for all {tried}"
        f" attempts. These images made the choice: the chosen line looks better than it is.{dim}"
    )


def _held_out(tuning: Tuning) -> Table:
    table = new_table("On images that had no part in the choice")
    table.add_column("", no_wrap=True)
    add_number_columns(table, "eps 0", "tuned", "difference", f"{level_text(tuning.confidence_level)} interval")
    for name, title in tuning.figures.items():
        held_out = tuning.held_out[name]
        title = f"SCR ({tuning.smallest_class})" if name == "scr" else title
        table.add_row(
            title,
            share_text(held_out.base),
            share_text(held_out.tuned),
            share_text(held_out.difference, signed=True),
            interval_text(held_out.interval, signed=True),
        )
    return table

"""Class shares in the terminal: each class with its interval, beside its share of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imbalance_perturb.inference.share_estimation import ASSUMPTIONS
from imbalance_perturb.reports.terminal import add_number_columns, new_console, new_table

if TYPE_CHECKING:
    from imbalance_perturb.inference.share_estimation import ClassShares


def print_shares(estimated: ClassShares) -> None:
    """Print the table and what it rests on, on stdout."""
    console = new_console()
    table = new_table(f"Class shares of {estimated.images:,} images")
    table.add_column("class", overflow="fold")
    add_number_columns(table, "share", "95% interval", "in training")
    rows = zip(estimated.classes, estimated.shares, estimated.intervals, estimated.training, strict=True)
    for name, share, (low, high), training in rows:
        table.add_row(name, f"{share:.4f}", f"{low:.4f} to {high:.4f}", f"{training:.4f}")
    console.print(table)
    console.print(ASSUMPTIONS, style="dim")

"""The figures in use of an evaluation in the terminal: what falls, calibration, costs, predictive values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from imbalance_perturb.evaluation.formatting import costs_sentence, falls_sentence, share_text
from imbalance_perturb.reports.terminal import Text, add_number_columns, new_table, styled

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.results import Evaluation

#: What --json and the report call calibration; name -> spelled out.
CALIBRATION = {"brier": "Brier score", "log_loss": "log-loss", "ece": "class-wise ECE"}

#: Where calibration cannot be told.
NO_PROBABILITIES = "Calibration (Brier, log-loss, ECE) and AUC need probabilities: run predict with --probs."


def iter_sentences(evaluation: Evaluation) -> Iterator[Text | str]:
    """The lines below the summary."""
    yield falls_sentence(evaluation)
    before, after = evaluation.base.calibration, evaluation.perturbed.calibration
    if before is None or after is None:
        yield styled((NO_PROBABILITIES, "dim"))
    else:
        parts = (
            f"{title} {share_text(getattr(before, name))} -> {share_text(getattr(after, name))}"
            for name, title in CALIBRATION.items()
        )
        yield f"Calibration (less is better): {', '.join(parts)}."
    if evaluation.costs is not None:
        yield costs_sentence(evaluation)


def predictive_table(evaluation: Evaluation, shown: list[int], name_width: int) -> Table | None:
    """Specificity, PPV and NPV of the classes shown, where a prevalence was given: else they say little."""
    if not evaluation.shares_given:
        return None
    table = new_table()
    table.add_column("class", overflow="fold", min_width=8, max_width=name_width)
    add_number_columns(table, "share", "spec.", "", "PPV", "", "NPV", "")
    for c in shown:
        pairs = [
            share_text(
                None if scores.per_class[c].values is None else getattr(scores.per_class[c].values, name), digits=3
            )
            for name in ("specificity", "ppv", "npv")
            for scores in (evaluation.base, evaluation.perturbed)
        ]
        table.add_row(evaluation.classes[c], share_text(evaluation.shares[c], digits=3), *pairs)
    return table

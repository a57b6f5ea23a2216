"""Figures as people read them, the same in the terminal and in a report."""

from __future__ import annotations

from imbalance_perturb.scores import Evaluation, Interval

_NONE = "–"


def share_text(value: float | None, *, signed: bool = False) -> str:
    """A share with four decimals, as ``0.5903`` or ``+0.0391``; a dash for none."""
    if value is None:
        return _NONE
    # Adding zero makes -0.0 plain.
    return f"{round(value, 4) + 0.0:{'+' if signed else ''}.4f}"


def interval_text(interval: Interval | None, *, signed: bool = False) -> str:
    """The two ends with three decimals; nothing for none."""
    if interval is None:
        return ""
    sign = "+" if signed else ""
    return f"{round(interval.low, 3) + 0.0:{sign}.3f} to {round(interval.high, 3) + 0.0:{sign}.3f}"


def p_text(p_value: float | None) -> str:
    """A p-value with as many digits as mean something."""
    if p_value is None:
        return _NONE
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def changes_sentence(evaluation: Evaluation) -> str:
    """What the correction changed, in one sentence."""
    changes = evaluation.changes
    start = f"{changes.total:,} of {evaluation.n:,} predictions changed ({changes.total / evaluation.n:.1%})"
    if changes.total == 0:
        return f"{start}: base and perturbed predictions are the same."
    return (
        f"{start}: {changes.gained:,} from wrong to right, {changes.lost:,} from right to wrong,"
        f" {changes.still_wrong:,} from wrong to wrong."
    )

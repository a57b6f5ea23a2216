"""Format figures as people read them, the same in the terminal and in a report."""

from __future__ import annotations

from collections.abc import Sequence

from imbalance_perturb.errors import printable
from imbalance_perturb.evaluation.results import METRICS, Evaluation, Grouping, Interval

#: Most classes in a sentence.
_MOST_FALLS = 10

#: Stands where there is no figure.
NONE = "–"


def share_text(value: float | None, *, signed: bool = False, digits: int = 4) -> str:
    """A share with so many decimals, as ``0.5903`` or ``+0.0391``; a dash for none."""
    if value is None:
        return NONE
    # Adding zero makes -0.0 plain.
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def interval_text(interval: Interval | None, *, signed: bool = False) -> str:
    """The two ends with three decimals; nothing for none."""
    if interval is None:
        return ""
    return " to ".join(share_text(end, signed=signed, digits=3) for end in (interval.low, interval.high))


def p_text(p_value: float | None) -> str:
    """A p-value with as many digits as mean something."""
    if p_value is None:
        return NONE
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def level_text(level: float) -> str:
    """A confidence level as ``95%``."""
    return f"{100 * level:g}%"


def rate_text(images_per_second: float | None) -> str:
    """Images per second, with a decimal below 100; a dash for none."""
    if images_per_second is None:
        return NONE
    return f"{images_per_second:,.{1 if images_per_second < 100 else 0}f}"


def metric_text(metric: str) -> str:
    """The short name of one of :data:`METRICS`."""
    return METRICS[metric].partition(" (")[0]


def by_count(counts: Sequence[int]) -> list[int]:
    """Class indices from the largest training count to the smallest, the order in which classes are shown."""
    return sorted(range(len(counts)), key=lambda c: (-counts[c], c))


def shown_classes(evaluation: Evaluation, most: int) -> tuple[list[int], str]:
    """The classes to show, from the largest training count to the smallest, and a sentence on those left out.

    Args:
        evaluation: of C classes.
        most: up to so many all are shown, and the sentence is empty; else the worst, and those with the fewest
            training images, a tenth of that number each.
    """
    order = by_count(evaluation.counts)
    if len(order) <= most:
        return order, ""
    part = max(most // 10, 1)
    scores = evaluation.perturbed.per_class
    # Of equally bad classes the one with the most images says most.
    worst = sorted((c for c in order if scores[c].support), key=lambda c: (scores[c].recall, -scores[c].support))
    chosen = {*worst[:part], *order[-part:]}
    return [c for c in order if c in chosen], (
        f"Shown are {len(chosen):,} of {len(order):,} classes: the {part:,} with the lowest recall (perturbed) and the"
        f" {part:,} with the fewest training images. --json has all."
    )


def falls_sentence(evaluation: Evaluation) -> str:
    """The classes whose recall falls by more than chance, in one sentence."""
    test = next((f"{gain.test}, " for gain in evaluation.gains if gain is not None and gain.test), "") + "Holm-adjusted"
    falls = [
        f"{printable(name)} ({share_text(before.recall)} -> {share_text(after.recall)}, p {p_text(p_value)})"
        for name, gain, p_value, before, after in zip(
            evaluation.classes,
            evaluation.gains,
            evaluation.holm_p_values,
            evaluation.base.per_class,
            evaluation.perturbed.per_class,
            strict=True,
        )
        if gain is not None and gain.value < 0 and p_value is not None and p_value <= 1 - evaluation.confidence_level
    ]
    if not falls:
        return f"No class's recall falls significantly ({test})."
    more = len(falls) - _MOST_FALLS
    listed = ", ".join(falls[:_MOST_FALLS]) + (f" and {more:,} more classes" if more > 0 else "")
    return f"Recall falls on: {listed} ({test})."


def costs_sentence(evaluation: Evaluation) -> str:
    """The expected costs, in one sentence; empty without."""
    costs = evaluation.costs
    if costs is None:
        return ""
    interval = costs.difference.interval
    ends = (
        ""
        if interval is None
        else f", {level_text(evaluation.confidence_level)} {interval.low:+.4g} to {interval.high:+.4g}"
    )
    return (
        f"Expected cost per image, at the {shares_text(evaluation)}: {costs.base:.4g} -> {costs.perturbed:.4g}"
        f" (difference {costs.difference.value:+.4g}{ends})."
    )


def shares_text(evaluation: Evaluation) -> str:
    """At which shares of the classes PPV, NPV and costs are stated."""
    return "shares given by --prevalence" if evaluation.shares_given else "shares of the labels"


def independence_text(group: Grouping | None) -> str:
    """What intervals and tests take as independent, in a sentence."""
    if group is None:
        return "Images are taken as independent; --group COLUMN if several show the same patient or lesion."
    return f"Intervals and tests are by {group.groups:,} groups of {group.column}."


def changes_sentence(evaluation: Evaluation) -> str:
    """What the correction changed, in one sentence."""
    changes = evaluation.changes
    start = f"{changes.total:,} of {evaluation.n:,} predictions changed ({changes.total / evaluation.n:.1%})"
    if evaluation.unlabelled:
        predicted = evaluation.n + evaluation.unlabelled
        start = f"Scored on {evaluation.n:,} of {predicted:,} predicted images, those with a label. {start}"
    if changes.total == 0:
        return f"{start}: base and perturbed predictions are the same."
    return (
        f"{start}: {changes.gained:,} from wrong to right, {changes.lost:,} from right to wrong,"
        f" {changes.still_wrong:,} from wrong to wrong."
    )

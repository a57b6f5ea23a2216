"""Which of several compared methods to use, in one plain sentence: the cheapest that none beats by more than noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from imbalance_perturb.lineup import Advice, Entry
from imbalance_perturb.scores import METRICS, Difference
from imbalance_perturb.wording import interval_text, share_text

#: Differences of the second method minus the first, on the same images, by metric.
Compare = Callable[[str, str], Mapping[str, Difference]]

#: What decides for an objective; only these have paired intervals.
_METRIC_OF = {"mcr": "mcr", "scr": "scr"}


def advise(entries: Sequence[Entry], compare: Compare, *, objective: str, n: int, base: str = "none") -> Advice:
    """Name the method to use.

    A method is considered if its gain over ``base`` is more than noise: the interval of the paired difference lies
    above 0. Of those, the cheapest is taken (the earlier one, where two cost the same) that the best of them does
    not beat by more than noise. Methods without figures and controls are never advised.

    Args:
        entries: with differences against ``base``; in order of preference where all else is equal.
        compare: paired differences of the second method minus the first.
        objective: what parameters were chosen for.
        n: number of images scored.
        base: the method that does nothing.
    """
    metric = _METRIC_OF.get(objective, "mcr")
    known = {entry.method: entry for entry in entries if entry.scores is not None}
    metric = metric if all(metric in e.differences for e in known.values() if e.method != base) else "mcr"
    usable = [entry for entry in known.values() if not entry.control and entry.method != base]
    gaining = [entry for entry in usable if _above_zero(entry.differences[metric])]
    if not gaining:
        return Advice(base, metric, _nothing_helps(usable, metric, n))
    best = max(gaining, key=lambda entry: entry.differences[metric].value)
    tied = [e for e in gaining if e is best or not _above_zero(compare(e.method, best.method)[metric])]
    pick = min(tied, key=lambda entry: entry.passes)
    parts = [_gain(pick, metric)]
    if pick is not best:
        parts.append(_beside(pick, best, metric, compare))
    elif others := [entry for entry in usable if entry is not pick]:
        # What a reader asks next is what another price would have bought.
        others = [entry for entry in others if entry.passes != pick.passes] or others
        parts.append(_beside(pick, max(others, key=lambda e: e.differences[metric].value), metric, compare))
    parts += _caveats(pick, tied, known, compare, metric)
    return Advice(pick.method, metric, f"Use {_name(pick)}: {'; '.join(parts)}.")


def _above_zero(difference: Difference) -> bool:
    return difference.interval is not None and difference.interval.low > 0


def _name(entry: Entry) -> str:
    return f"{entry.method} with {entry.setting}" if entry.parameters else entry.method


def _short(metric: str) -> str:
    return METRICS[metric].partition(" (")[0]


def _nothing_helps(usable: Sequence[Entry], metric: str, n: int) -> str:
    start = f"Use the model as it is: no method raises {_short(metric)} by more than noise on these {n:,} images"
    if not usable:
        return "Use the model as it is: no other method was compared."
    best = max(usable, key=lambda entry: entry.differences[metric].value)
    if best.differences[metric].value <= 0:
        return f"{start}, and none raises it at all."
    return f"{start} (largest gain: {_name(best)}, {_signed(best.differences[metric])})."


def _signed(difference: Difference) -> str:
    interval = interval_text(difference.interval, signed=True)
    return share_text(difference.value, signed=True) + (f", interval {interval}" if interval else "")


def _value(entry: Entry, metric: str) -> str:
    assert entry.scores is not None, "entries without scores are left out before"
    return share_text(getattr(entry.scores, metric))


def _gain(pick: Entry, metric: str) -> str:
    accuracy = pick.differences["accuracy"]
    lost = "no accuracy lost" if accuracy.value >= 0 else f"accuracy {share_text(accuracy.value, signed=True)}"
    return f"it raises {_short(metric)} to {_value(pick, metric)} ({_signed(pick.differences[metric])}), {lost}"


def _beside(pick: Entry, other: Entry, metric: str, compare: Compare) -> str:
    gap = compare(pick.method, other.method)[metric]
    behind = gap.interval is not None and gap.interval.high < 0
    text = f"{_name(other)} comes to {_value(other, metric)}, "
    text += f"less by more than noise ({_signed(gap)})" if behind else "within noise of it"
    if other.passes != pick.passes:
        text += f", at {other.passes} {'pass' if other.passes == 1 else 'passes'} an image instead of {pick.passes}"
    return text


def _caveats(
    pick: Entry, tied: Sequence[Entry], known: Mapping[str, Entry], compare: Compare, metric: str
) -> list[str]:
    found = []
    for other in sorted(tied, key=lambda entry: -entry.differences["accuracy"].value):
        if other is not pick and _above_zero(gap := compare(pick.method, other.method)["accuracy"]):
            found.append(f"{other.method} keeps more accuracy ({share_text(gap.value, signed=True)})")
            break
    as_good = [
        entry.method
        for entry in known.values()
        if entry.control and "eps" in pick.parameters and not _above_zero(compare(entry.method, pick.method)[metric])
    ]
    if as_good:
        found.append(f"but the control {' and '.join(as_good)} does as well within noise: do not trust its direction")
    return found

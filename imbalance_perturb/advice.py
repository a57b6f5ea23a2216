"""Which of several compared methods to use, in one plain sentence: the cheapest that none beats by more than noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from imbalance_perturb.lineup import Advice, Entry
from imbalance_perturb.scores import METRICS, Difference
from imbalance_perturb.wording import interval_text, share_text

#: Differences of the second method minus the first, on the same images, by metric.
Compare = Callable[[str, str], Mapping[str, Difference]]

#: What decides for an objective; only these have paired intervals.
_METRIC_OF = {"mcr": "mcr", "scr": "scr"}


def advise(
    entries: Sequence[Entry], compare: Compare, *, objective: str, n: int, level: float = 0.95, base: str = "none"
) -> Advice:
    """Name the method to use.

    A method is considered if its gain over ``base`` is more than noise: the interval of the paired difference lies
    above 0. Of those, the cheapest is taken (the better one, where several cost the same) that the best of them does
    not beat by more than noise. Methods without figures and controls are never advised.

    Args:
        entries: with differences against ``base``; simpler methods first.
        compare: paired differences of the second method minus the first.
        objective: what parameters were chosen for; MCR decides where that has no paired interval.
        n: number of images scored.
        level: of the intervals.
        base: the method that does nothing.
    """
    return _Adviser({entry.method: entry for entry in entries if entry.scores is not None}, compare, level).advise(
        _METRIC_OF.get(objective, "mcr"), n, base
    )


@dataclass(frozen=True)
class _Adviser:
    entries: Mapping[str, Entry]
    compare: Compare
    level: float

    def advise(self, metric: str, n: int, base: str) -> Advice:
        usable = [entry for entry in self.entries.values() if not entry.control and entry.method != base]
        if not all(metric in entry.differences for entry in usable):
            metric = "mcr"  # the class that the objective is about has no image here
        gaining = [entry for entry in usable if _above_zero(entry.differences[metric])]
        if not gaining:
            return Advice(base, metric, self._nothing_helps(usable, metric, n))
        best = max(gaining, key=lambda entry: entry.differences[metric].value)
        tied = [e for e in gaining if e is best or not _above_zero(self.compare(e.method, best.method)[metric])]
        pick = min(tied, key=lambda entry: (entry.passes, -entry.differences[metric].value))
        parts = [self._gain(pick, metric)]
        rival = self._rival(pick, best, usable, metric)
        careful = max(tied, key=lambda entry: entry.differences["accuracy"].value)
        if rival is not None:
            parts.append(self._beside(pick, rival, metric))
        if careful not in (pick, rival) and self._keeps_accuracy(pick, careful) is not None:
            parts.append(self._beside(pick, careful, metric))
        parts += self._not_told_from_control(pick, metric)
        return Advice(pick.method, metric, f"Use {_name(pick)}: {'; '.join(parts)}.")

    def _rival(self, pick: Entry, best: Entry, usable: Sequence[Entry], metric: str) -> Entry | None:
        """What a reader asks next is what another price would have bought."""
        if pick is not best:
            return best
        others = [entry for entry in usable if _predictions(entry) != _predictions(pick)]
        others = [entry for entry in others if entry.passes != pick.passes] or others
        # Two methods combined tell less of either than each alone.
        others = [entry for entry in others if len(entry.parameters) < 2] or others
        return max(others, key=lambda entry: entry.differences[metric].value, default=None)

    def _nothing_helps(self, usable: Sequence[Entry], metric: str, n: int) -> str:
        if not usable:
            return "Use the model as it is: no other method was compared."
        start = f"Use the model as it is: no method raises {_short(metric)} by more than noise on these {n:,} images"
        best = max(usable, key=lambda entry: entry.differences[metric].value)
        if best.differences[metric].value <= 0:
            return f"{start}, and none raises it at all."
        return f"{start} (largest gain: {_name(best)}, {self._signed(best.differences[metric])})."

    def _signed(self, difference: Difference) -> str:
        interval = interval_text(difference.interval, signed=True)
        text = share_text(difference.value, signed=True)
        return f"{text}, {100 * self.level:g}% interval {interval}" if interval else text

    def _gain(self, pick: Entry, metric: str) -> str:
        accuracy = pick.differences["accuracy"]
        text = f"it raises {_short(metric)} to {_value(pick, metric)} ({self._signed(pick.differences[metric])})"
        return f"{text}, accuracy {share_text(accuracy.value, signed=True)}"

    def _beside(self, pick: Entry, other: Entry, metric: str) -> str:
        gap = self.compare(pick.method, other.method)[metric]
        behind = gap.interval is not None and gap.interval.high < 0
        text = f"{_name(other)} comes to {_value(other, metric)}, "
        text += f"less by more than noise ({self._signed(gap)})" if behind else "within noise of it"
        if (kept := self._keeps_accuracy(pick, other)) is not None:
            text += f", with more accuracy ({share_text(kept, signed=True)})"
        if other.passes != pick.passes:
            passes = "pass" if other.passes == 1 else "passes"
            text += f", at {other.passes} {passes} an image instead of {pick.passes}"
        return text

    def _keeps_accuracy(self, pick: Entry, other: Entry) -> float | None:
        """How much more accuracy the other has, if that is more than noise."""
        gap = self.compare(pick.method, other.method)["accuracy"]
        return gap.value if _above_zero(gap) else None

    def _not_told_from_control(self, pick: Entry, metric: str) -> Iterator[str]:
        if not pick.parameters.get("eps"):
            return
        as_good = [
            entry.method
            for entry in self.entries.values()
            if entry.control and not _above_zero(self.compare(entry.method, pick.method)[metric])
        ]
        if as_good:
            yield f"but {' and '.join(as_good)} does as well within noise, so it is not the direction that helps"


def _above_zero(difference: Difference) -> bool:
    return difference.interval is not None and difference.interval.low > 0


def _name(entry: Entry) -> str:
    return f"{entry.method} with {entry.setting}" if entry.parameters else entry.method


def _short(metric: str) -> str:
    return METRICS[metric].partition(" (")[0]


def _value(entry: Entry, metric: str) -> str:
    return share_text(getattr(entry.scores, metric))


def _predictions(entry: Entry) -> object:
    return None if entry.scores is None else entry.scores.confusion_matrix

"""Advise which of several methods to use, in one plain sentence: the cheapest that none beats by more than noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from imbalance_perturb.evaluation.formatting import interval_text, level_text, metric_text, share_text
from imbalance_perturb.evaluation.results import Difference
from imbalance_perturb.selection.comparison.results import Advice, MethodResult

#: Differences of the second method minus the first, on the same images, by metric.
Compare = Callable[[str, str], Mapping[str, Difference]]

#: One-sided p-values of methods' gains by a metric, adjusted for all that are named.
Test = Callable[[str, Sequence[str]], Mapping[str, float]]

#: What decides for an objective; only these have paired intervals.
_METRIC_OF = {"mcr": "mcr", "scr": "scr"}


def advise(
    results: Sequence[MethodResult],
    compare: Compare,
    *,
    test: Test,
    objective: str,
    n: int,
    level: float = 0.95,
    base: str = "none",
) -> Advice:
    """Name the method to use.

    A method is considered if its gain over ``base`` is more than noise gives the best of so many methods. Of those,
    the cheapest is taken (the better one, where several cost the same) that the best of them does not beat by more
    than noise. Methods without figures and controls are never advised.

    Args:
        results: with differences against ``base``; simpler methods first.
        compare: paired differences of the second method minus the first.
        test: p-values of the methods' gains over ``base`` in a metric, adjusted for their number.
        objective: what parameters were chosen for; MCR decides where that has no paired interval.
        n: number of images scored.
        level: of the intervals.
        base: the method that does nothing.
    """
    return _Adviser(
        {result.method: result for result in results if result.scores is not None}, compare, test, level
    ).advise(_METRIC_OF.get(objective, "mcr"), n, base)


@dataclass(frozen=True)
class _Adviser:
    results: Mapping[str, MethodResult]
    compare: Compare
    test: Test
    level: float

    def advise(self, metric: str, n: int, base: str) -> Advice:
        usable = [r for r in self.results.values() if not r.control and r.applicable and r.method != base]
        if not all(metric in result.differences for result in usable):
            metric = "mcr"  # the class that the objective is about has no image here
        p_values = self.test(metric, [result.method for result in usable])
        gaining = [result for result in usable if p_values[result.method] <= 1 - self.level]
        if not gaining:
            return Advice(base, metric, self._nothing_helps(usable, metric, n))
        best = max(gaining, key=lambda result: result.differences[metric].value)
        tied = [e for e in gaining if e is best or not _above_zero(self.compare(e.method, best.method)[metric])]
        pick = min(tied, key=lambda result: (result.passes, -result.differences[metric].value))
        parts = [self._gain(pick, metric)]
        rival = self._rival(pick, best, usable, metric)
        careful = max(tied, key=lambda result: result.differences["accuracy"].value)
        if rival is not None:
            parts.append(self._beside(pick, rival, metric))
        if careful not in (pick, rival) and self._keeps_accuracy(pick, careful) is not None:
            parts.append(self._beside(pick, careful, metric))
        parts += self._controls_as_good(pick, metric)
        return Advice(pick.method, metric, f"Use {_name(pick)}: {'; '.join(parts)}.")

    def _rival(
        self, pick: MethodResult, best: MethodResult, usable: Sequence[MethodResult], metric: str
    ) -> MethodResult | None:
        """What a reader asks next is what another price would have bought."""
        if pick is not best:
            return best
        others = [result for result in usable if _predictions(result) != _predictions(pick)]
        others = [result for result in others if result.passes != pick.passes] or others
        # Two methods combined tell less of either than each alone.
        others = [result for result in others if result.method != "perturb+la"] or others
        return max(others, key=lambda result: result.differences[metric].value, default=None)

    def _nothing_helps(self, usable: Sequence[MethodResult], metric: str, n: int) -> str:
        if not usable:
            return "Use the model as it is: no other method was compared."
        start = (
            f"Use the model as it is: no method raises {metric_text(metric)} by more than noise on these {n:,} images"
        )
        best = max(usable, key=lambda result: result.differences[metric].value)
        if best.differences[metric].value <= 0:
            return f"{start}, and none raises it at all."
        return f"{start} (largest gain: {_name(best)}, {self._signed(best.differences[metric])})."

    def _signed(self, difference: Difference) -> str:
        interval = interval_text(difference.interval, signed=True)
        text = share_text(difference.value, signed=True)
        return f"{text}, {level_text(self.level)} interval {interval}" if interval else text

    def _gain(self, pick: MethodResult, metric: str) -> str:
        accuracy = pick.differences["accuracy"]
        text = f"it raises {metric_text(metric)} to {_value(pick, metric)} ({self._signed(pick.differences[metric])})"
        return f"{text}, accuracy {share_text(accuracy.value, signed=True)}"

    def _beside(self, pick: MethodResult, other: MethodResult, metric: str) -> str:
        gap = self.compare(pick.method, other.method)[metric]
        behind = gap.interval is not None and gap.interval.high < 0
        text = f"{_name(other)} comes to {_value(other, metric)}, "
        text += f"less by more than noise ({self._signed(gap)})" if behind else "within noise of it"
        if (kept := self._keeps_accuracy(pick, other)) is not None:
            text += f", with more accuracy ({share_text(kept, signed=True)})"
        if other.passes != pick.passes:
            passes = "pass" if other.passes == 1 else "passes"
            text += f", at {other.passes:g} {passes} an image instead of {pick.passes:g}"
        return text

    def _keeps_accuracy(self, pick: MethodResult, other: MethodResult) -> float | None:
        """How much more accuracy the other has, if that is more than noise."""
        gap = self.compare(pick.method, other.method)["accuracy"]
        return gap.value if _above_zero(gap) else None

    def _controls_as_good(self, pick: MethodResult, metric: str) -> Iterator[str]:
        if not pick.parameters.get("eps"):
            return
        as_good = [
            result.method
            for result in self.results.values()
            if result.control and not _above_zero(self.compare(result.method, pick.method)[metric])
        ]
        if as_good:
            names = " and ".join(as_good)
            yield f"but {names} does as well within noise: that the direction helps cannot be told"


def _above_zero(difference: Difference) -> bool:
    return difference.interval is not None and difference.interval.low > 0


def _name(result: MethodResult) -> str:
    chosen = bool(result.parameters) and result.setting != "fitted"
    return f"{result.method} with {result.setting}" if chosen else result.method


def _value(result: MethodResult, metric: str) -> str:
    return share_text(getattr(result.scores, metric))


def _predictions(result: MethodResult) -> object:
    return None if result.scores is None else result.scores.confusion_cells

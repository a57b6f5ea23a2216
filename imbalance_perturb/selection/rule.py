"""Choose among corrections without being fooled by noise.

The candidates are predictions that are there already (nothing is fitted), so a choice is fooled in one way only:
the largest of many noisy figures is large by luck. Two things stand against that:

* a candidate is considered only if its gain over candidate 0, the uncorrected prediction, is more than chance
  among this many candidates gives: a paired permutation test of all of them at once (Westfall and Young's max-T);
* among those considered, the mildest one within one standard error of the best is taken (Breiman et al. 1984).
  The error is that of the paired difference, from leaving out each fold of repeated stratified folds in turn.

``benchmarks/selection.py`` measures how often the rule answers 'no correction' where none helps, and where one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.errors import LabelsError, SettingsError
from imbalance_perturb.selection.candidates import (
    OBJECTIVES,
    Bools,
    Candidates,
    Floats,
    objective_values,
    stratified_folds,
)
from imbalance_perturb.selection.max_t_test import adjusted_p_values

#: Figures closer than this are ties: only rounding separates them.
_TIE = 1e-12

#: Where no correction helps, 'no correction' is to be the answer nine times in ten; this level keeps the measured rate
#: above that with room for chance (``benchmarks/selection.py``), and a stricter one would miss more that do help.
DEFAULT_SIGNIFICANCE = 0.07


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """How a choice is made.

    Args:
        objective: one of :data:`OBJECTIVES`.
        max_accuracy_drop: candidates whose accuracy is lower than that of candidate 0 by more than this are out;
            ``None`` for no limit. In shares, so 0.01 is one percentage point.
        standard_errors: how far below the best a milder candidate may be.
        significance: largest p-value of a gain over candidate 0 (one-sided, adjusted for the number of
            candidates); ``None`` considers every candidate, whether its gain is noise or not.
        folds: parts that are held out in turn, at least 2.
        repeats: how often the images are split anew.
        seed: of the splits and the permutations.

    Raises:
        SettingsError: if a value is out of range.
    """

    objective: str = "mcr"
    max_accuracy_drop: float | None = None
    standard_errors: float = 1.0
    significance: float | None = DEFAULT_SIGNIFICANCE
    folds: int = 5
    repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        take_numbers(self)
        if self.objective not in OBJECTIVES:
            raise SettingsError(f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        drop = self.max_accuracy_drop
        if drop is not None and not 0 <= drop <= 1:
            raise SettingsError(f"max-accuracy-drop is {drop:g}; expected a share from 0 to 1, such as 0.01")
        if not self.standard_errors >= 0:
            raise SettingsError(f"standard-errors is {self.standard_errors:g}; expected at least 0")
        if self.significance is not None and not 0 < self.significance <= 1:
            raise SettingsError(f"significance is {self.significance:g}; expected a number above 0, at most 1")
        for name, value, least in (("folds", self.folds, 2), ("repeats", self.repeats, 1), ("seed", self.seed, 0)):
            if value < least:
                raise SettingsError(f"{name} is {value}; expected a whole number, at least {least}")


@dataclass(frozen=True, eq=False)
class Choice:
    """A choice among K candidates, and all it rests on.

    Args:
        chosen: the candidate taken; 0 is the uncorrected prediction.
        values: (K,) the objective.
        gains: (K,) ``values`` minus that of candidate 0.
        gain_errors: (K,) standard errors of ``gains``.
        p_values: (K,) of the gains, one-sided, adjusted for the number of candidates; 1 for candidate 0.
        allowed: (K,) whether the accuracy is within ``max_accuracy_drop`` of candidate 0's.
    """

    chosen: int
    values: Floats
    gains: Floats
    gain_errors: Floats
    p_values: Floats
    allowed: Bools


def check_rule(candidates: Candidates, rule: SelectionRule) -> None:
    """Refuse a rule that these images cannot serve.

    Raises:
        LabelsError: if there are fewer images than folds, or none of the class that ``scr`` is about.
    """
    if len(candidates.labels) < rule.folds:
        raise LabelsError(
            f"{len(candidates.labels)} labelled images cannot be split into {rule.folds} folds; label more images or"
            " ask for fewer folds"
        )
    if rule.objective == "scr" and not (candidates.labels == candidates.smallest).any():
        raise LabelsError(
            "the class with the fewest training images has no labelled image, so its recall cannot be the objective;"
            " label some, or choose another objective"
        )


def choose_among(candidates: Candidates, rule: SelectionRule, random: np.random.Generator) -> Choice:
    """Choose one of the candidates, on all their images, which cannot say how good it is on others."""
    hits, totals = candidates.count_all()
    values = objective_values(hits, totals, rule.objective, candidates.smallest)
    accuracy = hits.sum(axis=0) / totals.sum()
    drop = np.inf if rule.max_accuracy_drop is None else rule.max_accuracy_drop
    allowed = accuracy[0] - accuracy <= drop + _TIE
    left_out = _leave_out(candidates, rule, random)
    p_values = adjusted_p_values(candidates, rule.objective, random)
    considered = allowed & (p_values <= (1.0 if rule.significance is None else rule.significance))
    considered[0] = True
    chosen = _mildest(values, considered, left_out, candidates.strengths, rule.standard_errors)
    return Choice(chosen, values, values - values[0], _error_of_difference(left_out, 0), p_values, allowed)


def _mildest(values: Floats, considered: Bools, left_out: Floats, strengths: Floats, standard_errors: float) -> int:
    """The one-standard-error rule."""
    candidates = np.flatnonzero(considered & np.isfinite(values))
    if len(candidates) == 0:
        return 0
    best = int(min(candidates, key=lambda k: (-values[k], strengths[k])))
    tolerance = standard_errors * _error_of_difference(left_out, best)
    near = [int(k) for k in candidates if values[best] - values[k] <= tolerance[k] + _TIE]
    return min(near, key=lambda k: (strengths[k], -values[k]))


def _leave_out(candidates: Candidates, rule: SelectionRule, random: np.random.Generator) -> Floats:
    """(repeats, folds, K) the objective without each fold."""
    values = []
    for _ in range(rule.repeats):
        hits, totals = candidates.count(stratified_folds(candidates.labels, rule.folds, random), rule.folds)
        values.append(
            objective_values(hits.sum(axis=0) - hits, totals.sum(axis=0) - totals, rule.objective, candidates.smallest)
        )
    return np.stack(values)


def _error_of_difference(left_out: Floats, reference: int) -> Floats:
    """(K,) standard error of each candidate's difference from the reference: the grouped jackknife."""
    difference = left_out - left_out[:, :, [reference]]
    folds = left_out.shape[1]
    variance = (folds - 1) * difference.var(axis=1)
    # Not known where a fold held all images of the class: every candidate is within the error then.
    return np.asarray(np.sqrt(np.nan_to_num(variance, nan=np.inf).mean(axis=0)))

"""Choose among corrections without being fooled by noise.

The candidates are predictions that are there already, so a choice is fooled in one way only: the largest of many noisy
figures is large by luck. Recalls of rare classes are the noisiest figures there are; hence mean class recall is served
by the class-balanced Brier score, which has the same images decide with all that their probabilities say. What costs
more passes than candidate 0 must also show a gain beyond what chance among so many candidates gives (a max-T test of
all of them at once), and may not lower the mean class recall of the images at hand.

``benchmarks/selection.py`` measures the regret of the rule on real logits, and how often it answers 'no correction'
where none helps, and where one does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.config.settings import DebiasSettings
from imbalance_perturb.errors import LabelsError, SettingsError
from imbalance_perturb.selection.brier import error_importance
from imbalance_perturb.selection.candidates import (
    OBJECTIVES,
    Bools,
    Candidates,
    Floats,
    Ints,
    objective_values,
)
from imbalance_perturb.selection.group_folds import check_groups, deal_folds, sum_groups
from imbalance_perturb.selection.max_t_test import adjusted_p_values, mean_gain_p_values

#: Figures closer than this are ties: only rounding separates them.
_TIE = 1e-12

#: Largest p-value of a gain that is believed.
DEFAULT_SIGNIFICANCE = 0.05

#: The objective where errors have costs: to lower what a prediction costs on average.
COST = "cost"

#: Objectives that say nothing of most images: alone they would take the strongest candidate, whatever it ruins.
_OF_ONE_CLASS = ("scr", "worst")


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """How a choice is made.

    Args:
        objective: one of :data:`OBJECTIVES`, or ``cost``. ``mcr`` takes the candidate with the least class-balanced
            Brier score, ``cost`` that with the least Brier score in which an image of class c weighs what an error of c
            costs on average; the others the highest figure.
        max_accuracy_drop: candidates whose accuracy is lower than that of candidate 0 by more than this, or less than
            one standard error below the limit, are out; ``None`` for no limit. In shares, so 0.01 is one percentage
            point. Without a limit ``scr`` and ``worst`` take no candidate with a lower mean class recall.
        significance: largest p-value of a gain over candidate 0 (one-sided, adjusted for the number of candidates),
            and the mean class recall must not be lower; ``None`` for candidates that cost nothing: no test at all.
        folds: parts that are held out in turn, at least 2.
        repeats: how often the images are split anew.
        seed: of the splits and the permutations.
        costs: (C, C) of predictions, true classes as rows; needed for ``cost``, and for no other objective.

    Raises:
        SettingsError: if a value is out of range.
    """

    objective: str = "mcr"
    max_accuracy_drop: float | None = None
    significance: float | None = DEFAULT_SIGNIFICANCE
    folds: int = 5
    repeats: int = 10
    seed: int = 0
    costs: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        take_numbers(self)
        if (self.objective == COST) != (self.costs is not None):
            raise SettingsError(f"objective is {self.objective!r}; costs are an objective of their own, {COST!r}")
        if self.objective not in (*OBJECTIVES, COST):
            raise SettingsError(f"objective is {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        drop = self.max_accuracy_drop
        if drop is not None and not 0 <= drop <= 1:
            raise SettingsError(f"max-accuracy-drop is {drop:g}; expected a share from 0 to 1, such as 0.01")
        if self.significance is not None and not 0 < self.significance <= 1:
            raise SettingsError(f"significance is {self.significance:g}; expected a number above 0, at most 1")
        for name, value, least in (("folds", self.folds, 2), ("repeats", self.repeats, 1), ("seed", self.seed, 0)):
            if value < least:
                raise SettingsError(f"{name} is {value}; expected a whole number, at least {least}")
        if self.costs is not None and not error_importance(np.array(self.costs)).any():
            raise SettingsError("costs: no error costs more than a right prediction, so there is nothing to lower")

    @property
    def by_brier(self) -> bool:
        """Whether the choice is by a Brier score, not by the objective itself."""
        return self.objective in ("mcr", COST)


@dataclass(frozen=True, eq=False)
class Choice:
    """A choice among K candidates, and all it rests on.

    Args:
        chosen: the candidate taken; 0 is the uncorrected prediction.
        values: (K,) the objective; of ``cost`` the mean cost of a prediction, below 0, so that more is better.
        briers: (K,) class-balanced (of ``cost``: cost-weighted) Brier scores, in [0, 2], less is better.
        gains: (K,) ``values`` minus that of candidate 0.
        gain_errors: (K,) standard errors of ``gains``.
        p_values: (K,) of the gains (for ``mcr`` and ``cost`` of those in the Brier score), one-sided, adjusted for the
            number of candidates; 1 for candidate 0, and for all where there is no test.
        allowed: (K,) whether accuracy, and where it is asked for the mean class recall or the mean cost, are kept.
    """

    chosen: int
    values: Floats
    briers: Floats
    gains: Floats
    gain_errors: Floats
    p_values: Floats
    allowed: Bools


def check_rule(candidates: Candidates, rule: SelectionRule) -> None:
    """Refuse a rule that these images cannot serve.

    Raises:
        LabelsError: if there are fewer images, or groups of them, than folds, or none of the class that ``scr`` is
            about.
        SettingsError: for costs where the candidates have none.
    """
    if rule.objective == COST and candidates.prices is None:
        raise SettingsError("costs are an objective of tune-eps alone; leave them out")
    if candidates.groups is not None:
        check_groups(candidates.labels, candidates.groups, rule.folds)
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


def check_balanced(debias: DebiasSettings) -> None:
    """Refuse a prior that is not balanced: figures, scores and tests of a choice count every class alike.

    Raises:
        SettingsError: if there is one.
    """
    if debias.prior != "balanced":
        raise SettingsError(
            "a prior is given, but corrections are chosen here for balanced classes, which a choice for other shares"
            " would not be; use --prior balanced, and give the prior to predict"
        )


def choose_among(candidates: Candidates, rule: SelectionRule, random: np.random.Generator) -> Choice:
    """Choose one of the candidates, on all their images, which cannot say how good it is on others."""
    values = _values(candidates, rule)
    weighted = candidates.weighted_briers()
    briers = weighted.sum(axis=0)
    allowed = _allowed(candidates, rule)
    p_values = _test(candidates, weighted, rule, random)
    considered = allowed & (p_values <= (1.0 if rule.significance is None else rule.significance))
    considered[0] = True
    badness = briers if rule.by_brier else -values
    chosen = _best(badness, briers, considered, candidates.strengths)
    errors = _error_of_difference(_leave_out(candidates, rule, random), 0)
    return Choice(chosen, values, briers, values - values[0], errors, p_values, allowed)


def _values(candidates: Candidates, rule: SelectionRule) -> Floats:
    if rule.objective == COST:
        assert candidates.prices is not None, "check_rule has seen to it"
        return np.asarray(-candidates.prices.mean(axis=0))
    return objective_values(*candidates.count_all(), rule.objective, candidates.smallest)


def _allowed(candidates: Candidates, rule: SelectionRule) -> Bools:
    correct = candidates.correct
    lost = correct[:, :1].astype(np.float64) - correct
    allowed = np.ones(correct.shape[1], dtype=bool)
    if rule.max_accuracy_drop is not None:
        # Other images will not show the same drop: half of all choices at the limit would break it.
        allowed = lost.mean(axis=0) + _error_of_mean(lost, candidates.groups) <= rule.max_accuracy_drop + _TIE
    tested = rule.by_brier and rule.significance is not None
    if tested or (rule.objective in _OF_ONE_CLASS and rule.max_accuracy_drop is None):
        kept = _values(candidates, rule if tested else replace(rule, objective="mcr"))
        allowed &= kept >= kept[0] - _TIE
    if tested:
        moved = lost if candidates.prices is None else candidates.prices - candidates.prices[:, :1]
        allowed &= moved.any(axis=0)  # better probabilities for the same answers are not worth two passes
    allowed[0] = True
    return np.asarray(allowed)


def _error_of_mean(values: Floats, groups: Ints | None) -> Floats:
    """(K,) standard errors of the means of (N, K) values of images."""
    if groups is None:
        return np.asarray(values.std(axis=0) / np.sqrt(len(values)))
    residuals = sum_groups(values - values.mean(axis=0), groups)
    return np.asarray(np.sqrt((residuals**2).sum(axis=0)) / len(values))


def _test(candidates: Candidates, weighted: Floats, rule: SelectionRule, random: np.random.Generator) -> Floats:
    if rule.significance is None:
        return np.ones(weighted.shape[1])
    if rule.by_brier:
        gains = weighted[:, :1] - weighted
        return mean_gain_p_values(gains if candidates.groups is None else sum_groups(gains, candidates.groups), random)
    return adjusted_p_values(candidates, rule.objective, random)


def _best(badness: Floats, briers: Floats, considered: Bools, strengths: Floats) -> int:
    """The least bad; of equals the one with the better Brier score, then the mildest."""
    candidates = np.flatnonzero(considered & np.isfinite(badness))
    if len(candidates) == 0:
        return 0
    least = badness[candidates].min()
    near = [int(k) for k in candidates if badness[k] <= least + _TIE]
    score = min(briers[k] for k in near)
    return min((k for k in near if briers[k] <= score + _TIE), key=lambda k: (strengths[k], k))


def _leave_out(candidates: Candidates, rule: SelectionRule, random: np.random.Generator) -> Floats:
    """(repeats, folds, K) the objective without each fold."""
    values = []
    for _ in range(rule.repeats):
        folds = deal_folds(candidates.labels, candidates.groups, rule.folds, random)
        if rule.objective == COST and candidates.prices is not None:
            kept = (candidates.prices[folds != fold] for fold in range(rule.folds))
            values.append(np.stack([-prices.mean(axis=0) for prices in kept]))
            continue
        hits, totals = candidates.count(folds, rule.folds)
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

"""Choose among corrections, and estimate the figures of the choice on images that had no part in it.

Nested cross-validation: the whole choice is made again without each fold, and only that fold scores it. On the images
that made it a choice looks too good, so what is said of the selected correction never comes from those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.selection.candidates import (
    OBJECTIVES,
    Bools,
    Candidates,
    Ints,
    make_candidates,
    objective_values,
)
from imbalance_perturb.selection.group_folds import split_folds
from imbalance_perturb.selection.rule import Choice, SelectionRule, check_rule, choose_among

__all__ = ["OBJECTIVES", "Choice", "Figures", "Selection", "SelectionRule", "choose", "select_by_cross_validation"]


@dataclass(frozen=True)
class Figures:
    """Figures of one set of predictions, each in [0, 1]; ``scr`` is ``None`` where its class has no image.

    ``cost`` is the mean cost of a prediction, ``None`` without costs.
    """

    mcr: float
    scr: float | None
    worst_class_recall: float
    gmean: float
    accuracy: float
    cost: float | None = None


@dataclass(frozen=True, eq=False)
class HeldOutChoices:
    """What was chosen without each part of the images.

    Args:
        chosen: on all images.
        fold_choices: (repeats, folds) the candidate chosen without each fold.
        folds: (repeats, N) the fold in which each image was held out.
    """

    chosen: int
    fold_choices: Ints
    folds: Ints

    @property
    def held_out_candidates(self) -> Ints:
        """(repeats, N) the candidate that was chosen without the image."""
        return np.take_along_axis(self.fold_choices, self.folds, axis=1)

    @property
    def agreement(self) -> tuple[int, int]:
        """In how many splits the same candidate was chosen, and the number of splits."""
        return int((self.fold_choices == self.chosen).sum()), self.fold_choices.size


#: Makes a choice on some of the images, (N,) true for those.
Pick = Callable[[Bools, np.random.Generator], int]


def generator_for_all(rule: SelectionRule) -> np.random.Generator:
    """What the choice on all images draws from."""
    return np.random.default_rng(np.random.SeedSequence(rule.seed).spawn(1)[0])


def choose_without_each_fold(
    labels: Ints, rule: SelectionRule, pick: Pick, chosen: int, groups: Ints | None = None
) -> HeldOutChoices:
    """Choose again without each fold, by whatever way ``pick`` goes; ``chosen`` is what it took on all images."""
    _, *for_repeats = np.random.SeedSequence(rule.seed).spawn(1 + rule.repeats)
    folds = np.empty((rule.repeats, len(labels)), dtype=np.int64)
    fold_choices = np.empty((rule.repeats, rule.folds), dtype=np.int64)
    for repeat, seeds in enumerate(for_repeats):
        random = np.random.default_rng(seeds)
        folds[repeat] = split_folds(labels, groups, rule.folds, random)
        for fold in range(rule.folds):
            fold_choices[repeat, fold] = pick(folds[repeat] != fold, random)
    return HeldOutChoices(chosen, fold_choices, folds)


@dataclass(frozen=True, eq=False)
class Selection:
    """A choice, how steady it is, and its figures on images that had no part in it.

    Args:
        choice: made from all N images.
        figures: of the K candidates on all N images. Those of the chosen one are of the images that chose it, and
            so too good; ``selected`` are not.
        base: of candidate 0; no choice is involved, so all images count.
        selected: of the whole procedure: each image predicted with what was chosen without it, averaged over
            the repeats.
        held_out: what was chosen without each part of the images.
        rule: how the choice was made.
    """

    choice: Choice
    figures: tuple[Figures, ...]
    base: Figures
    selected: Figures
    held_out: HeldOutChoices
    rule: SelectionRule

    @property
    def chosen(self) -> int:
        """The candidate to use on new images."""
        return self.choice.chosen


def select_by_cross_validation(
    labels: ArrayLike,
    preds: ArrayLike,
    strengths: ArrayLike,
    *,
    num_classes: int,
    smallest_class: int,
    logits: Sequence[NDArray[np.floating]] | None = None,
    rule: SelectionRule | None = None,
    groups: Ints | None = None,
) -> Selection:
    """Choose one of K candidate predictions of the same N images, and estimate its figures on other images.

    Args:
        labels: (N,) true class indices.
        preds: (N, K) predicted class indices; column 0 is the uncorrected prediction.
        strengths: (K,) how strong each correction is, smallest for candidate 0; among equally good candidates the
            least is taken (ties: the higher objective).
        num_classes: C.
        smallest_class: index of the class with the fewest training images, for ``scr``.
        logits: (N, C) for each candidate, for the Brier score; see :func:`make_candidates`.
        rule: how to choose.
        groups: (N,) numbers of the images' groups, where images are not independent: a group stays in one fold, and
            tests swap predictions within whole groups.

    Raises:
        LabelsError: if the arrays do not fit each other or the classes, there are fewer images than folds, or
            only one class has images, or none of the class that ``scr`` is about.
    """
    rule = rule or SelectionRule()
    candidates = make_candidates(
        labels,
        preds,
        strengths,
        num_classes=num_classes,
        smallest_class=smallest_class,
        logits=logits,
        costs=rule.costs,
        groups=groups,
    )
    check_rule(candidates, rule)
    choice = choose_among(candidates, rule, generator_for_all(rule))
    held_out = choose_without_each_fold(
        candidates.labels,
        rule,
        lambda images, random: choose_among(candidates.subset(images), rule, random).chosen,
        choice.chosen,
        groups,
    )
    rows, taken = np.arange(len(candidates.labels)), held_out.held_out_candidates
    selected = replace(
        candidates,
        correct=candidates.correct[rows, taken].T,
        strengths=np.zeros(rule.repeats),
        briers=None,
        prices=None if candidates.prices is None else candidates.prices[rows, taken].T,
    )
    figures = _figures(candidates)
    return Selection(
        choice=choice,
        figures=figures,
        base=figures[0],
        selected=_mean_figures(_figures(selected)),
        held_out=held_out,
        rule=rule,
    )


def choose(
    labels: ArrayLike,
    preds: ArrayLike,
    strengths: ArrayLike,
    *,
    num_classes: int,
    smallest_class: int,
    logits: Sequence[NDArray[np.floating]] | None = None,
    rule: SelectionRule | None = None,
) -> Choice:
    """The choice of :func:`select_by_cross_validation` alone, without the estimate."""
    rule = rule or SelectionRule()
    candidates = make_candidates(
        labels,
        preds,
        strengths,
        num_classes=num_classes,
        smallest_class=smallest_class,
        logits=logits,
        costs=rule.costs,
    )
    check_rule(candidates, rule)
    return choose_among(candidates, rule, generator_for_all(rule))


def _figures(candidates: Candidates) -> tuple[Figures, ...]:
    hits, totals = candidates.count_all()
    mcr, scr, worst, gmean = (objective_values(hits, totals, name, candidates.smallest).tolist() for name in OBJECTIVES)
    accuracy = (hits.sum(axis=0) / totals.sum()).tolist()
    known = totals[candidates.smallest] > 0
    costs = [None] * len(accuracy) if candidates.prices is None else candidates.prices.mean(axis=0).tolist()
    return tuple(
        Figures(mcr[k], scr[k] if known else None, worst[k], gmean[k], accuracy[k], costs[k])
        for k in range(len(accuracy))
    )


def _mean_figures(figures: tuple[Figures, ...]) -> Figures:
    scrs = [f.scr for f in figures if f.scr is not None]
    costs = [f.cost for f in figures if f.cost is not None]
    return Figures(
        mcr=float(np.mean([f.mcr for f in figures])),
        scr=float(np.mean(scrs)) if scrs else None,
        worst_class_recall=float(np.mean([f.worst_class_recall for f in figures])),
        gmean=float(np.mean([f.gmean for f in figures])),
        accuracy=float(np.mean([f.accuracy for f in figures])),
        cost=float(np.mean(costs)) if costs else None,
    )

"""Choose each method's parameters, and predict the images that had no part in the choice."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.labels import LabelledImages
from imbalance_perturb.errors import LabelsError
from imbalance_perturb.evaluation.groups import Groups, groups_of
from imbalance_perturb.inference.pipeline import Pipeline
from imbalance_perturb.inference.progress import Progress
from imbalance_perturb.method.perturbation import LossSpec
from imbalance_perturb.models.last_layer import LastLayer
from imbalance_perturb.selection.candidates import Bools, Candidates, make_candidates
from imbalance_perturb.selection.comparison.class_offsets import fit_offsets
from imbalance_perturb.selection.comparison.effective_prior import effective_prior, prior_offsets
from imbalance_perturb.selection.comparison.methods import (
    ADJUST,
    BOTH,
    CONTROLS,
    EFFECTIVE_PRIOR,
    HIDDEN,
    NORMALISE,
    OFFSETS,
    PARAMETERS,
    CachedLogits,
    Candidate,
    ComparisonOptions,
    list_candidates,
)
from imbalance_perturb.selection.cross_validation import Pick, choose_without_each_fold, generator_for_all
from imbalance_perturb.selection.group_folds import split_folds
from imbalance_perturb.selection.rule import check_rule, choose_among
from imbalance_perturb.selection.sweep import PERTURB, Variant, eps_around, run_sweep

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """A method with what was chosen for it; ``held_out`` is (N,) the candidate chosen without each image."""

    candidates: Sequence[Candidate]
    chosen: Candidate
    agreement: tuple[int, int] | None
    held_out: Ints


@dataclass(frozen=True)
class Scored:
    """What is scored: (N,) true classes and each method's predictions, and the images that failed, with reasons.

    ``warnings``: what the images as a whole give to think about. ``groups``: of the images, where these are not
    independent.
    """

    labels: Ints
    preds: Mapping[str, Ints]
    failed: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    groups: Groups | None = None


@dataclass(frozen=True)
class ComparisonRun:
    """What all steps of one comparison share."""

    pipeline: Pipeline
    options: ComparisonOptions
    progress: Progress
    last_layer: LastLayer | str

    @property
    def methods(self) -> list[str]:
        """Those that can be used."""
        return [method for method in self.options.methods if self.why_not(method) is None]

    def why_not(self, method: str) -> str | None:
        """Why this network cannot have a method, if it cannot."""
        needed = {NORMALISE: self.last_layer, HIDDEN: self.pipeline.hidden}.get(method)
        return needed if isinstance(needed, str) else None

    def steps(self, method: str) -> tuple[float, ...]:
        """The steps to try for a method, in units of where it takes them."""
        hidden = self.pipeline.hidden
        if method != HIDDEN or isinstance(hidden, str):
            return self.options.steps
        return (0.0, *eps_around(hidden.strength))

    def cache(self, images: ImageList, variants: Sequence[Variant]) -> CachedLogits:
        """All that the methods need of the images, from one sweep over them."""
        sweep = run_sweep(self.pipeline, images, list(dict.fromkeys(variants)), progress=self.progress)
        if not sweep.names:
            raise LabelsError(f"{images.root}: none of the images can be used (first: {first_error(sweep.errors)})")
        return CachedLogits(sweep, self._loss_spec, self.pipeline.counts, self.last_layer)

    def grid(self) -> list[Variant]:
        """Every step that a choice may fall on."""
        wanted = [] if HIDDEN not in self.methods else [HIDDEN]
        if any(method in (PERTURB, BOTH, *CONTROLS) for method in self.options.methods):
            wanted = [PERTURB, *wanted]
        return [self._variant(eps, method) for method in wanted for eps in self.steps(method) if eps > 0]

    def tune(self, cached: CachedLogits, labels: Ints) -> dict[str, Tuned]:
        """Choose parameters for all methods that have their own."""
        own = dict.fromkeys(method for method in self.methods if method not in CONTROLS)
        if len(own) < len(self.methods):
            own[PERTURB] = None  # the controls need what is chosen for it, whether it is compared or not
        return {method: self._tune_one(method, cached, labels) for method in own}

    def _tune_one(self, method: str, cached: CachedLogits, labels: Ints) -> Tuned:
        if method == OFFSETS:
            return self._fit_offsets(cached, labels)
        if method == EFFECTIVE_PRIOR:
            return self._fit_effective_prior(cached, labels)
        candidates = list_candidates(method, self.steps(method), self.options.tau_grid)
        if len(candidates) == 1:
            return Tuned(candidates, candidates[0], None, np.zeros(len(labels), dtype=np.int64))
        rule, pick = self.options.rule, self._picker(method, candidates, cached, labels)
        chosen = pick(np.ones(len(labels), dtype=bool), generator_for_all(rule))
        held_out = choose_without_each_fold(labels, rule, pick, chosen, cached.groups)
        return Tuned(candidates, candidates[chosen], held_out.agreement, held_out.held_out_candidates[0])

    def _fit_offsets(self, cached: CachedLogits, labels: Ints) -> Tuned:
        """Offsets are fitted, not chosen: to all images, and again without each fold."""
        logits, groups, classes = cached.sweep.base.numpy(), cached.groups, len(self.pipeline.counts)
        folds, parts = self._parts(cached, labels)
        candidates = [
            Candidate(
                offsets=fit_offsets(
                    logits[part], labels[part], classes, groups=None if groups is None else groups[part]
                )
            )
            for part in parts
        ]
        return Tuned(candidates, candidates[0], None, 1 + folds)

    def _fit_effective_prior(self, cached: CachedLogits, labels: Ints) -> Tuned:
        """The prior is computed, and its tau chosen, on all images, and again without each fold."""
        logits, taus = cached.sweep.base.numpy(), self.options.tau_grid
        folds, parts = self._parts(cached, labels)
        candidates, rule = [], self.options.rule
        for part in parts:
            prior = effective_prior(logits[part], labels[part], self.pipeline.counts)
            tried = [Candidate(tau=tau, offsets=prior_offsets(prior, tau)) for tau in taus]
            pick = self._picker(EFFECTIVE_PRIOR, tried, cached, labels)
            candidates.append(tried[pick(part, generator_for_all(rule)) if len(tried) > 1 else 0])
        chosen, *others = candidates
        agreement = (sum(other.tau == chosen.tau for other in others), rule.folds) if len(taus) > 1 else None
        return Tuned(candidates, chosen, agreement, 1 + folds)

    def _parts(self, cached: CachedLogits, labels: Ints) -> tuple[Ints, list[Bools]]:
        """(N,) the fold of each image, and (N,) masks: all images, and those without each fold."""
        rule = self.options.rule
        folds = split_folds(labels, cached.groups, rule.folds, np.random.default_rng(rule.seed))
        return folds, [np.ones(len(labels), dtype=bool), *(folds != fold for fold in range(rule.folds))]

    def _picker(self, method: str, candidates: Sequence[Candidate], cached: CachedLogits, labels: Ints) -> Pick:
        """How a choice among the candidates of a method is made on some of the images."""
        rule = self.options.rule
        if method == BOTH:
            return self._pick_both(cached, labels)
        if "eps" not in PARAMETERS[method]:
            rule = replace(rule, significance=None)  # arithmetic on logits costs nothing: the best is good enough
        found = self._candidates(method, candidates, cached, labels)
        return lambda images, random: choose_among(found.subset(images), rule, random).chosen

    def _pick_both(self, cached: CachedLogits, labels: Ints) -> Pick:
        """First tau, as for logit adjustment alone; then eps, which must add to what that gives."""
        taus, steps = self.options.tau_grid, self.options.steps
        by_tau = self._candidates(ADJUST, [Candidate(tau=tau) for tau in taus], cached, labels)

        @functools.cache
        def by_eps(tau: float) -> Candidates:
            return self._candidates(BOTH, [Candidate(eps, tau) for eps in steps], cached, labels)

        def pick(images: Bools, random: np.random.Generator) -> int:
            rule = replace(self.options.rule, significance=None)
            tau = choose_among(by_tau.subset(images), rule, random).chosen
            eps = choose_among(by_eps(taus[tau]).subset(images), self.options.rule, random).chosen
            return eps * len(taus) + tau

        return pick

    def _candidates(
        self, method: str, candidates: Sequence[Candidate], cached: CachedLogits, labels: Ints
    ) -> Candidates:
        found = make_candidates(
            labels,
            cached.predict(method, candidates),
            [candidate.eps if method == BOTH else candidate.eps + candidate.tau for candidate in candidates],
            num_classes=len(self.pipeline.counts),
            smallest_class=self.pipeline.counts.smallest,
            logits=[cached.correct(method, candidate).numpy() for candidate in candidates],
            groups=cached.groups,
        )
        check_rule(found, self.options.rule)  # of the images that could be used
        return found

    def score_held_out(self, val: LabelledImages, cached: CachedLogits, tuned: Mapping[str, Tuned]) -> Scored:
        """Predict each validation image with what was chosen without it."""
        names, images = cached.sweep.names, np.arange(len(cached.sweep.names))
        groups = groups_of(val, names)
        preds = {
            method: cached.predict(method, tuned[method].candidates)[images, tuned[method].held_out]
            for method in self.methods
            if method not in CONTROLS
        }
        controls = [method for method in self.methods if method in CONTROLS]
        if not controls:
            return Scored(val.select_labels(names), preds, cached.sweep.errors, groups=groups)
        steps = np.array([candidate.eps for candidate in tuned[PERTURB].candidates])[tuned[PERTURB].held_out]
        used = np.unique(steps)
        variants = [self._variant(eps, method) for method in controls for eps in used.tolist() if eps > 0]
        moved = self.cache(val.images, variants) if variants else cached
        # An image that fails under a control alone is in no figure, or methods would be scored on different images.
        place = {name: row for row, name in enumerate(moved.sweep.names)}
        kept = np.array([row for row, name in enumerate(names) if name in place], dtype=np.int64)
        rows = np.array([place[names[row]] for row in kept], dtype=np.int64)
        preds = {method: found[kept] for method, found in preds.items()}
        for method in controls:
            columns = moved.predict(method, [Candidate(eps) for eps in used.tolist()])
            preds[method] = columns[rows, np.searchsorted(used, steps[kept])]
        errors = {**cached.sweep.errors, **moved.sweep.errors}
        groups = None if groups is None else groups.subset(kept)
        return Scored(val.select_labels(names)[kept], preds, errors, groups=groups)

    def score_test(self, images: LabelledImages, tuned: Mapping[str, Tuned]) -> Scored:
        """Predict the test images with what was chosen on all validation images."""
        chosen = {method: self.chosen_candidate(method, tuned) for method in self.methods}
        moving = [(method, candidate.eps) for method, candidate in chosen.items() if candidate.eps > 0]
        variants = [self._variant(eps, method) for method, eps in moving]
        cached = self.cache(images.images, variants)
        preds = {method: cached.predict(method, [candidate])[:, 0] for method, candidate in chosen.items()}
        sweep, groups = cached.sweep, groups_of(images, cached.sweep.names)
        return Scored(images.select_labels(sweep.names), preds, sweep.errors, sweep.warnings, groups)

    def chosen_candidate(self, method: str, tuned: Mapping[str, Tuned]) -> Candidate:
        """The parameters of a method; a control has those of `perturb`."""
        return tuned[PERTURB if method in CONTROLS else method].chosen

    @property
    def _loss_spec(self) -> LossSpec:
        debias = self.pipeline.settings.debias
        return LossSpec(debias.loss, debias.temperature)

    def _variant(self, eps: float, method: str) -> Variant:
        return Variant(self._loss_spec, eps, method if method in CONTROLS else PERTURB, method == HIDDEN)


def first_error(errors: Mapping[str, str]) -> str:
    """The first image that failed, with its reason, for a message."""
    return next((f"{name}: {error}" for name, error in errors.items()), "none")

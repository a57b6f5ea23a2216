"""Tune eps: try many on labelled images that the model has not seen, and choose one without being fooled by noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.config.settings import LOSSES, DebiasSettings, Settings
from imbalance_perturb.data.labels import LabelledImages, find_labelled_images
from imbalance_perturb.errors import ImageFolderError, SettingsError, first_few
from imbalance_perturb.evaluation.groups import Groups, groups_of
from imbalance_perturb.evaluation.results import Interval
from imbalance_perturb.inference.model_loading import load_counts
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.inference.progress import LoadedPipeline, Progress, ProgressLike, as_progress
from imbalance_perturb.inference.provenance import describe_source
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.perturbation import LossSpec
from imbalance_perturb.predictions.making import StepStrength
from imbalance_perturb.selection.candidates import make_candidates
from imbalance_perturb.selection.cross_validation import Figures, Selection, select_by_cross_validation
from imbalance_perturb.selection.group_folds import note_groups
from imbalance_perturb.selection.rule import SelectionRule, check_balanced, check_rule
from imbalance_perturb.selection.sweep import Variant, eps_around, run_sweep
from imbalance_perturb.selection.tuning.held_out import held_out_intervals
from imbalance_perturb.selection.tuning.results import FIGURES, HeldOutFigure, TriedCorrection, Tuning
from imbalance_perturb.selection.tuning.summary import note, summarise

#: Of the intervals.
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What is tried and how it is chosen.

    Args:
        eps_grid: steps to try; 0 is added. ``None``: those of :data:`STRENGTH_GRID` on this network.
        temperatures: T to try; empty: that of the settings.
        losses: losses to try; empty: that of the settings.
        rule: how to choose.
        group: column of the labels' table that says which images are alike, as those of one lesion: such a group stays
            in one fold, and intervals and tests are by group. ``None``: images are taken as independent.

    Raises:
        SettingsError: if a value is out of range.
    """

    eps_grid: tuple[float, ...] | None = None
    temperatures: tuple[float, ...] = ()
    losses: tuple[str, ...] = ()
    rule: SelectionRule = field(default_factory=SelectionRule)
    group: str | None = None

    def __post_init__(self) -> None:
        take_numbers(self)
        for eps in self.eps_grid or ():
            if not (math.isfinite(eps) and eps >= 0):
                raise SettingsError(f"eps-grid has {eps:g}; expected numbers, at least 0")
        if self.eps_grid is not None and not any(self.eps_grid):
            raise SettingsError("eps-grid has no value above 0, so there is nothing to choose from; 0 is always tried")
        for temperature in self.temperatures:
            if not (math.isfinite(temperature) and temperature > 0):
                raise SettingsError(f"temperatures has {temperature:g}; expected numbers above 0")
        for loss in self.losses:
            if loss not in LOSSES:
                raise SettingsError(f"losses has {loss!r}; expected some of {', '.join(LOSSES)}")

    def variants(self, debias: DebiasSettings, strength: StepStrength | None = None) -> list[Variant]:
        """The corrections to try, eps above 0, mildest first within each loss and temperature.

        The settings' own loss and temperature come first, where they are among them: of equals the first is chosen.
        """
        loss_specs = [
            LossSpec(loss, temperature)
            for loss in dict.fromkeys(self.losses or (debias.loss,))
            for temperature in dict.fromkeys(self.temperatures or (debias.temperature,))
        ]
        loss_specs.sort(key=lambda loss_spec: loss_spec != LossSpec(debias.loss, debias.temperature))
        grid = eps_around(strength) if self.eps_grid is None else self.eps_grid
        return [Variant(loss_spec, eps) for loss_spec in loss_specs for eps in sorted({*grid} - {0})]


def tuned_debias(tuning: Tuning, debias: DebiasSettings) -> DebiasSettings:
    """The settings with the chosen eps, and its loss and temperature; with eps 0 those stay as they are."""
    choice, debias = tuning.choice, replace(tunable(debias), perturb_at=tuning.perturb_at)
    if choice.loss is None or choice.temperature is None:
        return replace(debias, eps=0.0)
    return replace(debias, eps=choice.eps, loss=choice.loss, temperature=choice.temperature)


def check_tuning(labelled: LabelledImages, settings: Settings, counts: ClassCounts, rule: SelectionRule) -> None:
    """Refuse labels and settings that cannot decide now, not after the model has run.

    Raises:
        LabelsError: if these labels cannot decide: one class only, fewer images than folds, no image of the
            class that ``scr`` is about.
        SettingsError: for more than one step, or a prior.
    """
    check_balanced(settings.debias)
    if settings.debias.steps != 1:
        raise SettingsError(
            f"steps is {settings.debias.steps}; all eps are tried with one gradient, so tuning needs steps = 1"
        )
    labels, groups = labelled.select_labels(labelled.images.names), groups_of(labelled, labelled.images.names)
    candidates = make_candidates(
        labels,
        labels[:, None],
        [0.0],
        num_classes=len(counts),
        smallest_class=counts.smallest,
        groups=None if groups is None else groups.ids,
        costs=rule.costs,
    )
    check_rule(candidates, rule)


def tune(
    settings: Settings | Pipeline,
    images: str | Path | LabelledImages,
    labels: str | Path | None = None,
    options: TuningOptions | None = None,
    progress: ProgressLike = None,
) -> Tuning:
    """Try every eps on every image (2 + K passes for K values of eps, one loss and one temperature) and choose one.

    Args:
        settings: of the model and the correction, or a pipeline that is loaded already (with ``exact=True``, and
            ``measure_step=True`` where ``options`` has no grid); its own eps is not used; loss and temperature where
            ``options`` has none.
        images: images that the model was not trained on: a folder or CSV, or what :func:`find_labelled_images` gave.
        labels: CSV with ``image,label``, or a folder of class folders; by default ``images`` itself.
        options: what to try and how to choose.
        progress: told what is found and loaded and how far it is; or called with the number of images just done.

    Raises:
        SettingsError: for more than one step, or labels beside images that have theirs.
        InterruptedRunError: if ``progress`` said to stop.
        LabelsError: as for :func:`check_tuning`, of the images that could be used.
        ImageFolderError: if no image could be used.
    """
    options, progress = options or TuningOptions(), as_progress(progress)
    pipeline, labelled = _prepare(settings, images, labels, options, progress)
    counts = pipeline.counts
    variants = options.variants(pipeline.settings.debias, pipeline.strength)
    sweep = run_sweep(pipeline, labelled.images, variants, progress=progress)
    if not sweep.names:
        first = first_few([f"{name}: {error}" for name, error in sweep.errors.items()], 1)
        raise ImageFolderError(f"{labelled.images.root}: none of the images could be used (first: {first})")
    truth, groups = labelled.select_labels(sweep.names), groups_of(labelled, sweep.names)
    logits = [pipeline.debiased.adjust(each) for each in (sweep.base, *(sweep.logits[v] for v in variants))]
    preds = np.stack([each.argmax(dim=1).numpy() for each in logits], axis=1)
    selection = select_by_cross_validation(
        truth,
        preds,
        [0.0, *(variant.eps for variant in variants)],
        num_classes=len(counts),
        smallest_class=counts.smallest,
        logits=[each.numpy() for each in logits],
        rule=options.rule,
        groups=None if groups is None else groups.ids,
    )
    splits = np.bincount(selection.held_out.fold_choices.ravel(), minlength=1 + len(variants))
    tuning = Tuning(
        tried=_list_tried(variants, preds, selection),
        chosen=selection.chosen,
        splits=tuple(splits.tolist()),
        held_out=_score_held_out(truth, preds, selection, counts, groups),
        rule=options.rule,
        classes=counts.names,
        counts=counts.counts,
        support=tuple(np.bincount(truth, minlength=len(counts)).tolist()),
        smallest_class=counts.names[counts.smallest],
        n=len(truth),
        failed=sweep.errors,
        unused_labels=labelled.unused_labels,
        passes=sweep.passes,
        seconds=sweep.seconds,
        confidence_level=CONFIDENCE_LEVEL,
        group=None if groups is None else groups.describe(),
        perturb_at=pipeline.settings.debias.perturb_at,
        source=_source(pipeline, labelled),
    )
    few_groups = note_groups(labelled, None, options.rule.folds, counts.names)
    return replace(
        tuning, summary=tuple(summarise(tuning)), notes=(*labelled.notes, *sweep.warnings, *note(tuning), *few_groups)
    )


def tunable(debias: DebiasSettings) -> DebiasSettings:
    """The settings with a method that moves the input: what is tuned is how far."""
    return debias if debias.moves_input else replace(debias, method="perturb", tau=0.0)


def _prepare(
    settings: Settings | Pipeline,
    images: str | Path | LabelledImages,
    labels: str | Path | None,
    options: TuningOptions,
    progress: Progress,
) -> tuple[Pipeline, LabelledImages]:
    """The model and its images with their labels; what cannot be decided is refused before a model is loaded."""
    if isinstance(images, LabelledImages) and labels is not None:
        raise SettingsError(f"labels is {str(labels)!r}, but the images have theirs already; leave it out")
    counts_file = None
    if isinstance(settings, Settings):
        counts_file = load_counts(settings.model)
        asked, counts = settings, counts_file.counts
    else:
        asked, counts = settings.settings, settings.counts
    labelled = (
        images
        if isinstance(images, LabelledImages)
        else find_labelled_images(images, labels, counts.names, group=options.group)
    )
    if options.group != labelled.group:
        raise SettingsError(
            f"group is {options.group!r}, but the images were found with group {labelled.group!r}; say it to"
            " find_labelled_images as well"
        )
    progress.found(labelled.images)
    check_tuning(labelled, asked, counts, options.rule)
    if not isinstance(settings, Settings):
        return settings, labelled
    settings = replace(settings, debias=tunable(settings.debias))
    pipeline = load_pipeline(
        settings, labelled.images, counts_file=counts_file, exact=True, measure_step=options.eps_grid is None
    )
    progress.loaded(LoadedPipeline.of(pipeline))
    return pipeline, labelled


def _list_tried(
    variants: Sequence[Variant], preds: NDArray[np.int64], selection: Selection
) -> tuple[TriedCorrection, ...]:
    choice = selection.choice
    tried: list[tuple[float, float | None, str | None]] = [(0.0, None, None)]
    tried += [(variant.eps, variant.loss_spec.temperature, variant.loss_spec.loss) for variant in variants]
    return tuple(
        TriedCorrection(
            eps=eps,
            temperature=temperature,
            loss=loss,
            figures=selection.figures[k],
            brier=float(choice.briers[k]),
            changed=float((preds[:, k] != preds[:, 0]).mean()),
            gain=float(choice.gains[k]),
            gain_error=float(choice.gain_errors[k]) if np.isfinite(choice.gain_errors[k]) else None,
            p_value=float(choice.p_values[k]),
            allowed=bool(choice.allowed[k]),
        )
        for k, (eps, temperature, loss) in enumerate(tried)
    )


def _score_held_out(
    labels: NDArray[np.int64],
    preds: NDArray[np.int64],
    selection: Selection,
    counts: ClassCounts,
    groups: Groups | None,
) -> dict[str, HeldOutFigure]:
    """Figures of the whole procedure, from images that had no part in the choice that is scored on them."""
    base, tuned = selection.base, selection.selected
    chosen = preds[np.arange(len(labels)), selection.held_out.held_out_candidates]
    before, after = preds[:, 0] == labels, chosen == labels
    # How much of an image is lost and gained, on average over the repeats.
    lost, gained = (moved.mean(axis=0) for moved in (before & ~after, after & ~before))
    intervals = held_out_intervals(labels, lost, gained, counts, CONFIDENCE_LEVEL, selection.rule.seed, groups)
    names = FIGURES if selection.rule.costs is None else (*FIGURES, "cost")
    return {name: _compare(base, tuned, name, intervals.get(name)) for name in names}


def _compare(base: Figures, tuned: Figures, name: str, interval: Interval | None) -> HeldOutFigure:
    before, after = getattr(base, name), getattr(tuned, name)
    if name == "worst_class_recall":
        after = None  # the minimum over parts that were predicted with different eps is no figure of any of them
    return HeldOutFigure(before, after, None if before is None or after is None else after - before, interval)


def _source(pipeline: Pipeline, labelled: LabelledImages) -> dict[str, Any]:
    """On what the figures rest: files, settings, versions."""
    return {
        "images": str(labelled.images.root),
        "settings": {
            "debias": {k: v for k, v in asdict(pipeline.settings.debias).items() if k not in ("eps", "offsets")}
        },
        **describe_source(pipeline),
    }

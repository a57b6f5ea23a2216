"""Compare the method with other post-hoc corrections on the same images: would something simpler serve as well?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imbalance_perturb.config.settings import INPUT, Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.labels import LabelledImages, find_labelled_images
from imbalance_perturb.errors import LabelsError, first_few
from imbalance_perturb.evaluation.groups import groups_of
from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions
from imbalance_perturb.inference.input_stream import iter_inputs
from imbalance_perturb.inference.model_loading import load_counts
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.inference.progress import LoadedPipeline, ProgressLike, as_progress
from imbalance_perturb.inference.provenance import describe_source
from imbalance_perturb.models.last_layer import LastLayer, find_last_layer
from imbalance_perturb.selection.candidates import make_candidates
from imbalance_perturb.selection.comparison.held_out_predictions import (
    ComparisonRun,
    Scored,
    Tuned,
    first_error,
)
from imbalance_perturb.selection.comparison.methods import (
    BOTH,
    CONTROLS,
    HIDDEN,
    NORMALISE,
    PARAMETERS,
    CachedLogits,
    ComparisonOptions,
    count_passes,
)
from imbalance_perturb.selection.comparison.results import Comparison, MethodResult
from imbalance_perturb.selection.comparison.scoring import score_lineup
from imbalance_perturb.selection.group_folds import note_groups
from imbalance_perturb.selection.rule import SelectionRule, check_balanced, check_rule
from imbalance_perturb.selection.sweep import PERTURB, Sweep, eps_around


@dataclass(frozen=True)
class ComparisonFiles:
    """Where the images are: ``val`` to choose on, ``test`` to score on; labels as for :func:`find_labelled_images`."""

    val: str | Path
    labels: str | Path | None = None
    test: str | Path | None = None
    test_labels: str | Path | None = None


def compare_methods(
    settings: Settings,
    files: ComparisonFiles,
    options: ComparisonOptions | None = None,
    progress: ProgressLike = None,
) -> Comparison:
    """Choose each method's parameters on the validation images, and score all methods on the same other images.

    With test images every method is scored on those, with what was chosen on all validation images. Without, the
    validation images are split into folds, and each is predicted with what was chosen without its fold. The
    controls move the input by the eps that was chosen for `perturb`: the same step, another direction.

    Args:
        settings: model, counts, preprocessing, and of the correction the loss, T, target, ``eps_space`` and ``clip``.
        files: images and labels.
        options: methods, grids and the rule of choice.
        progress: told what is found and loaded, and for each sweep over images how far it is; or called with the number
            of images just done.

    Raises:
        InterruptedRunError: if ``progress`` said to stop.
        ImbperturbError: the first thing that is wrong, before a model runs where that can be told before.
    """
    options, progress = options or ComparisonOptions(), as_progress(progress)
    check_balanced(settings.debias)
    counts_file = load_counts(settings.model)
    counts = counts_file.counts
    val = find_labelled_images(files.val, files.labels, counts.names, group=options.group)
    _check_labels(val, files, len(counts), counts.smallest, options.rule)
    test = None
    if files.test is not None:
        test = find_labelled_images(files.test, files.test_labels, counts.names, group=options.group)
    if test is not None:
        _check_disjoint(val.images, test.images, files)
    for labelled in (val, test):
        if labelled is not None:
            progress.found(labelled.images)
    at_input = [method for method in options.methods if method != HIDDEN]
    measured = options.eps_grid is None and any("eps" in PARAMETERS[method] for method in at_input)
    # The recipe may have the method that an earlier comparison advised; here the step is what is varied.
    asked, debias = settings.debias.perturb_at, settings.debias
    settings = replace(settings, debias=replace(debias, method=PERTURB, tau=None, perturb_at=INPUT))
    hidden_at = None if HIDDEN not in options.methods else "auto" if asked == INPUT else asked
    pipeline = load_pipeline(
        settings, val.images, counts_file=counts_file, exact=True, measure_step=measured, hidden_at=hidden_at
    )
    progress.loaded(LoadedPipeline.of(pipeline))
    if options.eps_grid is None:
        options = replace(options, eps_grid=(0.0, *eps_around(pipeline.strength)) if measured else (0.0,))
    run = ComparisonRun(pipeline, options, progress, _last_layer(pipeline, val.images, options))
    cached = run.cache(val.images, run.grid())
    groups = groups_of(val, cached.sweep.names)
    cached = replace(cached, groups=None if groups is None else groups.ids)
    tuned = run.tune(cached, val.select_labels(cached.sweep.names))
    scored = run.score_held_out(val, cached, tuned) if test is None else run.score_test(test, tuned)
    return _summarise(run, cached, tuned, scored, val, test, files)


def _check_labels(
    val: LabelledImages, files: ComparisonFiles, classes: int, smallest: int, rule: SelectionRule
) -> None:
    """Refuse labels that cannot decide now, not after the model has run."""
    labels, groups = val.select_labels(val.images.names), groups_of(val, val.images.names)
    ids = None if groups is None else groups.ids
    try:
        candidates = make_candidates(
            labels, labels[:, None], [0.0], num_classes=classes, smallest_class=smallest, groups=ids
        )
        check_rule(candidates, rule)
    except LabelsError as error:
        raise LabelsError(f"{files.val}: {error}") from None


def _check_disjoint(val: ImageList, test: ImageList, files: ComparisonFiles) -> None:
    known = {(val.root / name).resolve() for name in val.names}
    both = [name for name in test.names if (test.root / name).resolve() in known]
    if both:
        raise LabelsError(
            f"{files.test}: {len(both):,} of its images are in {files.val} too (first: {first_few(both)}); parameters"
            " chosen on images that are scored flatter every method: take them out of one of the two"
        )


def _last_layer(pipeline: Pipeline, images: ImageList, options: ComparisonOptions) -> LastLayer | str:
    if NORMALISE not in options.methods:
        return "not asked for"
    execution = replace(pipeline.execution, batch_size=2, workers=min(1, pipeline.execution.workers))
    for batch in iter_inputs(images, pipeline.preprocessing, execution):
        for group in batch.groups:
            return find_last_layer(pipeline.model, group.x)
    return "no image can be used"


def _summarise(
    run: ComparisonRun,
    cached: CachedLogits,
    tuned: Mapping[str, Tuned],
    scored: Scored,
    val: LabelledImages,
    test: LabelledImages | None,
    files: ComparisonFiles,
) -> Comparison:
    options, counts = run.options, run.pipeline.counts
    rates = _Rates.from_sweep(cached.sweep)
    methods = [_describe_method(method, run, tuned, rates) for method in options.methods]
    results, advice, class_notes = score_lineup(
        methods,
        scored.labels,
        scored.preds,
        counts,
        objective=options.rule.objective,
        options=IntervalOptions(level=options.level, seed=options.rule.seed),
        groups=scored.groups,
    )
    return Comparison(
        classes=counts.names,
        counts=counts.counts,
        smallest_class=counts.names[counts.smallest],
        objective=options.rule.objective,
        scored_on="validation" if test is None else "test",
        tuned_on=len(cached.sweep.names),
        n=len(scored.labels),
        results=results,
        advice=advice,
        failed=tuple(sorted({*cached.sweep.errors, *scored.failed})),
        confidence_level=options.level,
        notes=(
            *_warnings(cached.sweep, scored, files),
            *_notes(results, {**cached.sweep.errors, **scored.failed}, val, test, files, run),
            *class_notes,
            *note_groups(val, test, options.rule.folds, counts.names),
        ),
        group=None if scored.groups is None else scored.groups.describe(),
        source=_source(run, files),
    )


def _warnings(sweep: Sweep, scored: Scored, files: ComparisonFiles) -> list[str]:
    return [f"{files.val}: {text}" for text in sweep.warnings] + [f"{files.test}: {text}" for text in scored.warnings]


def _describe_method(method: str, run: ComparisonRun, tuned: Mapping[str, Tuned], rates: _Rates) -> MethodResult:
    unavailable, hidden = run.why_not(method), run.pipeline.hidden
    if unavailable is not None:
        return MethodResult(method, unavailable=unavailable)
    candidate = run.chosen_candidate(method, tuned)
    if method == BOTH and not candidate.eps and len(run.options.steps) > 1:
        return MethodResult(method, unavailable=f"no eps adds to la with tau {candidate.tau:g}")
    behind, layer = (1.0, None) if isinstance(hidden, str) else (hidden.behind, hidden.layer)
    passes = count_passes(method, candidate, behind)
    return MethodResult(
        method,
        layer=layer if method == HIDDEN else None,
        control=method in CONTROLS,
        parameters={name: getattr(candidate, name) for name in PARAMETERS[method]},
        agreement=None if method in CONTROLS else tuned[method].agreement,
        passes=passes,
        images_per_second=rates.one_pass if passes == 1 else rates.hidden if method == HIDDEN else rates.perturbed,
    )


def _notes(
    results: Sequence[MethodResult],
    failed: Mapping[str, str],
    val: LabelledImages,
    test: LabelledImages | None,
    files: ComparisonFiles,
    run: ComparisonRun,
) -> list[str]:
    notes, options = [], run.options
    if failed:
        notes.append(f"{len(failed):,} images could not be used and are in no figure (first: {first_error(failed)})")
    for labelled, path in ((val, files.val), (test, files.test)):
        if labelled is None:
            continue
        notes += [f"{path}: {line}" for line in labelled.images.describe_left_aside()]
        notes += labelled.notes
        if labelled.unused_labels:
            notes.append(f"{labelled.unused_labels:,} labels are of images that {path} does not have")
    notes += [f"{result.method} is not available: {result.unavailable}" for result in results if result.unavailable]
    for result in results:
        grids = {"eps": run.steps(result.method), "tau": options.tau_grid}
        ends = [
            f"{k} {v:g}"
            for k, v in result.parameters.items()
            if not isinstance(v, tuple) and len(grids[k]) > 1 and v == max(grids[k])
        ]
        if ends and not result.control:
            notes.append(f"{result.method}: {', '.join(ends)} is the largest value tried; a larger one may do better")
        same, splits = result.agreement or (1, 1)
        if 2 * same < splits:
            notes.append(f"{result.method}: the choice is unsteady, {result.setting} in {same} of {splits} splits only")
    if any(result.control and result.parameters.get("eps") == 0 for result in results):
        notes.append("eps 0 was chosen for perturb, so there is no step for the controls to take: they are none")
    return notes


def _source(run: ComparisonRun, files: ComparisonFiles) -> dict[str, Any]:
    options, source = run.options, describe_source(run.pipeline)
    debias = {
        k: v
        for k, v in asdict(run.pipeline.settings.debias).items()
        if k not in ("method", "eps", "tau", "offsets", "steps")
    }
    return {
        "files": {name: str(path) for name, path in asdict(files).items() if path is not None},
        "counts_file": source.pop("counts"),  # 'counts' are the classes' own numbers there
        "settings": {
            "eps_grid": list(options.steps),
            "tau_grid": list(options.tau_grid),
            "rule": asdict(options.rule),
            "debias": debias,
        },
        "last_layer": None if isinstance(run.last_layer, str) else run.last_layer.name,
        **source,
    }


@dataclass(frozen=True)
class _Rates:
    """Images per second that the model alone takes, measured in a sweep.

    Of one pass, of a perturbed prediction, and of one at the hidden layer (``None`` where there was none).
    """

    one_pass: float
    perturbed: float
    hidden: float | None

    @classmethod
    def from_sweep(cls, sweep: Sweep) -> _Rates:
        images = len(sweep.names)
        gradient = sweep.seconds["gradient pass"] / images
        hidden_steps = sum(variant.hidden for variant in sweep.logits)
        steps = sum(logits is not sweep.base for logits in sweep.logits.values()) - hidden_steps
        # Where no step was tried, the 'gradient pass' was a plain one.
        plain = sweep.seconds["final pass"] / images / steps if steps else gradient
        hidden = None
        if hidden_steps:
            final = sweep.seconds["hidden final pass"] / hidden_steps
            hidden = images / (sweep.seconds["hidden gradient pass"] + final)
        return cls(1 / plain, 1 / (gradient + plain), hidden)

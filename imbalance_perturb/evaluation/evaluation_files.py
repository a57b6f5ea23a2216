"""Evaluate files: join predictions, their run file and labels, or refuse them with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imbalance_perturb.data.labels import check_all_labelled, load_labels
from imbalance_perturb.errors import PredictionsError, first_few
from imbalance_perturb.evaluation.groups import Groups
from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions, evaluate
from imbalance_perturb.evaluation.results import Evaluation
from imbalance_perturb.method.class_files import load_costs, load_shares
from imbalance_perturb.method.counts import ClassCounts, load_class_counts
from imbalance_perturb.predictions.predicted_classes import Predictions, load_predictions
from imbalance_perturb.predictions.run_file import RunFile, check_same_counts, load_run_of, run_path

_PUT_RIGHT = "predict it again; if the change is meant, move {beside} away and give --counts"


def evaluate_files(
    predictions: str | Path,
    labels: str | Path,
    options: IntervalOptions | None = None,
    *,
    counts: str | Path | None = None,
    prevalence: str | Path | None = None,
    costs: str | Path | None = None,
    group: str | None = None,
) -> Evaluation:
    """Evaluate a predictions file against labels.

    Args:
        predictions: ``.csv`` or ``.jsonl`` as ``predict`` writes it; the run file is looked for beside it.
        labels: as for :func:`load_labels`, of all predicted images or a part of them.
        options: confidence level, seed and number of resamples.
        counts: JSON of the training counts; needed only where there is no run file.
        prevalence: JSON of shares of the classes at which PPV, NPV and costs are stated (``parse_shares``).
        costs: JSON of what each prediction costs (``parse_costs``).
        group: the column of the labels that says which images are alike, as those of one lesion or patient: intervals
            and tests are then by its groups. Without, images are taken as independent.

    Raises:
        PredictionsError: if the predictions or their run file cannot be used, do not belong together, or were made
            with other counts.
        LabelsError: if the labels cannot be used or no predicted image has one.
        CountsError: if ``counts`` cannot be used.
        SettingsError: if ``prevalence`` or ``costs`` cannot be used.
    """
    predictions, labels = Path(predictions), Path(labels)
    options = options or IntervalOptions()
    run, class_counts = _find_counts(predictions, counts)
    shares = None if prevalence is None else load_shares(prevalence, class_counts.names)
    prices = None if costs is None else load_costs(costs, class_counts.names)
    found = load_predictions(predictions, class_counts.names)
    loaded = load_labels(labels, class_counts.names, group=group)
    truth, unused, of_group = loaded.match((*found.images, *found.failed))
    scored = found.select([image in truth for image in found.images])
    if not scored.images:
        check_all_labelled(loaded, truth, found.images, "predicted images", "label them, or predict what is labelled")
    evaluation = evaluate(
        [truth[image] for image in scored.images],
        scored.base_preds,
        scored.preds,
        class_counts,
        base_probs=scored.base_probs,
        probs=scored.probs,
        prevalence=shares,
        costs=prices,
        options=options,
        groups=None if group is None else Groups.from_names(group, [of_group[image] for image in scored.images]),
    )
    unlabelled = [image for image in found.images if image not in truth]
    return replace(
        evaluation,
        failed=found.failed,
        unlabelled=len(unlabelled),
        unused_labels=unused,
        notes=(
            *class_counts.notes,
            *loaded.notes,
            *_file_notes(found, unlabelled, unused, predictions),
            *evaluation.notes,
        ),
        source={
            name: str(path)
            for name, path in (
                ("predictions", predictions),
                ("labels", labels),
                ("prevalence_file", prevalence),
                ("costs_file", costs),
            )
            if path is not None
        },
        run={} if run is None else run.to_dict(),
    )


def _find_counts(predictions: Path, given: str | Path | None) -> tuple[RunFile | None, ClassCounts]:
    if not predictions.is_file():
        raise PredictionsError(f"{predictions}: no such file; imbperturb predict makes it, or name another")
    beside = run_path(predictions)
    run = load_run_of(predictions, _PUT_RIGHT.format(beside=beside)) if beside.is_file() else None
    if given is None:
        if run is None:
            raise PredictionsError(
                f"{beside}: no such file, so the training counts are not known; give them with --counts counts.json"
            )
        return run, run.class_counts
    counts = load_class_counts(given)
    if run is not None:
        check_same_counts(run.class_counts, beside, counts, given)
        return run, run.class_counts  # with the names that a bare list lacks
    return run, counts


def _file_notes(found: Predictions, unlabelled: Sequence[str], unused: int, predictions: Path) -> list[str]:
    notes = []
    if unlabelled:
        notes.append(
            f"{len(unlabelled):,} of {len(found.images):,} predicted images have no label and are in no figure (first:"
            f" {first_few(unlabelled)})"
        )
    if found.failed:
        notes.append(
            f"{len(found.failed):,} images have an error instead of a prediction and are in no figure"
            f" (first: {first_few(found.failed)})"
        )
    if unused:
        notes.append(f"{unused:,} labels are of images that {predictions} does not have; they are not used")
    return notes

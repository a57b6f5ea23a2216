"""Predict a folder: write rows as they come, resume a run that was cut off, and say what made them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.errors import ImbperturbError, InterruptedRunError, TooManyFailuresError
from imbalance_perturb.files.writing import STDOUT, write_json
from imbalance_perturb.inference.auto_eps import SAMPLED, measure_strength
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.failure_limit import FailureLimit
from imbalance_perturb.inference.pipeline import Pipeline, make_predictor
from imbalance_perturb.inference.progress import Progress
from imbalance_perturb.inference.provenance import describe_making, describe_run
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.frames import pandas_notes
from imbalance_perturb.predictions.journal import Journal, open_journal
from imbalance_perturb.predictions.progress_file import rows_path
from imbalance_perturb.predictions.resuming import find_finished, read_state
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_file import RunFile, run_path
from imbalance_perturb.predictions.run_state import RunState, Standing
from imbalance_perturb.predictions.shards import Shard
from imbalance_perturb.predictions.writing import open_rows

#: One image in so many tells how strong the eps of a finished run was: that may take no time to speak of.
_TOLD_OF = 50

#: From here on the step of the log target is along the log prior (docs/theory.md; the paper's Fig. 2).
LARGE_TEMPERATURE = 100


@dataclass(frozen=True)
class RunSummary:
    """The result of a run: numbers of images, seconds of wall clock, and the files written (``None``: stdout).

    ``agreement`` is of labels with those of the full computation, ``None`` where nothing else was computed. Of the
    images, ``resumed`` had been done by an earlier run that was cut off; its seconds are counted, too.
    ``assumptions``: what the model file does not show and would change predictions. ``warnings``: what the images as a
    whole give to think about. ``strength``: of the step, as a share of the full correction of the median image;
    ``None`` where it was not measured. ``notes``: what to know of the file.
    """

    total: int
    done: int
    failed: int
    changed: int
    seconds: float
    predictions: str | None
    run: str | None
    first_errors: tuple[tuple[str, str], ...]
    agreement: Agreement | None = None
    resumed: int = 0
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    strength: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images per second of wall clock, decoding and writing included."""
        return self.total / self.seconds if self.seconds > 0 else 0.0


def write_predictions(
    pipeline: Pipeline,
    images: ImageList,
    out: str,
    *,
    probabilities: bool,
    bom: bool,
    margin: bool,
    resume: bool | None,
    shard: Shard | None,
    failures: FailureLimit,
    progress: Progress,
) -> RunSummary:
    """Predict all images and write one row for each, then the run file.

    What can be refused before a model is loaded has been, by :func:`predict_folder`.

    Args:
        pipeline: the checked model and its surroundings.
        images: what to predict.
        out: ``.csv``, ``.jsonl`` or ``.parquet`` path, or ``-`` for CSV on stdout (then no run file is written).
        probabilities: whether rows carry the probabilities of all classes.
        bom: whether the CSV begins with a byte-order mark, by which Excel knows it for UTF-8.
        margin: whether rows carry the difference of the two largest corrected probabilities.
        resume: go on with an unfinished run's rows, or start anew; ``None`` starts where there are none.
        shard: which part of all images these are, for the run file.
        failures: how many images may fail.
        progress: told how far it is, and asked whether to stop; rows are kept then.

    Raises:
        ResumeError: if there is an unfinished run that does not fit this one.
        PredictionsError: if what is to be resumed has a run file or progress file that cannot be used.
        TooManyFailuresError: if more images fail than may.
        InterruptedRunError: if ``progress`` said to stop.
        OutputFileError: if the rows cannot be written.
    """
    classes = pipeline.counts.names if probabilities else ()
    layout = RowLayout(classes, pipeline.settings.run.close_calls_only, bom, margin)
    run = _Run(pipeline, images, failures, progress, probabilities)
    if out == STDOUT:
        with open_rows(out, layout) as write, progress.counting(len(images)):
            for rows in run.iter_rows():
                for row in rows:
                    write(row)
        return run.summary(None)
    path = Path(out)
    made_by = describe_making(pipeline, images, layout, path.suffix, shard)
    if resume:
        finished = find_finished(path, made_by)
        if finished is not None:
            return _summary_of(finished, path, pipeline)
    with open_journal(path, layout, made_by.to_dict(), resume=bool(resume)) as (journal, mark):
        if mark is not None:
            run.resume(read_state(path, mark), mark.rows)
        with progress.counting(len(images), journal.count):
            with _naming_rows(journal, path):
                for rows in run.iter_rows():
                    with run.stopwatch.timing("write"):
                        journal.write(rows)
                        journal.commit(run.state().to_dict())
            journal.finish()
            summary = run.summary(path)
            account = describe_run(made_by, path, run.state(), seconds=summary.seconds, agreement=summary.agreement)
            write_json(run_path(path), account.to_dict())
            journal.forget()
    return summary


def tell_strength(pipeline: Pipeline, images: ImageList) -> float | None:
    """How strong the step of a finished run was, as a share of the full correction, from a few of its images.

    ``None`` where the step is not along the log prior, or no image can tell.
    """
    d = pipeline.settings.debias
    along_prior = d.target == "log" and d.target_m is None and d.temperature >= LARGE_TEMPERATURE and d.steps == 1
    if not (pipeline.debiased.active and along_prior):
        return None
    strength = pipeline.strength
    if strength is None:
        few = max(8, min(SAMPLED, len(images) // _TOLD_OF))
        try:
            strength = measure_strength(
                pipeline.model, images, pipeline.counts, d, pipeline.preprocessing, pipeline.execution, few
            )
        except (ImbperturbError, torch.OutOfMemoryError):
            return None  # the rows are written; this line is not worth an error
    assert not isinstance(d.eps, str)
    return d.eps / strength.full_eps


class _Run:
    """One run over the images, from where it stands."""

    def __init__(
        self,
        pipeline: Pipeline,
        images: ImageList,
        failures: FailureLimit,
        progress: Progress,
        probabilities: bool,
    ) -> None:
        self._pipeline, self._images, self._failures = pipeline, images, failures
        self._progress, self._probabilities = progress, probabilities
        self.stopwatch, self.predictor, self.deep = Stopwatch(), make_predictor(pipeline), DeepImages()
        self._standing, self._resumed = Standing(), 0
        self._start = time.perf_counter()

    def iter_rows(self) -> Iterator[list[PredictionRow]]:
        """Rows of the images that are left, a batch at a time; each is counted before it comes."""
        left = replace(self._images, names=self._images.names[self._standing.images :])
        pipeline = self._pipeline
        batches = iter_predictions(
            self.predictor,
            left,
            pipeline.preprocessing,
            pipeline.execution,
            probabilities=self._probabilities,
            stopwatch=self.stopwatch,
            deep=self.deep,
        )
        with applied(pipeline.execution), closing(batches):
            for rows in batches if len(left) else ():
                broken = [row for row in rows if row.error is not None]
                self._failures.check(self._standing.failed, broken)
                self._standing.add(rows, broken)
                yield rows
                self._progress.advance(len(rows))
                self._progress.check_stop(self._standing.images, len(self._images))

    def state(self) -> RunState:
        """All that going on from here needs."""
        return RunState(
            standing=replace(self._standing, earlier_seconds=self._seconds()),
            seconds=self.stopwatch.seconds,
            predictor=self.predictor.state(),
            deep=self.deep,
        )

    def resume(self, state: RunState, rows: int) -> None:
        """Start from where an earlier run stood when it had so many rows."""
        self._standing, self._resumed = state.standing, rows
        self.stopwatch.seconds.update(state.seconds)
        self.predictor.restore(state.predictor)
        self.deep = state.deep

    def summary(self, path: Path | None) -> RunSummary:
        """Sum up the run so far."""
        standing, pipeline = self._standing, self._pipeline
        approximate = pipeline.low is not None or pipeline.execution.close_calls_only
        return RunSummary(
            total=len(self._images),
            done=standing.done,
            failed=standing.failed,
            changed=standing.changed,
            seconds=self._seconds(),
            predictions=None if path is None else str(path),
            run=None if path is None else str(run_path(path)),
            first_errors=tuple(standing.first_errors),
            agreement=self.predictor.summary() if approximate else None,
            resumed=self._resumed,
            assumptions=pipeline.model.info.assumptions,
            warnings=self.deep.warnings,
            notes=pandas_notes(pipeline.counts.names, ".csv" if path is None else path.suffix),
        )

    def _seconds(self) -> float:
        return self._standing.earlier_seconds + time.perf_counter() - self._start


@contextmanager
def _naming_rows(journal: Journal, path: Path) -> Iterator[None]:
    """Say where the rows are and how to go on, when a run ends before its time."""
    try:
        yield
    except InterruptedRunError as error:
        where = (
            f"; their rows are in {rows_path(path)}: the same command with --resume goes on" if journal.count else ""
        )
        raise InterruptedRunError(f"{error}{where}") from None
    except TooManyFailuresError as error:
        raise TooManyFailuresError(
            f"{error}; put that right and go on with --resume (rows so far: {rows_path(path)})"
        ) from None


def _summary_of(run: RunFile, path: Path, pipeline: Pipeline) -> RunSummary:
    """The summary of a run that had ended before, from its run file."""
    images = run.images
    return RunSummary(
        total=images.total,
        done=images.done,
        failed=images.failed,
        changed=images.changed,
        seconds=run.seconds["total"],
        predictions=str(path),
        run=str(run_path(path)),
        first_errors=(),
        resumed=images.total,
        assumptions=pipeline.model.info.assumptions,
        warnings=run.warnings,
        notes=pandas_notes(pipeline.counts.names, path.suffix),
    )

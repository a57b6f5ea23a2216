"""Predict a folder: write rows as they come, resume a run that was cut off, and say what made them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.errors import InterruptedRunError, TooManyFailuresError
from imbalance_perturb.files.writing import STDOUT, write_json
from imbalance_perturb.inference.failure_limit import FailureLimit
from imbalance_perturb.inference.progress import Progress
from imbalance_perturb.inference.provenance import describe_list, describe_run
from imbalance_perturb.inference.row_source import DoneSlice, RowSource
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.frames import pandas_notes
from imbalance_perturb.predictions.journal import Journal, open_journal
from imbalance_perturb.predictions.making import Making
from imbalance_perturb.predictions.progress_file import rows_path
from imbalance_perturb.predictions.resuming import find_finished, read_state
from imbalance_perturb.predictions.run_file import RunFile, run_path
from imbalance_perturb.predictions.run_state import RunState, Standing
from imbalance_perturb.predictions.shards import Shard
from imbalance_perturb.predictions.writing import csv_rows, open_stdout


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
    source: RowSource,
    images: ImageList,
    out: str,
    *,
    resume: bool | None,
    shard: Shard | None,
    failures: FailureLimit,
    progress: Progress,
) -> RunSummary:
    """Predict all images and write one row for each, then the run file.

    What can be refused before a model is loaded has been, by :func:`predict_folder`.

    Args:
        source: computes the rows.
        images: what to predict.
        out: ``.csv``, ``.jsonl`` or ``.parquet`` path, or ``-`` for CSV on stdout (then no run file is written).
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
    run = _Run(source, images, failures, progress)
    if out == STDOUT:
        with open_stdout() as stream, progress.counting(len(images)):
            stream.write(csv_rows(source.layout).header)
            for done in run.iter_done():
                stream.write(done.text)
        return run.summary(None)
    path = Path(out)
    made_by = Making(**source.machine, images=describe_list(images, shard))
    if resume:
        finished = find_finished(path, made_by)
        if finished is not None:
            return _summary_of(finished, path, made_by)
    with open_journal(path, source.layout, made_by.to_dict(), resume=bool(resume)) as (journal, mark):
        if mark is not None:
            run.resume(read_state(path, mark), mark.rows)
        elif source.begins_settled:
            journal.commit(run.state().to_dict())
        with progress.counting(len(images), journal.count):
            with _naming_rows(journal, path):
                for done in run.iter_done():
                    with source.stopwatch.timing("write"):
                        journal.append(done.text, done.images)
                        journal.commit(run.state().to_dict())
            journal.finish()
            summary = run.summary(path)
            account = describe_run(
                made_by,
                path,
                run.state(),
                seconds=summary.seconds,
                agreement=summary.agreement,
                engine=source.engine,
            )
            write_json(run_path(path), account.to_dict())
            journal.forget()
    return summary


class _Run:
    """One run over the images, from where it stands."""

    def __init__(self, source: RowSource, images: ImageList, failures: FailureLimit, progress: Progress) -> None:
        self._source, self._images, self._failures, self._progress = source, images, failures, progress
        self._standing, self._resumed = Standing(), 0
        self._start = time.perf_counter()

    def iter_done(self) -> Iterator[DoneSlice]:
        """Rows of the images that are left, some at a time; each is counted before it comes."""
        source, progress = self._source, self._progress
        for done in source.iter_done(self._images.names, self._standing.images, self._check_stop):
            self._failures.check(self._standing.failed, done.broken)
            self._standing.add(done.images, done.changed, done.broken)
            yield done
            if not source.begins_settled:
                progress.advance(done.images)
            self._check_stop()

    def _check_stop(self) -> None:
        self._progress.check_stop(self._standing.images, len(self._images))

    def state(self) -> RunState:
        """All that going on from here needs."""
        return RunState(
            standing=replace(self._standing, earlier_seconds=self._seconds()),
            seconds=self._source.stopwatch.seconds,
            predictor=self._source.state(),
            deep=self._source.deep,
        )

    def resume(self, state: RunState, rows: int) -> None:
        """Start from where an earlier run stood when it had so many rows."""
        self._standing, self._resumed = state.standing, rows
        self._source.resume(state)

    def summary(self, path: Path | None) -> RunSummary:
        """Sum up the run so far."""
        standing, machine = self._standing, self._source.machine
        execution = machine["execution"]
        agreement = None
        if execution.low_network is not None or execution.close_calls_only:
            agreement = Agreement.of_state(self._source.state(), execution.precision, execution.low_dtype)
        return RunSummary(
            total=len(self._images),
            done=standing.done,
            failed=standing.failed,
            changed=standing.changed,
            seconds=self._seconds(),
            predictions=None if path is None else str(path),
            run=None if path is None else str(run_path(path)),
            first_errors=tuple(standing.first_errors),
            agreement=agreement,
            resumed=self._resumed,
            assumptions=machine["model"].assumptions,
            warnings=self._source.deep.warnings,
            notes=pandas_notes([one.name for one in machine["classes"]], ".csv" if path is None else path.suffix),
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


def _summary_of(run: RunFile, path: Path, made_by: Making) -> RunSummary:
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
        assumptions=made_by.model.assumptions,
        warnings=run.warnings,
        notes=pandas_notes([one.name for one in made_by.classes], path.suffix),
    )

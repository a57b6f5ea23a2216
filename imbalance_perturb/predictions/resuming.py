"""Whether a run may go on with what an earlier one has left, and whether anything is left to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imbalance_perturb.errors import PredictionsError, ResumeError
from imbalance_perturb.files.typed_json import EntryError
from imbalance_perturb.files.writing import STDOUT
from imbalance_perturb.predictions.making import Making, read_entry
from imbalance_perturb.predictions.progress_file import (
    Mark,
    Unfinished,
    ahead_path,
    progress_path,
    read_unfinished,
    rows_path,
)
from imbalance_perturb.predictions.run_differences import differences
from imbalance_perturb.predictions.run_file import RunFile, load_run_of
from imbalance_perturb.predictions.run_state import RunState

_ANEW = "--no-resume writes the predictions anew, -o writes elsewhere"

#: Settings that may be left to the machine, and the entries of ``execution`` that say what it decided.
_DECIDED = {"device": ("device_name",), "precision": ("precision", "low_dtype"), "batch_size": ("batch_size",)}


def check_unfinished(out: str, resume: bool | None) -> None:
    """Refuse to write where an unfinished run has rows, unless it is said what to do with them.

    Raises:
        ResumeError: if there are some and ``resume`` is ``None``, or rows on stdout are to be resumed.
    """
    if out == STDOUT:
        if resume:
            raise ResumeError("a run whose rows went to stdout cannot be resumed; write to a file with -o")
        return
    unfinished = None if resume is not None else read_unfinished(Path(out))
    if unfinished is not None and (unfinished.mark.rows or _has_slices_ahead(Path(out))):
        raise ResumeError(
            f"{rows_path(Path(out))}: holds {unfinished.mark.rows:,} rows of a run that did not end; --resume goes on"
            " with it, --no-resume starts anew, -o writes elsewhere"
        )


def _has_slices_ahead(path: Path) -> bool:
    """Whether a run over a cluster has left slices whose turn had not come."""
    return ahead_path(path).is_file() and ahead_path(path).stat().st_size > 0


def recorded_batch_size(out: str) -> int | None:
    """The batch size that an earlier run of this file settled on, finished or not; ``None`` where there was none.

    Measured anew it might be another, and one that goes on has to take it.

    Raises:
        PredictionsError: if there is a file that its run file does not tell of, or that cannot be used.
    """
    if out == STDOUT:
        return None
    unfinished = read_unfinished(Path(out))
    made_by = _find_run(Path(out)) if unfinished is None else _made_by(Path(out), unfinished)
    return None if made_by is None else made_by.execution.batch_size


def find_finished(path: Path, made_by: Making) -> RunFile | None:
    """The run file of a run that has ended already, ``None`` where there is something left to do.

    Args:
        path: the predictions file to be.
        made_by: what the run that is to go on would make its rows by.

    Raises:
        ResumeError: if what is there was made by something else.
        PredictionsError: as in :func:`recorded_batch_size`.
    """
    unfinished = read_unfinished(path)
    if unfinished is not None:
        _refuse_other(progress_path(path), _made_by(path, unfinished), made_by)
        return None
    run = _find_run(path)
    if run is not None:
        _refuse_other(path, run, _as_decided(run, made_by))
    return run


def read_state(path: Path, mark: Mark) -> RunState:
    """The state that the run of a predictions file was in at a mark.

    Raises:
        PredictionsError: naming the progress file and the entry that is missing or wrong.
    """
    try:
        return read_entry(RunState, mark.state, "state")
    except EntryError as error:
        raise PredictionsError(f"{progress_path(path)}: {error}") from None


def _made_by(path: Path, unfinished: Unfinished) -> Making:
    try:
        return read_entry(Making, unfinished.made_by, "made_by")
    except EntryError as error:
        raise PredictionsError(f"{progress_path(path)}: {error}") from None


def _find_run(path: Path) -> RunFile | None:
    """What the run file of predictions that are there says, ``None`` where there are none."""
    return load_run_of(path, _ANEW) if path.exists() else None


def _as_decided(run: RunFile, made_by: Making) -> Making:
    """What a run would make its rows by, with what it leaves to the machine as it was in one that has ended.

    Nothing is computed again, so that another machine, or the clock, would now decide otherwise makes no difference.
    """
    left = [
        entries for setting, entries in _DECIDED.items() if getattr(made_by.settings.run, setting) in (None, "auto")
    ]
    decided = {entry: getattr(run.execution, entry) for entries in left for entry in entries}
    return replace(made_by, execution=replace(made_by.execution, **decided))


def _refuse_other(path: Path, then: Making, now: Making) -> None:
    found = differences(then, now)
    if found:
        raise ResumeError(
            f"{path}: was made by another run, so it cannot be resumed; different: {', '.join(found)}; give what it was"
            " made with, or start anew with --no-resume"
        )

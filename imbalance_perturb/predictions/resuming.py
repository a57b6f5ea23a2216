"""Whether a run may go on with what an earlier one has left, and whether anything is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imbalance_perturb.errors import PredictionsError, ResumeError
from imbalance_perturb.files.writing import STDOUT
from imbalance_perturb.predictions.progress_file import progress_path, read_unfinished, rows_path
from imbalance_perturb.predictions.run_file import differences, load_run_of, look_up

_ANEW = "--no-resume writes the predictions anew, -o writes elsewhere"

#: Settings that may be left to the machine, and the entries of ``execution`` that say what it decided.
_DECIDED = {"device": ("device_name",), "precision": ("precision", "low_dtype"), "batch_size": ("batch_size",)}


def check_unfinished(out: str, resume: bool | None) -> None:
    """Refuse to write where an unfinished run has rows, unless it is said what to do with them.

    Raises:
        ResumeError: if there are some and ``resume`` is ``None``, or rows on stdout are to be gone on with.
    """
    if out == STDOUT:
        if resume:
            raise ResumeError("a run whose rows went to stdout cannot be resumed; write to a file with -o")
        return
    unfinished = None if resume is not None else read_unfinished(Path(out))
    if unfinished is not None and unfinished.mark.rows:
        raise ResumeError(
            f"{rows_path(Path(out))}: holds {unfinished.mark.rows:,} rows of a run that did not end; --resume goes on"
            " with it, --no-resume starts anew, -o writes elsewhere"
        )


def recorded_batch_size(out: str) -> int | None:
    """The batch size that an earlier run of this file settled on, finished or not; ``None`` where there was none.

    Measured anew it might be another, and one that goes on has to take it.

    Raises:
        ResumeError: if there is a file that its run file does not tell of.
    """
    if out == STDOUT:
        return None
    unfinished = read_unfinished(Path(out))
    made_by = _find_run(Path(out)) if unfinished is None else unfinished.made_by
    size = look_up(made_by, "execution.batch_size")
    return size if isinstance(size, int) else None


def find_finished(path: Path, made_by: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The run file of a run that has ended already, ``None`` where there is something left to do.

    Args:
        path: the predictions file to be.
        made_by: what the run that is to go on would make its rows by.

    Raises:
        ResumeError: if what is there was made by something else.
    """
    unfinished = read_unfinished(path)
    if unfinished is not None:
        _refuse_other(progress_path(path), unfinished.made_by, made_by)
        return None
    run = _find_run(path)
    if run is not None:
        _refuse_other(path, run, _as_decided(run, made_by))
    return run


def _find_run(path: Path) -> Mapping[str, Any] | None:
    """What the run file of predictions that are there says, ``None`` where there are none."""
    if not path.exists():
        return None
    try:
        return load_run_of(path, _ANEW).data
    except PredictionsError as error:
        raise ResumeError(str(error)) from None


def _as_decided(run: Mapping[str, Any], made_by: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run would make its rows by, with what it leaves to the machine as it was in one that has ended.

    Nothing is computed again, so that another machine, or the clock, would now decide otherwise makes no difference.
    """
    wanted, execution = made_by["settings"]["run"], dict(made_by["execution"])
    for setting, entries in _DECIDED.items():
        if wanted[setting] in (None, "auto"):
            execution |= {entry: look_up(run, f"execution.{entry}") for entry in entries}
    return {**made_by, "execution": execution}


def _refuse_other(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = differences(then, now)
    if found:
        raise ResumeError(
            f"{path}: was made by another run, so it cannot be resumed; different: {', '.join(found)}; give what it was"
            " made with, or start anew with --no-resume"
        )

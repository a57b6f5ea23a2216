"""Whether a run may go on with what an earlier one has left, and whether anything is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imbalance_perturb.counts import read_json
from imbalance_perturb.errors import PredictionsError, ResumeError
from imbalance_perturb.journal import progress_path, read_unfinished, rows_path
from imbalance_perturb.outputs import STDOUT, run_path, sha256
from imbalance_perturb.provenance import differences


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
    """The batch size that an unfinished run settled on, which one that goes on has to take."""
    unfinished = None if out == STDOUT else read_unfinished(Path(out))
    return None if unfinished is None else unfinished.made_by["execution"]["batch_size"]


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
    if not path.exists():
        return None
    try:
        run: Mapping[str, Any] = read_json(run_path(path), "the run that made the predictions", PredictionsError)
        known = run["predictions_sha256"]
    except (PredictionsError, KeyError, TypeError):
        known = None
    if known != sha256(path):
        raise ResumeError(
            f"{path}: is there, but is not what {run_path(path).name} tells of, so nothing can be resumed; --no-resume"
            " writes it anew, -o writes elsewhere"
        )
    _refuse_other(path, run, made_by)
    return run


def _refuse_other(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = differences(then, now)
    if found:
        raise ResumeError(
            f"{path}: was made by another run, so it cannot be resumed; different: {', '.join(found)}; give what it was"
            " made with, or start anew with --no-resume"
        )

"""Predict a folder: rows written as they come, and beside them the run that made them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imbalance_perturb.agreement import Agreement
from imbalance_perturb.assembly import Assembly, make_predictor
from imbalance_perturb.batching import BatchLimit
from imbalance_perturb.execution import applied
from imbalance_perturb.images import ImageList
from imbalance_perturb.outputs import STDOUT, open_rows, run_path, sha256, write_json
from imbalance_perturb.prediction import iter_predictions
from imbalance_perturb.stopwatch import Stopwatch

#: Version of the layout of a run file.
RUN_SCHEMA = 1


@dataclass(frozen=True)
class RunSummary:
    """What a run came to: numbers of images, seconds of wall clock, and the files written (``None``: stdout).

    ``agreement`` is of labels with those of the full computation, ``None`` where nothing else was computed.
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

    @property
    def images_per_second(self) -> float:
        """Images per second of wall clock, decoding and writing included."""
        return self.total / self.seconds if self.seconds > 0 else 0.0


def predict_folder(
    assembly: Assembly,
    images: ImageList,
    out: str,
    *,
    probabilities: bool = False,
    progress: Callable[[int], None] = lambda advanced: None,
) -> RunSummary:
    """Predict all images and write one row for each, then the run file.

    Args:
        assembly: the checked model and its surroundings.
        images: what to predict.
        out: ``.csv`` or ``.jsonl`` path, or ``-`` for CSV on stdout (then no run file is written).
        probabilities: whether rows carry the probabilities of all classes.
        progress: called with the number of images done since the last call.
    """
    stopwatch = Stopwatch()
    done = failed = changed = 0
    errors: list[tuple[str, str]] = []
    start = time.perf_counter()
    classes = assembly.counts.names
    predictor, limit = make_predictor(assembly), BatchLimit()
    marked = assembly.settings.run.close_calls_only
    with applied(assembly.execution), open_rows(out, classes, probabilities, corrected=marked) as write:
        for rows in iter_predictions(
            predictor,
            images,
            assembly.preprocessing,
            assembly.execution,
            probabilities=probabilities,
            stopwatch=stopwatch,
            limit=limit,
        ):
            with stopwatch.timing("write"):
                for row in rows:
                    write(row)
            changed += sum(row.changed for row in rows)
            broken = [row for row in rows if row.error is not None]
            failed, done = failed + len(broken), done + len(rows) - len(broken)
            errors += [(row.image, row.error or "") for row in broken[: 5 - len(errors)]]
            progress(len(rows))
    seconds = time.perf_counter() - start
    run = None if out == STDOUT else run_path(Path(out))
    summary = RunSummary(
        total=len(images),
        done=done,
        failed=failed,
        changed=changed,
        seconds=seconds,
        predictions=None if out == STDOUT else out,
        run=None if run is None else str(run),
        first_errors=tuple(errors),
        agreement=predictor.summary() if assembly.low is not None or assembly.execution.close_calls_only else None,
    )
    if run is not None:
        write_json(run, describe_run(assembly, images, summary, stopwatch, batch_ceiling=limit.most))
    return summary


def describe_run(
    assembly: Assembly,
    images: ImageList,
    summary: RunSummary,
    stopwatch: Stopwatch,
    *,
    batch_ceiling: int | None = None,
) -> dict[str, Any]:
    """Everything that made a predictions file, as JSON has it.

    ``batch_ceiling``: to how many images batches had to be cut, where memory ran out.
    """
    import PIL
    import torch
    import torchvision

    import imbalance_perturb

    settings, info = assembly.settings, assembly.model.info
    seconds = {**stopwatch.seconds, "total": summary.seconds}
    return {
        "schema": RUN_SCHEMA,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "predictions": summary.predictions and Path(summary.predictions).name,
        "versions": {
            "imbalance_perturb": imbalance_perturb.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            # Decoders can differ by a level of a pixel.
            "pillow": PIL.__version__,
        },
        "model": {"sha256": sha256(str(settings.model.model)), **asdict(info)},
        "counts": {"path": settings.model.counts, "sha256": sha256(str(settings.model.counts))},
        "classes": [
            {"index": index, "name": name, "count": count, "target": p}
            for index, (name, count, p) in enumerate(
                zip(assembly.counts.names, assembly.counts.counts, assembly.target.tolist(), strict=True)
            )
        ],
        "settings": {"debias": asdict(settings.debias), "run": asdict(settings.run)},
        "preprocessing": assembly.preprocessing.to_dict(),
        "execution": {
            "device": str(assembly.execution.device),
            "device_name": assembly.execution.device_name,
            "precision": assembly.execution.precision,
            "low_dtype": assembly.execution.low_name,
            "close_calls_only": assembly.execution.close_calls_only,
            "notes": list(assembly.execution.notes),
            "network": assembly.optimisation.path,
            "low_network": None if assembly.low_optimisation is None else assembly.low_optimisation.path,
            "batch_size": assembly.execution.batch_size,
            "batch_ceiling": batch_ceiling,
            "workers": assembly.execution.workers,
            "deterministic": assembly.execution.deterministic,
            "threads": torch.get_num_threads(),
        },
        "agreement": None if summary.agreement is None else summary.agreement.to_dict(),
        "images": {
            "source": str(images.source),
            "total": summary.total,
            "done": summary.done,
            "failed": summary.failed,
            "changed": summary.changed,
            "ignored_files": dict(images.ignored),
        },
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "images_per_second": {stage: round(summary.total / value, 2) for stage, value in seconds.items() if value > 0},
    }

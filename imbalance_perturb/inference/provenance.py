"""What makes a predictions file what it is, and what came out, as its run file has it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imbalance_perturb.data.image_files import ImageList, iter_sizes
from imbalance_perturb.files.writing import sha256
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.making import (
    ClassEntry,
    CountsEntry,
    HiddenEntry,
    Making,
    MakingExecution,
    MakingImages,
    ModelEntry,
    OutputEntry,
    Versions,
)
from imbalance_perturb.predictions.preparation import PreprocessingEntry
from imbalance_perturb.predictions.rows import RowLayout
from imbalance_perturb.predictions.run_file import RUN_SCHEMA, EngineEntry, RunExecution, RunFile, RunImages
from imbalance_perturb.predictions.run_state import RunState
from imbalance_perturb.predictions.shards import Shard, files_sha256, list_sha256

if TYPE_CHECKING:
    from imbalance_perturb.inference.pipeline import Pipeline


def describe_making(
    pipeline: Pipeline, images: ImageList, layout: RowLayout, suffix: str, shard: Shard | None = None
) -> Making:
    """Everything that makes the rows: versions, files, settings, machine and images."""
    return Making(**describe_machine(pipeline, layout, suffix), images=describe_list(images, shard))


def describe_machine(pipeline: Pipeline, layout: RowLayout, suffix: str) -> dict[str, Any]:
    """All entries of :func:`describe_making` but that of the images: what the machine with the model knows."""
    classes = zip(pipeline.counts.names, pipeline.counts.counts, pipeline.target.tolist(), strict=True)
    return {
        "versions": _describe_versions(),
        "model": ModelEntry(**asdict(pipeline.model.info)),
        "counts": CountsEntry(path=pipeline.settings.model.counts, sha256=pipeline.counts_sha256),
        "classes": tuple(
            ClassEntry(index=index, name=name, count=count, target=p) for index, (name, count, p) in enumerate(classes)
        ),
        "settings": pipeline.settings,
        "preprocessing": PreprocessingEntry(**asdict(pipeline.preprocessing)),
        "execution": _describe_execution(pipeline),
        "output": OutputEntry(
            format=suffix.lower(), probabilities=bool(layout.classes), bom=layout.bom, margin=layout.margin
        ),
        "strength": pipeline.strength,
    }


def describe_list(images: ImageList, shard: Shard | None = None) -> MakingImages:
    """The entry of the images: what the machine with the list knows."""
    return MakingImages(
        source=str(images.source),
        sources=tuple(map(str, images.sources or (images.source,))),
        total=len(images),
        shard=shard,
        list_total=len(images.everything),
        list_sha256=list_sha256(images.everything),
        files_sha256=files_sha256(images.everything, iter_sizes(images.root, images.everything)),
        ignored_files=dict(images.ignored),
        hidden=HiddenEntry(**images.hidden.to_dict()),
    )


def describe_run(
    made_by: Making,
    path: Path,
    state: RunState,
    *,
    seconds: float,
    agreement: Agreement | None,
    engine: EngineEntry | None = None,
) -> RunFile:
    """Everything about a predictions file: what made it, and what came out.

    Args:
        made_by: what :func:`describe_making` gave.
        path: the predictions file.
        state: where the run stood in the end.
        seconds: of wall clock.
        agreement: of labels with those of the full computation.
        engine: the cluster that computed, if one did.
    """
    standing, most, total = state.standing, state.predictor.most_at_once, made_by.images.total
    stages = {**state.seconds, "total": seconds}
    changed = {
        # To how many images batches had to be cut, where memory ran out.
        "execution": RunExecution(
            **vars(made_by.execution),
            batch_ceiling=most if most != made_by.execution.batch_size else None,
        ),
        "images": RunImages(
            **vars(made_by.images),
            done=standing.done,
            failed=standing.failed,
            changed=standing.changed,
            deep=state.deep,
        ),
    }
    return RunFile(
        schema=RUN_SCHEMA,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        predictions=path.name,
        predictions_sha256=sha256(path),
        **(vars(made_by) | changed),
        warnings=state.deep.warnings,
        agreement=agreement,
        predictor=state.predictor,
        engine=engine,
        seconds={stage: round(value, 4) for stage, value in stages.items()},
        images_per_second={stage: round(total / value, 2) for stage, value in stages.items() if value > 0},
    )


def _describe_versions() -> Versions:
    import numpy as np
    import PIL
    import torch

    import imbalance_perturb
    from imbalance_perturb.method.torchvision_import import import_torchvision

    return Versions(
        imbalance_perturb=imbalance_perturb.__version__,
        python=platform.python_version(),
        torch=str(torch.__version__),
        torchvision=import_torchvision().__version__,
        pillow=PIL.__version__,
        numpy=np.__version__,
        pydicom=_installed("pydicom"),
        pillow_heif=_installed("pillow-heif"),
        tifffile=_installed("tifffile"),
        imagecodecs=_installed("imagecodecs"),
    )


def _describe_execution(pipeline: Pipeline) -> MakingExecution:
    import torch

    execution, low = pipeline.execution, pipeline.low_optimisation
    return MakingExecution(
        device=str(execution.device),
        device_name=execution.device_name,
        precision=execution.precision,
        low_dtype=execution.low_name,
        close_calls_only=execution.close_calls_only,
        notes=execution.notes,
        network=pipeline.optimisation.path,
        low_network=None if low is None else low.path,
        batch_size=execution.batch_size,
        workers=execution.workers,
        takes_turns=execution.takes_turns,
        deterministic=execution.deterministic,
        threads=torch.get_num_threads(),
    )


def describe_source(pipeline: Pipeline) -> dict[str, Any]:
    """Describe what the figures of a choice between corrections rest on: model, counts, preprocessing, machine."""
    import torch

    import imbalance_perturb

    settings, execution = pipeline.settings, pipeline.execution
    return {
        "model": {"path": settings.model.model, "sha256": pipeline.model.info.sha256},
        "counts": {"path": settings.model.counts, "sha256": pipeline.counts_sha256},
        "preprocessing": pipeline.preprocessing.to_dict(),
        "execution": {
            "device": str(execution.device),
            "device_name": execution.device_name,
            "precision": execution.precision,
            "batch_size": execution.batch_size,
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "imbalance_perturb": imbalance_perturb.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

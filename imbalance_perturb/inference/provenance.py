"""What makes a predictions file what it is, as JSON has it, and what differs between two such accounts."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from typing import Any

from imbalance_perturb.data.image_files import ImageList, iter_sizes
from imbalance_perturb.inference.pipeline import Pipeline
from imbalance_perturb.predictions.rows import RowLayout
from imbalance_perturb.predictions.shards import Shard, files_sha256, list_sha256


def describe_making(
    pipeline: Pipeline, images: ImageList, layout: RowLayout, suffix: str, shard: Shard | None = None
) -> dict[str, Any]:
    """Everything that makes the rows: versions, files, settings, machine and images."""
    import numpy as np
    import PIL
    import torch
    import torchvision

    import imbalance_perturb

    settings, execution = pipeline.settings, pipeline.execution
    return {
        "versions": {
            "imbalance_perturb": imbalance_perturb.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            # Decoders can differ by a level of a pixel.
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "pydicom": _installed("pydicom"),
            "pillow_heif": _installed("pillow-heif"),
        },
        "model": asdict(pipeline.model.info),
        "counts": {"path": settings.model.counts, "sha256": pipeline.counts_sha256},
        "classes": [
            {"index": index, "name": name, "count": count, "target": p}
            for index, (name, count, p) in enumerate(
                zip(pipeline.counts.names, pipeline.counts.counts, pipeline.target.tolist(), strict=True)
            )
        ],
        "settings": asdict(settings),
        "preprocessing": pipeline.preprocessing.to_dict(),
        "execution": {
            "device": str(execution.device),
            "device_name": execution.device_name,
            "precision": execution.precision,
            "low_dtype": execution.low_name,
            "close_calls_only": execution.close_calls_only,
            "notes": list(execution.notes),
            "network": pipeline.optimisation.path,
            "low_network": None if pipeline.low_optimisation is None else pipeline.low_optimisation.path,
            "batch_size": execution.batch_size,
            "workers": execution.workers,
            "takes_turns": execution.takes_turns,
            "deterministic": execution.deterministic,
            "threads": torch.get_num_threads(),
        },
        "output": {"format": suffix.lower(), "probabilities": bool(layout.classes), "bom": layout.bom},
        "images": {
            "source": str(images.source),
            "total": len(images),
            "shard": None if shard is None else str(shard),
            "list_total": len(images.everything),
            "list_sha256": list_sha256(images.everything),
            "files_sha256": files_sha256(images.everything, iter_sizes(images.root, images.everything)),
            "ignored_files": dict(images.ignored),
            "hidden": images.hidden.to_dict(),
        },
    }


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

"""What makes a predictions file what it is, as JSON has it, and what differs between two such accounts."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.settings import TABLES, untupled
from imbalance_perturb.data.image_files import ImageList, iter_sizes
from imbalance_perturb.inference.pipeline import Assembly
from imbalance_perturb.predictions.shards import Shard, files_sha256, list_sha256
from imbalance_perturb.predictions.writing import RowLayout

_LIST, _FILES = "the list of images", "the images (some file has another size)"


def _compared(table: str) -> dict[str, str]:
    known = declarations(TABLES[table])
    return {f"settings.{table}.{name}": name for name, entry in known.items() if entry.compared}


#: Entries that must be the same for rows to be of one run, and how people call them. A table stands for its entries.
#: Of the settings of preprocessing what they come to is compared.
_SAME_RUN = {
    "versions.imbalance_perturb": "imbalance-perturb",
    "versions.torch": "torch",
    "versions.torchvision": "torchvision",
    "versions.pillow": "Pillow",
    "versions.numpy": "NumPy",
    "versions.pydicom": "pydicom",
    "versions.pillow_heif": "pillow-heif",
    "model.sha256": "the model file",
    "model.arch": "arch",
    "model.outputs": "outputs",
    **_compared("model"),
    "classes": "the class counts or p*",
    **_compared("debias"),
    **_compared("run"),
    "preprocessing": "",
    "execution.precision": "the precision",
    "execution.low_dtype": "the low precision",
    "output": "",
    "images.list_sha256": _LIST,
    "images.files_sha256": _FILES,
}

#: Entries that must be the same, too, for a run to go on.
_SAME_PART = {"execution.device_name": "the device", "execution.batch_size": "the batch size", "images.shard": "shard"}


def describe_making(
    assembly: Assembly, images: ImageList, layout: RowLayout, suffix: str, shard: Shard | None = None
) -> dict[str, Any]:
    """Everything that makes the rows: versions, files, settings, machine and images."""
    import numpy as np
    import PIL
    import torch
    import torchvision

    import imbalance_perturb

    settings, execution = assembly.settings, assembly.execution
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
        "model": asdict(assembly.model.info),
        "counts": {"path": settings.model.counts, "sha256": assembly.counts_sha256},
        "classes": [
            {"index": index, "name": name, "count": count, "target": p}
            for index, (name, count, p) in enumerate(
                zip(assembly.counts.names, assembly.counts.counts, assembly.target.tolist(), strict=True)
            )
        ],
        "settings": asdict(settings),
        "preprocessing": assembly.preprocessing.to_dict(),
        "execution": {
            "device": str(execution.device),
            "device_name": execution.device_name,
            "precision": execution.precision,
            "low_dtype": execution.low_name,
            "close_calls_only": execution.close_calls_only,
            "notes": list(execution.notes),
            "network": assembly.optimisation.path,
            "low_network": None if assembly.low_optimisation is None else assembly.low_optimisation.path,
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


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def differences(then: Mapping[str, Any], now: Mapping[str, Any], *, part: bool = True) -> list[str]:
    """What is not the same in two accounts and would show in the rows, in words; empty where nothing is.

    Args:
        then, now: what :func:`describe_making` gave, perhaps read back from JSON.
        part: whether they are to be of the same part of a run; else of parts of one run, on whatever machine.
    """
    words = []
    then_is, now_is = ("then", "now") if part else ("there", "here")
    for name, one, other in _entries(then, now, _SAME_RUN | (_SAME_PART if part else {})):
        # Of another list the files are others anyway.
        if one != other and not (name == _FILES and _LIST in words):
            told = all(value is None or isinstance(value, str | int | float) for value in (one, other))
            told = told and not any(isinstance(value, str) and len(value) > 40 for value in (one, other))
            words.append(f"{name} ({_told(one)} {then_is}, {_told(other)} {now_is})" if told else name)
    return words


def _entries(
    then: Mapping[str, Any], now: Mapping[str, Any], wanted: Mapping[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    for entry, name in wanted.items():
        one, other = (look_up(account, entry) for account in (then, now))
        if name:
            yield name, one, other
            continue
        one, other = (value if isinstance(value, Mapping) else {} for value in (one, other))
        for key in sorted({*one, *other}):
            yield key, untupled(one.get(key)), untupled(other.get(key))


def look_up(account: Any, entry: str) -> Any:
    """An entry of an account, such as ``execution.device_name``; ``None`` where it is not there."""
    for key in entry.split("."):
        account = account.get(key) if isinstance(account, Mapping) else None
    return account


def _told(value: Any) -> str:
    return "none" if value is None else str(value)


def find_beside(path: str, run_file: Path) -> Path:
    """A path that a run file names: as it stands, or, where that is not there, seen from the run file's folder."""
    beside = run_file.parent / path
    return Path(path) if Path(path).exists() or not beside.exists() else beside

"""Find the names of the classes, in class-index order, in model files that have them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import nn

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models.folders.model_folder import ModelFolder, open_model
from imbalance_perturb.models.formats.checkpoint import read_checkpoint
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import is_trusted
from imbalance_perturb.models.formats.weight_sets import WRAPPERS
from imbalance_perturb.models.formats.zip_archive import Archive

#: What training scripts call them, the clearest first. Mappings go from name to index or from index to name.
_KEYS = ("class_to_idx", "label2id", "idx_to_class", "id2label", "classes", "class_names", "names", "labels")
_FROM_INDEX = ("idx_to_class", "id2label")
#: Tables of a checkpoint in which such entries stand, beside those that hold the tensors.
_TABLES = ("hyper_parameters", "hparams", "args", "config", "meta", "model_args", "dataset_meta", *WRAPPERS)
_MOST_DEPTH = 3
#: Of a part of an archive that is looked into.
_MOST_BYTES = 2**20


class ClassNames(NamedTuple):
    """``names`` in class-index order, and ``key``: where in the file they stand."""

    key: str
    names: tuple[str, ...]


def read_class_names(path: str | Path, num_classes: int, *, trust_model_file: bool | str = False) -> ClassNames | None:
    """Read the class names in a model file, without building the network; None where it has none.

    Raises:
        ModelFileError, UntrustedModelError: as :func:`load_classifier` does.
    """
    snapshot = open_model(path)
    if isinstance(snapshot, ModelFolder):
        found = find_class_names(snapshot.naming)
    elif snapshot.format == "checkpoint":
        found = find_class_names(read_checkpoint(snapshot, trust=is_trusted(snapshot, trust_model_file))[0])
    else:
        found = attached_class_names(snapshot)
    return select_class_names(found, num_classes, snapshot.path)[0]


def find_class_names(content: object) -> list[ClassNames]:
    """Find whatever may name classes in a loaded checkpoint, the clearest first: plain values only."""
    found = list(_iter_names(content, "", 0))
    return sorted(found, key=lambda names: _KEYS.index(names.key.rpartition(".")[2].lower()))


def attached_class_names(snapshot: Snapshot) -> list[ClassNames]:
    """Find them in what a file of another kind has beside the network: its metadata, or the extra parts of an archive.

    Raises:
        ModelFileError: if an extra part is damaged.
    """
    texts = _safetensors_metadata(snapshot) if snapshot.format == "safetensors" else _extra_texts(snapshot.archive)
    content: dict[str, Any] = {}
    for name, text in texts.items():
        value = _parse(text)
        if name.lower() in _KEYS:
            content[name] = text.split("\n") if value is None else value
        elif isinstance(value, Mapping):
            content[name] = value
    # Any attached table may be the one with the names.
    tables = [(name, value) for name, value in content.items() if name.lower() not in _KEYS]
    inner = [found for name, value in tables for found in _iter_names(value, f"{name}.", 1)]
    return find_class_names({name: value for name, value in content.items() if name.lower() in _KEYS}) + inner


def select_class_names(
    found: Sequence[ClassNames], num_classes: int, path: Path
) -> tuple[ClassNames | None, tuple[str, ...]]:
    """Select the class names of a network with so many classes, and write a note on them.

    Raises:
        ModelFileError: if the file has them in two orders.
    """
    fitting = [names for names in found if len(names.names) == num_classes and not _are_indices(names.names)]
    if not fitting:
        return None, tuple(
            f"{names.key!r} in the file has {len(names.names)} entries, so it does not name its {num_classes} classes"
            for names in found[:1]
            if len(names.names) != num_classes
        )
    first = fitting[0]
    for other in fitting[1:]:
        if set(other.names) == set(first.names) and other.names != first.names:
            index = next(i for i, (one, two) in enumerate(zip(first.names, other.names, strict=True)) if one != two)
            raise ModelFileError(
                f"{path}: the file names its classes in two orders: class {index} is {first.names[index]!r} in"
                f" {first.key!r} and {other.names[index]!r} in {other.key!r}; save it again with the right one alone"
            )
    shown = ", ".join(first.names[:10]) + (", …" if num_classes > 10 else "")
    return first, (f"its classes are named in the file, under {first.key!r}: {shown}",)


def _iter_names(content: object, path: str, depth: int) -> Iterator[ClassNames]:
    if isinstance(content, argparse.Namespace | SimpleNamespace | nn.Module):  # a module of a file that was trusted
        content = vars(content)
    if not isinstance(content, Mapping) or depth > _MOST_DEPTH:
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if key.lower() in _KEYS:
            names = _parse_names(key.lower(), value)
            if names is not None:
                yield ClassNames(path + key, names)
        elif key.lower() in _TABLES:
            yield from _iter_names(value, f"{path}{key}.", depth + 1)


def _parse_names(key: str, value: object) -> tuple[str, ...] | None:
    names: Sequence[object] | None = None
    if isinstance(value, list | tuple):
        names = value
    elif isinstance(value, Mapping):
        pairs = list(value.items())
        back = [(index, name) for name, index in pairs]
        ways = (pairs, back) if key in _FROM_INDEX else (back, pairs)
        names = next((found for found in map(_by_index, ways) if found is not None), None)
    if names is None or not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
        return None
    texts = tuple(str(name).strip() for name in names)
    return texts if len(texts) > 1 and all(texts) and len(set(texts)) == len(texts) else None


def _by_index(pairs: Sequence[tuple[object, object]]) -> list[object] | None:
    """The second of each pair in the order of the first, if those are 0 to C-1 (numbers or their digits)."""
    numbers: dict[int, object] = {}
    for index, name in pairs:
        if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
            index = int(index)
        if not isinstance(index, int) or isinstance(index, bool):
            return None
        numbers[index] = name
    return [numbers[i] for i in range(len(pairs))] if set(numbers) == set(range(len(pairs))) else None


def _are_indices(names: Sequence[str]) -> bool:
    # 'LABEL_0' is what transformers writes where nobody named anything.
    return all(name in (str(index), f"LABEL_{index}") for index, name in enumerate(names))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _safetensors_metadata(snapshot: Snapshot) -> dict[str, str]:
    # The format itself: the header's length in 8 bytes, the header in JSON. The library reads it from a path only.
    length = int.from_bytes(snapshot.content[:8], "little")
    header = _parse(snapshot.content[8 : 8 + length].decode("utf-8", "replace"))
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return {key: str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _extra_texts(archive: Archive) -> dict[str, str]:
    """Read what ``torch.jit.save`` and ``torch.export.save`` were given as extra files, by name without suffix."""
    texts: dict[str, str] = {}
    for part in archive.parts:
        folder, _, name = part.filename.rpartition("/")
        if f"/{folder}".endswith("/extra") and part.file_size <= _MOST_BYTES:
            texts[name.rpartition(".")[0] or name] = archive.read(part).decode("utf-8", "replace").strip()
    return texts

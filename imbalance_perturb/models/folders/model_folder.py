"""A folder with a network's config beside its weights: which files of it count, each read once, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from imbalance_perturb.config.model_names import is_hub_name, place_of
from imbalance_perturb.errors import ModelFileError, brief, first_few, printable
from imbalance_perturb.files.strict_json import parse_json_bytes
from imbalance_perturb.models.folders.hub import find_on_hub
from imbalance_perturb.models.formats.checkpoint import read_checkpoint, read_safetensors
from imbalance_perturb.models.formats.snapshot import Snapshot, read_snapshot

_CONFIG = "config.json"
#: How images are prepared, in transformers' folders; the second has it in a table beside those of other inputs.
_PROCESSOR, _PROCESSORS = "preprocessor_config.json", "processor_config.json"
#: Where weights are looked for, as both libraries do: safetensors first. An index names the files of weights in parts.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
#: Entries of which one is in every config that timm writes, in its older layout, too.
_OF_TIMM = ("pretrained_cfg", "input_size", "num_features", "model_args")


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """A config and the weights that belong to it, as they were when they were read.

    Attributes:
        path: what the user named, for messages and the run file: a folder, a file of weights, or a commit on the hub.
        kind: whose config it is, ``timm`` or ``transformers``.
        config: the config.
        processor: how images are prepared, where a file of transformers says it.
        weights: the files of tensors.
        files: everything that was read, by name.
        listed: which of the weights has each tensor, where an index says it.
        notes: where it was found.
    """

    path: Path
    kind: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any] | None
    weights: tuple[Snapshot, ...]
    files: Mapping[str, Snapshot] = field(repr=False)
    listed: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the lines that ``sha256sum`` writes for the files that were read, in the order of their names."""
        lines = "".join(f"{self.files[name].sha256}  {name}\n" for name in sorted(self.files))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def naming(self) -> dict[str, Any]:
        """Entries of the config that name its classes."""
        config = self.config
        found = {key: config[key] for key in ("id2label", "label2id") if key in config}
        if self.kind == "timm":
            inner = config.get("pretrained_cfg")
            for table in (config, inner if isinstance(inner, dict) else {}):
                names = table.get("label_names", table.get("labels"))
                if names and "labels" not in found:
                    found["labels"] = names
        return found

    def read_weights(self, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
        """Read the weights: what ``torch.save`` was given, or tensors by name; with notes.

        Raises:
            ModelFileError: if a file is damaged, or parts do not make a whole.
            UntrustedModelError: if one needs code and ``trust`` is not given.
        """
        notes: list[str] = []
        contents = []
        for snapshot in self.weights:
            if snapshot.format == "safetensors":
                contents.append(read_safetensors(snapshot))
                continue
            content, note = read_checkpoint(snapshot, trust=trust)
            contents.append(content)
            notes += [note] if note else []
        if self.listed is None:
            return contents[0], tuple(notes)
        return self._join(contents), (*notes, f"{len(contents)} files of weights were put together")

    def _join(self, contents: Sequence[Any]) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for snapshot, content in zip(self.weights, contents, strict=True):
            tensors = content if isinstance(content, Mapping) else {}
            expected = {name for name, file in (self.listed or {}).items() if file == snapshot.path.name}
            if set(tensors) != expected:
                odd = first_few(sorted(map(str, expected ^ set(tensors))))
                raise ModelFileError(
                    f"{snapshot.path}: does not hold the tensors that the index beside it lists ({odd}); copy or"
                    " download all of the folder again"
                )
            whole |= tensors
        return whole


def open_model(model: str | Path) -> Snapshot | ModelFolder:
    """Read what MODEL names: a file, or the files of a folder that says everything by itself.

    A file of weights with such a config beside it is taken with that.

    Raises:
        ModelFileError: if it is not there, cannot be read, or is a folder without such a config or without weights.
    """
    model = str(model)
    if is_hub_name(model):
        found = find_on_hub(model)
        return _open_folder(found.folder, Path(found.name), found.notes)
    path = Path(place_of(model))
    if path.is_dir():
        return _open_folder(path, path)
    snapshot = read_snapshot(path)
    beside = path.parent / _CONFIG
    if path.suffix not in _SUFFIXES or not beside.is_file() or snapshot.format not in ("checkpoint", "safetensors"):
        return snapshot
    try:
        config = read_snapshot(beside)
        content = _parse(config)
    except ModelFileError:
        return snapshot  # anybody's config.json
    kind = _kind_of(content)
    if kind is None:
        return snapshot
    notes = (f"{beside} says what network it is and how its images are prepared",)
    return _put_together(path, kind, config, content, (snapshot,), notes=notes)


def hash_model(model: str | Path) -> str:
    """Compute the SHA-256 that a run file has of a model: of its file, or of the files of its folder.

    Raises:
        ModelFileError: as :func:`open_model`.
    """
    return open_model(model).sha256


def _open_folder(folder: Path, path: Path, notes: tuple[str, ...] = ()) -> ModelFolder:
    if not (folder / _CONFIG).is_file():
        raise ModelFileError(
            f"{path}: this is a folder without a {_CONFIG} of timm or transformers; give the model file in it"
        )
    config = read_snapshot(folder / _CONFIG)
    content = _parse(config)
    kind = _kind_of(content)
    if kind is None:
        raise ModelFileError(
            f"{path}: its {_CONFIG} is neither timm's (architecture, pretrained_cfg) nor transformers' (model_type);"
            " give the model file in it, with --arch or --factory where it is not recognised"
        )
    name = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise ModelFileError(
            f"{path}: has a {_CONFIG} but no weights; expected {_WEIGHTS[0]} or {_WEIGHTS[2]} beside it"
        )
    if not name.endswith(".json"):
        return _put_together(path, kind, config, content, (read_snapshot(folder / name),), notes=notes)
    index = read_snapshot(folder / name)
    listed = _listed(index)
    weights = tuple(read_snapshot(folder / file) for file in sorted(set(listed.values())))
    return _put_together(path, kind, config, content, weights, index=index, listed=listed, notes=notes)


def _put_together(
    path: Path,
    kind: str,
    config: Snapshot,
    content: Mapping[str, Any],
    weights: tuple[Snapshot, ...],
    *,
    index: Snapshot | None = None,
    listed: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> ModelFolder:
    read = [config, *weights, *([] if index is None else [index])]
    processor = None
    if kind == "transformers":
        for name, key in ((_PROCESSORS, "image_processor"), (_PROCESSOR, None)):
            if processor is None and (file := config.path.with_name(name)).is_file():
                snapshot = read_snapshot(file)
                said = _parse(snapshot)
                processor = said if key is None else said.get(key)
                if processor is not None:
                    read.append(snapshot)
    files = {snapshot.path.name: snapshot for snapshot in read}
    _refuse_code(path, {name: _parse(one) for name, one in files.items() if name.endswith(".json")})
    return ModelFolder(path, kind, content, processor, weights, files, listed, notes)


def _refuse_code(path: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a folder whose network or preprocessing is code that it brings along."""
    for name, content in configs.items():
        tables = [content, *(value for value in content.values() if isinstance(value, dict))]
        if any(table.get("auto_map") for table in tables):
            raise ModelFileError(
                f"{path}: {name} asks for code of the folder's own (auto_map), which is never run; export the model"
                " with torch.export, or build it with --factory"
            )


def _parse(snapshot: Snapshot) -> dict[str, Any]:
    try:
        found = parse_json_bytes(snapshot.content, "an object with entries", ModelFileError)
        if not isinstance(found, dict):
            raise ModelFileError(f"holds {brief(found)}; expected an object with entries")
    except ModelFileError as error:
        raise ModelFileError(f"{snapshot.path}: {error}") from None
    return found


def _kind_of(config: Mapping[str, Any]) -> str | None:
    """Whose config it is: networks that transformers took over from timm are timm's."""
    model_type, architecture = config.get("model_type"), config.get("architecture")
    if isinstance(architecture, str) and model_type in (None, "timm_wrapper"):
        return "timm" if any(key in config for key in _OF_TIMM) else None
    return "transformers" if isinstance(model_type, str) and model_type else None


def _listed(index: Snapshot) -> dict[str, str]:
    """Parse which file of the folder has each tensor."""
    listed = _parse(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelFileError(f"{index.path}: has no weight_map; expected an index that save_pretrained wrote")
    for file in listed.values():
        # Of this folder alone: a name could lead anywhere else.
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(_SUFFIXES):
            raise ModelFileError(f"{index.path}: lists {printable(brief(file))}; expected a file of weights beside it")
    return listed

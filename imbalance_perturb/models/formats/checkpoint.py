"""Check and read ``torch.save`` and safetensors files: tensors by name, and what the file says of their network."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelFileError, UntrustedModelError, first_line
from imbalance_perturb.models.formats.pickles import OddPickleError, UnknownOperationError, describe, odd_pickle
from imbalance_perturb.models.formats.plain_values import plain_values
from imbalance_perturb.models.formats.recorded_options import find_hints, recorded_arch
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import (
    LOAD_ERRORS,
    TRUST_REMEDY,
    importable_from_here,
    library_remedy,
    named_globals,
    plain_path_pickle,
    some_names,
    tensors_only,
)
from imbalance_perturb.models.formats.weight_sets import find_sets, is_averaged, unnamed_averages
from imbalance_perturb.models.formats.zip_archive import Archive

SAVE_REMEDY = "save it with torch.save(model.state_dict(), 'model.pth')"


@dataclass
class Checkpoint:
    """The tensors of a file by name, as the file names them.

    Where it holds several sets of weights, names begin with the key of their set, which ``sets`` lists. Which of the
    tensors are a network's, and which names it has for them, ``architectures/readings.py`` finds out.

    ``arch``: the architecture's name where the file records one (as timm and many training scripts do).
    ``ordered``: whether the tensors come in the order in which the network defines them.
    ``hints``: other entries that may tell of the network (``hyper_parameters``, ``args``, ...), by dotted key.
    ``key``: of the only set of weights. ``averaged``: those keys whose sets are an average by the file's layout.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    arch: str | None = None
    ordered: bool = True
    hints: dict[str, str | bool | int] = field(default_factory=dict)
    key: str = ""
    sets: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()


def parse_checkpoint(content: object, path: Path, weights: str | None = None) -> Checkpoint | nn.Module:
    """Find the sets of weights in a loaded object, or the whole module where that was saved.

    Args:
        weights: which is asked for of two modules, ``ema`` or ``model``.

    Raises:
        ModelFileError: if there are none, more than one module, or not the one asked for.
    """
    found = find_sets(content, path)
    if isinstance(found, nn.Module):
        if weights is not None:
            raise ModelFileError(f"{path}: --weights {weights}: the file is one whole network; leave the option out")
        return found
    if isinstance(found, dict):
        return _select_module(found, path, weights)
    notes: list[str] = []
    key = ""
    sets: tuple[str, ...] = ()
    if len(found) == 1:
        key, tensors = found[0].key, found[0].tensors
        if key:
            notes.append(f"the tensors were taken from {key!r} of the file")
    else:
        sets = tuple(one.key for one in found)
        tensors = {f"{one.key}.{name}": tensor for one in found for name, tensor in one.tensors.items()}
    others = [name for one in found for name in one.others]
    if others:
        notes.append(
            f"entries that are no tensors were left out: {', '.join(others[:5])}{' …' if len(others) > 5 else ''}"
        )
    if unnamed := unnamed_averages(content):
        notes.append(f"the averaged parameters under {unnamed[0]!r} have no names and were not used")
    # A layer's weight is defined before its bias: a sorted list was sorted by somebody, and tells nothing.
    many = [list(one.tensors) for one in found if len(one.tensors) > 2]
    ordered = bool(many) and all(names != sorted(names) for names in many)
    averaged = tuple(one.key for one in found if one.averaged)
    hints = find_hints(content)
    tensors = _in_float32(tensors, path, notes)
    return Checkpoint(tensors, notes, recorded_arch(hints), ordered, hints, key, sets, averaged)


def _select_module(found: dict[str, nn.Module], path: Path, weights: str | None) -> nn.Module:
    wanted = {key: module for key, module in found.items() if weights is None or is_averaged(key) == (weights == "ema")}
    if len(wanted) == 1:
        return next(iter(wanted.values()))
    keys = ", ".join(map(repr, found))
    if wanted and any(map(is_averaged, found)) and weights is None:
        raise ModelFileError(f"{path}: the file holds networks under {keys}; say which: --weights ema or model")
    raise ModelFileError(f"{path}: the file holds networks under {keys}; save the right one alone")


def _in_float32(tensors: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    if any(tensor.is_quantized or tensor.layout != torch.strided for tensor in tensors.values()):
        raise ModelFileError(f"{path}: the tensors are quantised or sparse; give the float32 state_dict of before")
    others = {t.dtype for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32}
    if others:
        notes.append(f"tensors stored as {', '.join(sorted(map(str, others)))} were converted to float32")
    return {name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in tensors.items()}


def check_checkpoint(snapshot: Snapshot) -> None:
    """Refuse what ``torch.save`` cannot have written: too large, too deep, tensors beyond their storage.

    Args:
        snapshot: of a file, or of a part of an archive, in either layout.

    Raises:
        ModelFileError: naming what is wrong.
    """
    if snapshot.is_archive:
        _check_archive(snapshot.archive)
    else:
        _check_legacy(snapshot.open(), snapshot.name)


def _check_archive(archive: Archive) -> None:
    archive.check()
    name = archive.name
    if archive.has_twins:
        raise ModelFileError(f"{name}: this archive holds two parts of the same name; save the model again")
    for part, content in archive.records(lambda part: part.endswith("data.pkl")):
        try:
            storages = describe(io.BytesIO(content), strict=False, size=archive.size).storages
        except UnknownOperationError:
            continue  # torch's reader stops at the same place, and says why
        except OddPickleError as error:
            raise odd_pickle(name, part, error) from error
        archive.check_storages(storages)


def _check_legacy(file: BinaryIO, name: str) -> None:
    """A magic number, a version, the writer's system, the object, and then each storage's content."""
    size = file.seek(0, 2)
    file.seek(0)
    for _ in range(4):
        try:
            declared = sum(describe(file, strict=False, size=size).storages.values())
        except UnknownOperationError:
            return  # torch's reader stops at the same place, and says why
        except OddPickleError as error:
            raise odd_pickle(name, "", error) from error
        if declared > size:
            raise ModelFileError(
                f"{name}: this file is cut off or damaged: its tensors take {declared:,} bytes, the file has {size:,};"
                " copy or download it again"
            )


def read_checkpoint(snapshot: Snapshot, *, trust: bool) -> tuple[Any, str | None]:
    """Check and read what ``torch.save`` wrote; with a note where code had to be trusted.

    Raises:
        UntrustedModelError: if it needs code and ``trust`` is not given.
        ModelFileError: if it is damaged or cannot be read.
    """
    path = snapshot.path
    check_checkpoint(snapshot)
    try:
        with tensors_only(), plain_values(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files not written by torch
            return torch.load(snapshot.open(), map_location="cpu", weights_only=True), None
    except pickle.UnpicklingError as error:
        needed = _needed_globals(snapshot, error)
        if not needed:
            raise ModelFileError(
                f"{path}: this pickle was not written by torch.save, or it is damaged; {SAVE_REMEDY}"
            ) from error
        if not trust:
            raise UntrustedModelError(
                f"{path}: this pickle needs code to load ({some_names(needed)}), which could do anything;"
                f" {library_remedy(needed, SAVE_REMEDY)}, or, {TRUST_REMEDY}"
            ) from error
    except LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: this file is damaged or cut off ({first_line(error)}); copy or download it again"
        ) from error
    try:
        with importable_from_here(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes whose source has changed since they were saved
            content = torch.load(
                snapshot.open(), map_location="cpu", weights_only=False, pickle_module=plain_path_pickle
            )
    except LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: the code that this pickle needs cannot be found or fails ({first_line(error)});"
            " run from the folder that holds the model's own modules, or install the package they came from"
        ) from error
    return content, f"loaded with code of its own, as trusted: {some_names(needed)}"


def read_safetensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.safetensors`` file, in the order of their names.

    Raises:
        ModelFileError: if it is damaged.
    """
    from safetensors.torch import load

    try:
        return dict(sorted(load(snapshot.content).items()))  # they come in another order each time
    except LOAD_ERRORS as error:
        raise ModelFileError(
            f"{snapshot.path}: this safetensors file is damaged or cut off ({first_line(error)});"
            " copy or download it again"
        ) from error


def _needed_globals(snapshot: Snapshot, error: pickle.UnpicklingError) -> list[str]:
    try:
        with plain_values():
            needed = torch.serialization.get_unsafe_globals_in_checkpoint(snapshot.open())
        return sorted(needed) or named_globals(error)
    except LOAD_ERRORS:
        return named_globals(error)  # the layout before torch 1.6, or a pickle too odd to be taken apart

"""Check and read ``torch.save`` and safetensors files, and find a network's tensors among what people save."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelFileError, UntrustedModelError, first_line
from imbalance_perturb.models.formats.pickles import OddPickleError, UnknownOperationError, describe, odd_pickle
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import (
    LOAD_ERRORS,
    PLAIN_PATHS,
    TRUST_REMEDY,
    importable_from_here,
    library_remedy,
    named_globals,
    plain_path_pickle,
    some_names,
    tensors_only,
)
from imbalance_perturb.models.formats.zip_archive import Archive

#: Where training scripts put the tensors, in the order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
#: Averages of the parameters saved beside them: another network, which the user would have to ask for.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema")
_PREFIXES = ("module", "model", "_orig_mod", "net", "network", "backbone")
#: A loss that was part of the trained module, for instance with class weights.
_LOSS = re.compile(r"(criterion|loss|loss_fn|loss_func|\w+_loss|\w+_criterion)\.")

SAVE_REMEDY = "save it with torch.save(model.state_dict(), 'model.pth')"


@dataclass
class Checkpoint:
    """The tensors of a network by name, as the network itself would name them.

    ``arch``: the architecture's name where the file records one (as timm and many training scripts do).
    ``ordered``: whether the tensors come in the order in which the network defines them.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    arch: str | None = None
    ordered: bool = True


def parse_checkpoint(content: object, path: Path) -> Checkpoint | nn.Module:
    """Find the network's tensors in a loaded object, or the whole module where that was saved.

    Raises:
        ModelFileError: if there are none, or more than one candidate.
    """
    if isinstance(content, nn.Module):
        return content
    notes: list[str] = []
    arch = _recorded_arch(content)
    found = _unwrap(content, path, notes)
    if isinstance(found, nn.Module):
        return found
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    left = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if left:
        notes.append(f"entries that are no tensors were left out: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}")
    tensors = _without_loss(tensors, notes)
    tensors = _without_prefixes(tensors, notes)
    # A layer's weight is defined before its bias: a sorted list was sorted by somebody, and tells nothing.
    ordered = list(tensors) != sorted(tensors)
    return Checkpoint(_in_float32(tensors, path, notes), notes, arch, ordered)


def _unwrap(content: object, path: Path, notes: list[str]) -> Mapping[Any, Any] | nn.Module:
    if not isinstance(content, Mapping) or not content:
        raise ModelFileError(
            f"{path}: the file holds {_what(content)}; expected a state_dict:"
            " save it with torch.save(model.state_dict(), ...)"
        )
    found: Mapping[Any, Any] = content
    for _ in range(3):  # a Lightning or timm checkpoint is one level deep, a wrapped one two
        if _is_state_dict(found):
            return found
        key = next((key for key in WRAPPERS if isinstance(found.get(key), nn.Module | Mapping) and found[key]), None)
        if key is None:
            inner = [k for k, value in found.items() if isinstance(value, nn.Module) or _is_state_dict(value)]
            if len(inner) != 1:
                break
            key = inner[0]
        averages = [name for name in _AVERAGES if name in found and name != key]
        if averages:
            notes.append(f"the averaged parameters under {averages[0]!r} were not used, but those under {key!r}")
        notes.append(f"the tensors were taken from {key!r} of the file")
        inside = found[key]
        if isinstance(inside, nn.Module):
            return inside
        found = inside
    keys = ", ".join(repr(str(key)) for key in list(found)[:8])
    raise ModelFileError(
        f"{path}: no state_dict found in the file (its keys: {keys}); save one with torch.save(model.state_dict(), ...)"
    )


def _is_state_dict(content: object) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    # Some savers add a version or an epoch to the tensors; a checkpoint with a stray tensor is not one.
    return len(tensors) * 2 > len(content) and any(tensor.ndim >= 2 for tensor in tensors)


def _recorded_arch(content: object) -> str | None:
    arch = content.get("arch") if isinstance(content, Mapping) else None
    return arch if isinstance(arch, str) and arch else None


def _without_loss(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    dropped = [name for name in tensors if _LOSS.match(name)]
    if not dropped or len(dropped) == len(tensors):
        return tensors
    notes.append(f"the loss's tensors were left out: {', '.join(dropped[:3])}")
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def _without_prefixes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    removed = []
    while len(first := {name.partition(".")[0] for name in tensors}) == 1:
        (prefix,) = first
        if prefix not in _PREFIXES or prefix in tensors:
            break
        removed.append(prefix + ".")
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    if removed:
        notes.append(f"the prefix {''.join(removed)!r} was removed from the tensors' names")
    return tensors


def _in_float32(tensors: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    if any(tensor.is_quantized or tensor.layout != torch.strided for tensor in tensors.values()):
        raise ModelFileError(f"{path}: the tensors are quantised or sparse; give the float32 state_dict of before")
    others = {t.dtype for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32}
    if others:
        notes.append(f"tensors stored as {', '.join(sorted(map(str, others)))} were converted to float32")
    return {name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in tensors.items()}


def _what(content: object) -> str:
    if isinstance(content, Tensor):
        return f"a single tensor of shape {tuple(content.shape)}"
    return f"an empty {type(content).__name__}" if isinstance(content, Mapping) else f"a {type(content).__name__}"


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
        with tensors_only(), _paths_allowed(), warnings.catch_warnings():
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


def _paths_allowed() -> AbstractContextManager[Any]:
    return torch.serialization.safe_globals([(kind, name) for name, kind in PLAIN_PATHS.items()])


def _needed_globals(snapshot: Snapshot, error: pickle.UnpicklingError) -> list[str]:
    try:
        with _paths_allowed():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(snapshot.open())) or named_globals(error)
    except LOAD_ERRORS:
        return named_globals(error)  # the layout before torch 1.6, or a pickle too odd to be taken apart

"""Load a classifier from whatever file it was saved in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.config.settings import HEAD_ACTIVATIONS, OUTPUTS, WEIGHTS
from imbalance_perturb.errors import ModelFileError, ModelOutputError, SettingsError, first_line, printable
from imbalance_perturb.models.architectures.building import build_network, parameter_count
from imbalance_perturb.models.architectures.filling import Built
from imbalance_perturb.models.class_names import (
    ClassNames,
    attached_class_names,
    find_class_names,
    select_class_names,
)
from imbalance_perturb.models.classifier import LoadedClassifier, ModelInfo, look_at_output
from imbalance_perturb.models.formats.checkpoint import parse_checkpoint, read_checkpoint, read_safetensors
from imbalance_perturb.models.formats.exported_program import read_export
from imbalance_perturb.models.formats.snapshot import Snapshot, read_snapshot
from imbalance_perturb.models.formats.torchscript import read_torchscript
from imbalance_perturb.models.formats.trust import is_trusted

#: Of one message: tensors may have names of any length.
_MOST_TEXT = 2000


class _Opaque(NamedTuple):
    """A network that came ready-made, and what its file tells of the inputs it takes."""

    network: nn.Module
    kind: str
    batch_range: tuple[int, int | None] = (1, None)
    shape: tuple[int | None, ...] = ()  # of one input; None where any will do
    notes: tuple[str, ...] = ()


class _Asked(NamedTuple):
    """What the user says of the network."""

    arch: str | None
    factory: str | None
    head_activation: str | None
    num_classes: int | None
    weights: str | None


def load_classifier(
    path: str | Path,
    *,
    arch: str | None = None,
    factory: str | None = None,
    head_activation: str | None = None,
    outputs: str = "auto",
    trust_model_file: bool | str = False,
    input_shape: tuple[int, ...] = (3, 224, 224),
    num_classes: int | None = None,
    weights: str | None = None,
) -> LoadedClassifier:
    """A trained classifier as a frozen module that returns (N, C) logits, on the CPU and in float32.

    Args:
        path: a state_dict (``torch.save`` or safetensors), TorchScript or ``torch.export`` file; told by content.
        arch: torchvision's name of the network, with builder arguments as in ``vit_b_16,image_size=384``, or
            ``timm:NAME``; by default it is recognised from the tensors.
        factory: ``package.module:function`` that builds the network, called with ``num_classes=``.
        head_activation: what stands between the Linears of a replaced head (``relu``, ``gelu``, ``silu``,
            ``leaky_relu``, ``tanh`` or ``none``), in the first place after each where the file does not show a layer
            with tensors. By default ReLU where the numbers of its layers show a single such place, which
            ``info.assumptions`` then says; all else that the file does not show is refused.
        outputs: what the network returns: ``logits``, ``probabilities``, or ``auto`` to find out.
        trust_model_file: accept a file that needs code to load; with a SHA-256, in hexadecimal, only the file of that.
        input_shape: (channels, height, width) of an input, to try a network of unknown make on.
        num_classes: C where the caller knows it, from COUNTS: it settles what a file leaves open, and is otherwise not
            held against the network.
        weights: which weights are meant where the file holds several sets: ``ema`` (an average over training, a mean
            teacher) or ``model``. By default such a file is refused, unless they are the same.

    Raises:
        ModelFileError: if the file is missing, damaged or of another format.
        UntrustedModelError: if loading would run code and ``trust_model_file`` is not given, or is another file's hash.
        ArchitectureError: if the network is not known or the tensors do not fit it.
        ModelOutputError: if the network fails on ``input_shape`` or returns no logits.
        SettingsError: for an argument out of range.
    """
    if outputs not in OUTPUTS:
        raise SettingsError(f"outputs is {outputs!r}; expected one of {', '.join(OUTPUTS)}")
    if head_activation is not None and head_activation not in HEAD_ACTIVATIONS:
        raise SettingsError(f"head_activation is {head_activation!r}; expected one of {', '.join(HEAD_ACTIVATIONS)}")
    if weights is not None and weights not in WEIGHTS:
        raise SettingsError(f"weights is {weights!r}; expected one of {', '.join(WEIGHTS)}")
    if arch and factory:
        raise SettingsError("arch and factory are both given; each names the network, so give one")
    try:
        network = _Asked(arch, factory, head_activation, num_classes, weights)
        loaded = _load(Path(path), network, outputs, trust_model_file, input_shape)
    except (ModelFileError, ModelOutputError) as error:
        raise type(error)(_plain(str(error))) from error
    info = loaded.info
    loaded.info = replace(info, notes=tuple(map(_plain, info.notes)), assumptions=tuple(map(_plain, info.assumptions)))
    return loaded


def _plain(text: str) -> str:
    """The text on one line of printable characters: a file's names may hold line ends and terminal commands."""
    text = printable(text)
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def _load(
    path: Path, asked: _Asked, outputs: str, trust_model_file: bool | str, input_shape: tuple[int, ...]
) -> LoadedClassifier:
    snapshot = read_snapshot(path)
    kind = snapshot.format
    trust = is_trusted(snapshot, trust_model_file)
    if kind == "torchscript":
        found: _Opaque | Built = _torchscript(snapshot, trust=trust)
        names = attached_class_names(snapshot)
    elif kind == "export":
        found = _export(snapshot, trust=trust)
        names = attached_class_names(snapshot)
    else:
        found, names = _tensors(snapshot, asked, trust=trust)
    if isinstance(found, Built):
        return _name_classes(_wrap_built(found, snapshot, outputs, input_shape), names, path)
    for option in ("arch", "factory", "head_activation", "weights"):
        if getattr(asked, option) and not (option == "weights" and found.kind == "pickled module"):
            note = f"--{option.replace('_', '-')} is of no use here: the file brings its own network"
            found = found._replace(notes=(*found.notes, note))
    return _name_classes(_wrap_opaque(found, snapshot, outputs, input_shape), names, path)


def _name_classes(loaded: LoadedClassifier, found: list[ClassNames], path: Path) -> LoadedClassifier:
    names, notes = select_class_names(found, loaded.info.num_classes, path)
    classes = None if names is None else names.names
    loaded.info = replace(loaded.info, classes=classes, notes=(*loaded.info.notes, *notes))
    return loaded


def _tensors(snapshot: Snapshot, asked: _Asked, *, trust: bool) -> tuple[_Opaque | Built, list[ClassNames]]:
    note, path, kind = None, snapshot.path, snapshot.format
    if kind == "safetensors":
        parsed = parse_checkpoint(read_safetensors(snapshot), path)
        names = attached_class_names(snapshot)
    else:
        content, note = read_checkpoint(snapshot, trust=trust)
        parsed = parse_checkpoint(content, path, asked.weights)
        names = find_class_names(content)
    notes = (note,) if note else ()
    if isinstance(parsed, nn.DataParallel):
        parsed = parsed.module  # one device at a time is the caller's business
    if isinstance(parsed, nn.Module):
        return _in_float32(_Opaque(parsed, "pickled module", notes=notes)), names
    parsed.notes[:0] = notes
    if kind == "safetensors":
        parsed.ordered = False  # that format sorts them by name
    name = "safetensors" if kind == "safetensors" else "torchvision state_dict"
    return build_network(parsed, path, kind=name, **asked._asdict()), names


def _torchscript(snapshot: Snapshot, *, trust: bool) -> _Opaque:
    module = read_torchscript(snapshot, trust=trust)
    return _in_float32(_Opaque(module, "torchscript", shape=(_first_channels(module), None, None)))


def _export(snapshot: Snapshot, *, trust: bool) -> _Opaque:
    path, program = snapshot.path, read_export(snapshot, trust=trust)
    try:
        return _program(program, path)
    except ModelOutputError:
        raise
    except Exception as error:  # a graph that was read but does not hold together
        raise ModelFileError(
            f"{path}: the graph of this torch.export file is damaged ({first_line(error)}); export the model again"
        ) from error


def _program(program: torch.export.ExportedProgram, path: Path) -> _Opaque:
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(name) for name in names if isinstance(name, str)]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim < 2:
        raise ModelOutputError(
            f"{path}: this exported program takes {len(names)} inputs; expected one tensor, a batch of images:"
            " export a module that wraps it so"
        )
    batch, *rest = inputs[0].shape
    # The guards in the file are source code that torch would execute; shapes are checked without them, too.
    program._guards_code = []
    try:
        module = program.module(check_guards=False)
    except TypeError:  # torch before 2.9
        module = program.module()
    shape = tuple(size if isinstance(size, int) else None for size in rest)
    return _Opaque(module, "torch.export", _batch_range(program, batch), shape)


def _batch_range(program: torch.export.ExportedProgram, batch: int | torch.SymInt) -> tuple[int, int | None]:
    if isinstance(batch, int):
        return batch, batch
    limits = program.range_constraints.get(batch.node.expr)
    if limits is None:
        return 1, None
    # 2^31 and more is how "no limit" is written, next to infinity.
    largest = int(limits.upper) if limits.upper.is_Integer and limits.upper < 2**31 else None
    return max(1, int(limits.lower)), largest


def _first_channels(module: nn.Module) -> int | None:
    # Only the first convolution of a network without groups tells; a depthwise one takes 1 channel of many.
    for name, parameter in module.named_parameters():
        if parameter.ndim == 4 and name.endswith("weight"):
            return parameter.shape[1] if parameter.shape[1] in (1, 3, 4) and parameter.shape[2] > 1 else None
    return None


def _in_float32(found: _Opaque) -> _Opaque:
    halves = {p.dtype for p in found.network.parameters() if p.dtype in (torch.float16, torch.bfloat16, torch.float64)}
    if not halves:
        return found
    note = f"parameters stored as {', '.join(sorted(map(str, halves)))} were converted to float32"
    return found._replace(network=found.network.float(), notes=(*found.notes, note))


def _wrap_built(found: Built, snapshot: Snapshot, outputs: str, input_shape: tuple[int, ...]) -> LoadedClassifier:
    notes, path = found.notes, snapshot.path
    if found.kind == "factory" or outputs == "probabilities":
        shape = _input_for(input_shape, (found.in_channels, *(found.fixed_size or (None, None))))
        outputs, classes, more = look_at_output(found.network, shape, outputs, (1, None), str(path))
        notes = (*notes, *more)
    else:
        outputs, classes = "logits", found.num_classes
    info = ModelInfo(
        path=str(path),
        sha256=snapshot.sha256,
        format=found.kind,
        arch=found.arch,
        num_classes=classes,
        in_channels=found.in_channels,
        outputs=outputs,
        fixed_batch=None,
        fixed_size=found.fixed_size,
        parameters=parameter_count(found.network),
        notes=notes,
        assumptions=found.assumptions,
    )
    return LoadedClassifier(found.network, info)


def _wrap_opaque(found: _Opaque, snapshot: Snapshot, outputs: str, input_shape: tuple[int, ...]) -> LoadedClassifier:
    path = snapshot.path
    for module in found.network.modules():
        if getattr(module, "training", False):
            module.training = False
    smallest, largest = found.batch_range
    shape = _input_for(input_shape, found.shape)
    outputs, classes, notes = look_at_output(found.network, shape, outputs, found.batch_range, str(path))
    height, width = found.shape[1:] if len(found.shape) == 3 else (None, None)
    info = ModelInfo(
        path=str(path),
        sha256=snapshot.sha256,
        format=found.kind,
        arch=None,
        num_classes=classes,
        in_channels=found.shape[0] if len(found.shape) == 3 else None,
        outputs=outputs,
        fixed_batch=smallest if smallest == largest else None,
        fixed_size=(height, width) if height and width else None,
        parameters=parameter_count(found.network),
        notes=(*found.notes, *notes),
    )
    return LoadedClassifier(found.network, info, batch_range=found.batch_range)


def _input_for(wanted: tuple[int, ...], known: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape to try: what the model itself says, and elsewhere what the caller does."""
    if len(known) != len(wanted):
        return wanted if None in known else tuple(size for size in known if size) or wanted
    return tuple(own or size for own, size in zip(known, wanted, strict=True))

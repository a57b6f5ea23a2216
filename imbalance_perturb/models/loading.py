"""Load a classifier from whatever file it was saved in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from imbalance_perturb.config.settings import HEAD_ACTIVATIONS, OUTPUTS, WEIGHTS
from imbalance_perturb.errors import ModelFileError, ModelOutputError, SettingsError, printable
from imbalance_perturb.models.architectures.building import build_network, parameter_count
from imbalance_perturb.models.architectures.filling import Built
from imbalance_perturb.models.class_names import (
    ClassNames,
    attached_class_names,
    find_class_names,
    select_class_names,
)
from imbalance_perturb.models.classifier import LoadedClassifier, ModelInfo
from imbalance_perturb.models.corrected_file import CorrectedCard, CorrectedNetwork, attached_card
from imbalance_perturb.models.folders.building import build_folder
from imbalance_perturb.models.folders.model_folder import ModelFolder, open_model
from imbalance_perturb.models.formats.checkpoint import parse_checkpoint, read_checkpoint, read_safetensors
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import Hashed, is_trusted
from imbalance_perturb.models.opaque import Opaque, in_float32, open_export, open_torchscript
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing
from imbalance_perturb.models.trial import look_at_output

#: Shape (channels, height, width) of an input, or what makes it of how the model says that its images are prepared.
InputShape = tuple[int, ...] | Callable[[OwnPreprocessing | None], tuple[int, ...]]

#: Of one message: tensors may have names of any length.
_MOST_TEXT = 2000


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
    input_shape: InputShape = (3, 224, 224),
    num_classes: int | None = None,
    weights: str | None = None,
) -> LoadedClassifier:
    """A trained classifier as a frozen module that returns (N, C) logits, on the CPU and in float32.

    Args:
        path: a state_dict (``torch.save`` or safetensors), TorchScript or ``torch.export`` file, told by content; a
            folder of timm or transformers, also as ``local-dir:FOLDER``; or ``hf-hub:owner/name@revision``.
        arch: torchvision's name of the network, with builder arguments as in ``vit_b_16,image_size=384``, or
            ``timm:NAME``; by default it is recognised from the tensors.
        factory: ``package.module:function`` that builds the network, called with ``num_classes=``.
        head_activation: what stands between the Linears of a replaced head (``relu``, ``gelu``, ``silu``,
            ``leaky_relu``, ``tanh`` or ``none``), in the first place after each where the file does not show a layer
            with tensors. By default ReLU where the numbers of its layers show a single such place, which
            ``info.assumptions`` then says; all else that the file does not show is refused.
        outputs: what the network returns: ``logits``, ``probabilities``, or ``auto`` to find out.
        trust_model_file: accept a file that needs code to load; with a SHA-256, in hexadecimal, only the file of that.
        input_shape: (channels, height, width) of an input, to try a network of unknown make on; or a function that
            makes it of what the model says of its preprocessing, called where it is needed.
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
        loaded = _load(path, network, outputs, trust_model_file, input_shape)
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
    model: str | Path, asked: _Asked, outputs: str, trust_model_file: bool | str, input_shape: InputShape
) -> LoadedClassifier:
    found: Opaque | Built
    opened = open_model(model)
    path = opened.path
    trust = is_trusted(opened, trust_model_file)
    if isinstance(opened, ModelFolder):
        found, content = build_folder(opened, trust=trust, **asked._asdict())
        names = find_class_names(opened.naming) + find_class_names(content)
    elif opened.format == "torchscript":
        found, names = open_torchscript(opened, trust=trust), attached_class_names(opened)
    elif opened.format == "export":
        card = attached_card(opened)
        found, names = open_export(opened, trust=trust), attached_class_names(opened)
        if card is not None:
            return _corrected(found, card, opened, asked, input_shape)
    else:
        found, names = _tensors(opened, asked, trust=trust)
    if isinstance(found, Built):
        return _name_classes(_wrap_built(found, opened, asked, outputs, input_shape), names, path)
    for option in ("arch", "factory", "head_activation", "weights"):
        if getattr(asked, option) and not (option == "weights" and found.kind == "pickled module"):
            note = f"--{option.replace('_', '-')} is of no use here: the file brings its own network"
            found = found._replace(notes=(*found.notes, note))
    return _name_classes(_wrap_opaque(found, opened, asked, outputs, input_shape), names, path)


def _corrected(
    found: Opaque, card: CorrectedCard, snapshot: Snapshot, asked: _Asked, input_shape: InputShape
) -> LoadedClassifier:
    """What ``export`` wrote, which says of itself all that is otherwise found out."""
    if card.takes_pixels:
        raise ModelFileError(
            f"{snapshot.path}: was exported with its preprocessing, for programs that hand it pixels; give one that was"
            " exported without --with-preprocessing"
        )
    found = found._replace(network=CorrectedNetwork(found.network), kind="torch.export, corrected by imbperturb")
    loaded = _wrap_opaque(found, snapshot, asked, "logits", lambda _: _shape(input_shape, card.own_preprocessing))
    loaded.card, loaded.preprocessing = card, card.own_preprocessing
    note = f"corrected when it was exported, from {card.model.file}: its own predictions are taken, nothing is added"
    loaded.info = replace(loaded.info, arch=card.model.arch, classes=card.names, notes=(*loaded.info.notes, note))
    return loaded


def _name_classes(loaded: LoadedClassifier, found: list[ClassNames], path: Path) -> LoadedClassifier:
    names, notes = select_class_names(found, loaded.info.num_classes, path)
    classes = None if names is None else names.names
    loaded.info = replace(loaded.info, classes=classes, notes=(*loaded.info.notes, *notes))
    return loaded


def _tensors(snapshot: Snapshot, asked: _Asked, *, trust: bool) -> tuple[Opaque | Built, list[ClassNames]]:
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
        return in_float32(Opaque(parsed, "pickled module", notes=notes)), names
    parsed.notes[:0] = notes
    if kind == "safetensors":
        parsed.ordered = False  # that format sorts them by name
    name = "safetensors" if kind == "safetensors" else "torchvision state_dict"
    return build_network(parsed, path, kind=name, **asked._asdict()), names


def _wrap_built(
    found: Built, snapshot: Hashed, asked: _Asked, outputs: str, input_shape: InputShape
) -> LoadedClassifier:
    path, network, notes = snapshot.path, found.network, found.notes
    if found.kind == "factory" or outputs == "probabilities":
        wanted = _shape(input_shape, found.preprocessing)
        shape = _input_for(wanted, (found.in_channels, *(found.fixed_size or (None, None))))
        looked = look_at_output(network, shape, outputs, (1, None), str(path), num_classes=asked.num_classes)
        network, outputs, classes, notes = looked.network, looked.outputs, looked.num_classes, (*notes, *looked.notes)
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
        parameters=parameter_count(network),
        notes=notes,
        assumptions=found.assumptions,
    )
    return LoadedClassifier(network, info, preprocessing=found.preprocessing)


def _wrap_opaque(
    found: Opaque, snapshot: Hashed, asked: _Asked, outputs: str, input_shape: InputShape
) -> LoadedClassifier:
    path = snapshot.path
    for module in found.network.modules():
        if getattr(module, "training", False):
            module.training = False
    height, width = found.shape[1:] if len(found.shape) == 3 else (None, None)
    fixed_size = (height, width) if height and width else None
    shape = _input_for(_shape(input_shape, None), found.shape)
    looked = look_at_output(
        found.network,
        shape,
        outputs,
        found.batch_range,
        str(path),
        num_classes=asked.num_classes,
        fixed_size=fixed_size,
    )
    smallest, largest = looked.batch_range
    info = ModelInfo(
        path=str(path),
        sha256=snapshot.sha256,
        format=found.kind,
        arch=None,
        num_classes=looked.num_classes,
        in_channels=found.shape[0] if len(found.shape) == 3 else None,
        outputs=looked.outputs,
        fixed_batch=smallest if smallest == largest else None,
        fixed_size=fixed_size,
        parameters=parameter_count(found.network),
        notes=(*found.notes, *looked.notes),
    )
    return LoadedClassifier(looked.network, info, batch_range=looked.batch_range)


def _shape(input_shape: InputShape, own: OwnPreprocessing | None) -> tuple[int, ...]:
    return input_shape(own) if callable(input_shape) else input_shape


def _input_for(wanted: tuple[int, ...], known: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape to try: what the model itself says, and elsewhere what the caller does."""
    if len(known) != len(wanted):
        return wanted if None in known else tuple(size for size in known if size) or wanted
    return tuple(own or size for own, size in zip(known, wanted, strict=True))

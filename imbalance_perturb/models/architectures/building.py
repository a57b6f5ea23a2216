"""Build the network that a file's tensors belong to, by recognition, by name or by the user's own function."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.choosing import Asked, choose, put_in_front, remainder, where_notes
from imbalance_perturb.models.architectures.factories import build_by_factory
from imbalance_perturb.models.architectures.filling import OTHER_WAYS, Built, mismatch, put_tensors
from imbalance_perturb.models.architectures.fitting import Fits, fit_readings
from imbalance_perturb.models.architectures.heads import HeadHints
from imbalance_perturb.models.architectures.hints import UNSEEN, check_hints, explain
from imbalance_perturb.models.architectures.recognition import (
    Difference,
    Match,
    Shapes,
    is_auxiliary,
    match_architecture,
    recognise,
)
from imbalance_perturb.models.architectures.skeleton import classification_names
from imbalance_perturb.models.architectures.timm_fitting import fit_timm
from imbalance_perturb.models.architectures.timm_networks import OTHER_FILES, is_timm_name
from imbalance_perturb.models.formats.checkpoint import Checkpoint

#: In names of tensors that transformers saves.
_OF_TRANSFORMERS = re.compile(
    r"(^|\.)(embeddings\.patch_embeddings|embedder\.embedder|embeddings\.convolution|conv_stem\.convolution"
    r"|encoder\.(layer|layers|stages|block)\.\d+)\."
)

#: Below this part of their tensors a file and an architecture have nothing to do with one another.
_ALIKE = 0.02


def build_network(
    checkpoint: Checkpoint,
    path: Path,
    *,
    arch: str | None,
    factory: str | None,
    kind: str,
    head_activation: str | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
) -> Built:
    """Build the network for a checkpoint's tensors.

    Args:
        arch: ``resnet50``, ``vit_b_16,image_size=384``, ``timm:NAME`` or None to recognise it.
        factory: ``package.module:function``, called with ``num_classes=``.
        kind: the file's format, to be named in the result.
        head_activation: what stands between the Linears of a replaced head, where the file does not show it.
        num_classes: C where the caller knows it, for networks whose head cannot be told from the tensors.
        weights: which of several sets of weights, ``ema`` or ``model``.

    Raises:
        ArchitectureError: if there is no such network or the tensors do not fit it.
    """
    hints = HeadHints(checkpoint.ordered, head_activation)
    asked = Asked(weights, num_classes)
    if factory is not None:
        return noting_unused(build_by_factory(checkpoint, path, factory, asked), head_activation)
    if arch is None:
        return _by_recognition(checkpoint, path, kind, hints, asked)
    name, options = parse_arch(arch)
    if name.startswith("timm:"):
        built = fit_timm(checkpoint, path, name.removeprefix("timm:"), options, asked)
        return noting_unused(built, head_activation)
    if name not in classification_names():
        close = difflib.get_close_matches(name, classification_names(), 3, 0.5)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"known are {', '.join(classification_names()[:5])}, ..."
        )
        raise ArchitectureError(f"--arch {name}: torchvision has no classification network of this name; {hint}")

    def match(shapes: Shapes, _: str | None) -> Match | tuple[str, Difference]:
        found = match_architecture(name, shapes, hints, **options)
        return found if isinstance(found, Match) else (name, found)

    fits = fit_readings(checkpoint, [name], match)
    if fits.closest is not None:
        raise mismatch(path, f"the tensors do not fit --arch {name}", fits.closest.difference, explain(fits.tensors))
    return _fill(fits, checkpoint, path, kind, hints, asked)


def noting_unused(built: Built, head_activation: str | None) -> Built:
    """Add a note where ``--head-activation`` was given for a network that has no use for it."""
    if head_activation is None:
        return built
    note = f"--head-activation is of no use here: {built.arch} has no replaced head with layers that the file hides"
    return built._replace(notes=(*built.notes, note))


def parse_arch(text: str) -> tuple[str, dict[str, Any]]:
    """Parse ``name,key=value,...`` into name and builder arguments (numbers and true/false as such).

    Raises:
        ArchitectureError: if it is malformed.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"--arch {text}: {pair!r} is not key=value, as in vit_b_16,image_size=384")
        options[key] = _value(value)
    for key in ("num_classes", "weights", *OTHER_FILES):
        if key in options:
            raise ArchitectureError(f"--arch {text}: leave out {key}, which the model file gives")
    return name, options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _by_recognition(checkpoint: Checkpoint, path: Path, kind: str, hints: HeadHints, asked: Asked) -> Built:
    def match(shapes: Shapes, name: str | None) -> Match | tuple[str, Difference]:
        if name is None:
            return recognise(shapes, hints)
        found = match_architecture(name, shapes, hints)
        return found if isinstance(found, Match) else (name, found)

    fits = fit_readings(checkpoint, classification_names(), match)
    recorded = checkpoint.arch
    if fits.closest is not None:
        alike, closest, difference = fits.closest
        if any(_OF_TRANSFORMERS.search(tensor) for tensor in checkpoint.tensors):
            raise ArchitectureError(
                f"{path}: the tensors are named as transformers names them, and no config.json beside the file says"
                " which network it is; keep config.json and preprocessor_config.json there, or give the whole folder"
            )
        named = recorded and (recorded == checkpoint.hints.get("arch") or is_timm_name(recorded))
        hint = f"the file calls its network {recorded!r}: try --arch timm:{recorded}; otherwise " if named else ""
        hint = explain(fits.tensors) or hint
        if alike < _ALIKE:
            names = ", ".join(list(fits.tensors)[:3])
            raise ArchitectureError(
                f"{path}: the network is not recognised; torchvision has none with tensors such as {names}; {hint}"
                f"{difference.remedy or OTHER_WAYS}"
            )
        raise mismatch(path, f"the network is not recognised; the closest is {closest}", difference, hint)
    return _fill(fits, checkpoint, path, kind, hints, asked, recognised=True)


def _fill(
    fits: Fits,
    checkpoint: Checkpoint,
    path: Path,
    kind: str,
    hints: HeadHints,
    asked: Asked,
    *,
    recognised: bool = False,
) -> Built:
    fit, chosen = choose(fits.found, path, asked)
    match = fit.network
    assert isinstance(match, Match)
    if recognised:
        match.notes += check_hints(match, checkpoint, path)
        match.notes.insert(0, f"recognised as torchvision's {match.arch} from its tensors' names and shapes")
    if match.unsettled is not None:
        arch, option = match.arch, match.unsettled
        raise ArchitectureError(
            f"{path}: {arch} has an option {option}, which changes predictions and which the file does not show; say"
            f" --arch {arch},{option}=true if training began from torchvision's pretrained parameters (weights=... or"
            f" pretrained=True switch it on), else --arch {arch},{option}=false"
        )
    rest = remainder(fit, fits.found, checkpoint, path, whole=False)
    put_tensors(match.network, fit.tensors, assign=True)
    left = [name for name, t in (*match.network.named_parameters(), *match.network.named_buffers()) if t.is_meta]
    if left:
        raise ArchitectureError(f"the tensors {', '.join(left[:3])} of {match.arch} are not in the file; {OTHER_WAYS}")
    notes = [*checkpoint.notes, *fits.notes, *where_notes(fit, checkpoint), *chosen, *match.notes]
    if any(is_auxiliary(name) for name in fit.reading.tensors):
        notes.append("the auxiliary heads, which serve training only, were left out")
    built = Built(
        put_in_front(match.network, rest.front),
        kind,
        match.arch,
        match.num_classes,
        match.in_channels,
        match.fixed_size,
        (*notes, *rest.notes, UNSEEN),
        (*match.assumptions, *rest.assumptions),
    )
    return built if match.activated else noting_unused(built, hints.activation)


def parameter_count(network: nn.Module) -> int:
    """Count the parameters of a network, each once."""
    return sum(parameter.numel() for parameter in network.parameters() if isinstance(parameter, torch.Tensor))

"""Build the network that a file's tensors belong to, by recognition, by name or by the user's own function."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.factories import build_by_factory
from imbalance_perturb.models.architectures.filling import OTHER_WAYS, Built, mismatch, put_tensors
from imbalance_perturb.models.architectures.heads import HeadHints
from imbalance_perturb.models.architectures.recognition import (
    Difference,
    Match,
    canonical_names,
    match_architecture,
    recognise,
)
from imbalance_perturb.models.architectures.skeleton import classification_names, is_counter
from imbalance_perturb.models.architectures.timm_networks import OTHER_FILES, build_by_timm, is_timm_name
from imbalance_perturb.models.formats.checkpoint import Checkpoint

#: In names of tensors that transformers saves.
_OF_TRANSFORMERS = re.compile(
    r"(^|\.)(embeddings\.patch_embeddings|embedder\.embedder|embeddings\.convolution|conv_stem\.convolution"
    r"|encoder\.(layer|layers|stages|block)\.\d+)\."
)


def build_network(
    checkpoint: Checkpoint,
    path: Path,
    *,
    arch: str | None,
    factory: str | None,
    kind: str,
    head_activation: str | None = None,
    num_classes: int | None = None,
) -> Built:
    """Build the network for a checkpoint's tensors.

    Args:
        arch: ``resnet50``, ``vit_b_16,image_size=384``, ``timm:NAME`` or None to recognise it.
        factory: ``package.module:function``, called with ``num_classes=``.
        kind: the file's format, to be named in the result.
        head_activation: what stands between the Linears of a replaced head, where the file does not show it.
        num_classes: C where the caller knows it, for networks whose head cannot be told from the tensors.

    Raises:
        ArchitectureError: if there is no such network or the tensors do not fit it.
    """
    hints = HeadHints(checkpoint.ordered, head_activation)
    if factory is not None:
        return noting_unused(build_by_factory(checkpoint, path, factory, num_classes), head_activation)
    if arch is None:
        return _by_recognition(checkpoint, path, kind, hints)
    name, options = parse_arch(arch)
    if name.startswith("timm:"):
        built = build_by_timm(checkpoint, path, name.removeprefix("timm:"), options)
        return noting_unused(built, head_activation)
    if name not in classification_names():
        close = difflib.get_close_matches(name, classification_names(), 3, 0.5)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"known are {', '.join(classification_names()[:5])}, ..."
        )
        raise ArchitectureError(f"--arch {name}: torchvision has no classification network of this name; {hint}")
    names = canonical_names(checkpoint.tensors)
    found = match_architecture(name, _shapes(checkpoint, names), hints, **options)
    if isinstance(found, Difference):
        raise mismatch(path, f"the tensors do not fit --arch {name}", found)
    return _fill(found, checkpoint, names, path, kind, hints)


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


def _by_recognition(checkpoint: Checkpoint, path: Path, kind: str, hints: HeadHints) -> Built:
    names = canonical_names(checkpoint.tensors)
    found = recognise(_shapes(checkpoint, names), hints)
    recorded = checkpoint.arch
    if not isinstance(found, Match):
        closest, difference = found
        hint = f"the file calls its network {recorded!r}: try --arch timm:{recorded}; otherwise " if recorded else ""
        if any(_OF_TRANSFORMERS.search(tensor) for tensor in checkpoint.tensors):
            raise ArchitectureError(
                f"{path}: the tensors are named as transformers names them, and no config.json beside the file says"
                " which network it is; keep config.json and preprocessor_config.json there, or give the whole folder"
            )
        raise mismatch(path, f"the network is not recognised; the closest is {closest}", difference, hint)
    if recorded and recorded != found.arch:
        if is_timm_name(recorded):
            # Some of timm's variants differ from torchvision's networks only in layers without tensors.
            raise ArchitectureError(
                f"{path}: the file calls its network {recorded!r}, but its tensors also fit torchvision's {found.arch};"
                f" say which it is: --arch timm:{recorded} or --arch {found.arch}"
            )
        found.notes.append(f"the file calls its network {recorded!r}")
    found.notes.insert(0, f"recognised as torchvision's {found.arch} from its tensors' names and shapes")
    return _fill(found, checkpoint, names, path, kind, hints)


def _fill(
    match: Match, checkpoint: Checkpoint, names: dict[str, str], path: Path, kind: str, hints: HeadHints
) -> Built:
    if match.unsettled is not None:
        arch, option = match.arch, match.unsettled
        raise ArchitectureError(
            f"{path}: {arch} has an option {option}, which changes predictions and which the file does not show; say"
            f" --arch {arch},{option}=true if training began from torchvision's pretrained parameters (weights=... or"
            f" pretrained=True switch it on), else --arch {arch},{option}=false"
        )
    tensors = {name: checkpoint.tensors[in_file] for in_file, name in names.items()}
    put_tensors(match.network, tensors, assign=True)
    left = [name for name, t in (*match.network.named_parameters(), *match.network.named_buffers()) if t.is_meta]
    if left:
        raise ArchitectureError(f"the tensors {', '.join(left[:3])} of {match.arch} are not in the file; {OTHER_WAYS}")
    dropped = [name for name in checkpoint.tensors if name not in names and not is_counter(name)]
    notes = list(match.notes)
    if dropped:
        notes.append("the auxiliary heads, which serve training only, were left out")
    notes = [*checkpoint.notes, *notes]
    built = Built(
        match.network,
        kind,
        match.arch,
        match.num_classes,
        match.in_channels,
        match.fixed_size,
        tuple(notes),
        match.assumptions,
    )
    return built if match.activated else noting_unused(built, hints.activation)


def _shapes(checkpoint: Checkpoint, names: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(checkpoint.tensors[in_file].shape) for in_file, name in names.items()}


def parameter_count(network: nn.Module) -> int:
    """Count the parameters of a network, each once."""
    return sum(parameter.numel() for parameter in network.parameters() if isinstance(parameter, torch.Tensor))

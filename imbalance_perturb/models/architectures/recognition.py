"""Recognise a torchvision architecture from the names and shapes of a file's tensors."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from imbalance_perturb.models.architectures.heads import Head, HeadHints, rebuild_head
from imbalance_perturb.models.architectures.skeleton import (
    EmptyOnMeta,
    Skeleton,
    build_skeleton,
    classification_names,
    is_counter,
    skeleton,
)

Shapes = Mapping[str, tuple[int, ...]]

#: For each family of architectures a tensor that all of it have, so that only some need to be built. Networks that
#: a newer torchvision adds belong to no family and are always tried.
_FAMILIES = (
    ("layer1.0.conv1.weight", r"resne|wide_resnet"),
    ("features.denseblock1.denselayer1.norm1.weight", r"densenet"),
    ("encoder.pos_embedding", r"vit_"),
    ("features.1.0.layer_scale", r"convnext"),
    ("features.1.0.attn.logit_scale", r"swin_v2"),
    ("features.1.0.attn.qkv.weight", r"swin_[a-z]$"),
    ("features.1.conv.0.0.weight", r"mobilenet_v2"),
    ("features.1.block.0.0.weight", r"mobilenet_v3"),
    ("features.1.0.block.0.0.weight", r"efficientnet"),
    ("trunk_output.block1.block1-0.proj.0.weight", r"regnet"),
    ("stage2.0.branch1.0.weight", r"shufflenet"),
    ("layers.0.weight", r"mnasnet"),
    ("blocks.0.layers.0.layers.MBconv.layers.conv_a.0.weight", r"maxvit"),
    ("inception3a.branch1.conv.weight", r"googlenet"),
    ("Mixed_5b.branch1x1.conv.weight", r"inception"),
    ("features.3.squeeze.weight", r"squeezenet"),
    ("features.0.weight", r"vgg|alexnet"),
)
_AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
#: Names that torchvision's own downloads had before the architecture's names changed.
_RENAMED = (
    (
        re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))"),
        r"\1\2",
    ),
    (re.compile(r"(encoder\.layers\..*\.mlp)\.linear_1\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(encoder\.layers\..*\.mlp)\.linear_2\.(weight|bias)"), r"\1.3.\2"),
)


@dataclass
class Difference:
    """How a file's tensors differ from an architecture's."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    reason: str | None = None
    remedy: str | None = None
    body_fits: bool = False

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {word} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for word, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.reshaped),
            )
            if names
        ]
        return self.reason or "tensors: " + "; ".join(parts)


@dataclass
class Match:
    """A network that a file's tensors fit, with its parameters on the meta device.

    ``assumptions``: what the tensors do not show, where another choice would change predictions; ``unsettled``: an
    option of the architecture that they do not show either, and that no choice is common enough for.
    """

    network: nn.Module
    arch: str
    num_classes: int
    in_channels: int
    fixed_size: tuple[int, int] | None
    notes: list[str]
    assumptions: tuple[str, ...] = ()
    activated: bool = False
    unsettled: str | None = None


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """For each tensor that predictions need, the name in the file and the name torchvision has for it today."""
    found = {}
    for name in names:
        if is_counter(name) or is_auxiliary(name):
            continue
        now = name
        for pattern, replacement in _RENAMED:
            now = pattern.sub(replacement, now)
        found[name] = now
    return found


def is_auxiliary(name: str) -> bool:
    """Whether a tensor is of an auxiliary head, which serves training only."""
    return bool(_AUXILIARY.match(name))


def recognise(shapes: Shapes, hints: HeadHints | None = None) -> Match | tuple[str, Difference]:
    """The architecture that the tensors are of, or else the closest one and how it differs."""
    closest: tuple[float, str, Difference] | None = None
    for name in _candidates(shapes):
        found = match_architecture(name, shapes, hints)
        if isinstance(found, Match):
            return found
        if found.reason:  # all below the head fits, so no other will
            return name, found
        near = likeness(name, shapes)
        if closest is None or near > closest[0]:
            closest = (near, name, found)
    assert closest is not None  # torchvision has architectures
    return closest[1], closest[2]


def likeness(name: str, shapes: Shapes) -> float:
    """How much of an architecture and of a file's tensors are the same, from 0 to 1."""
    expected = skeleton(name).shapes
    return sum(1 for key, shape in expected.items() if shapes.get(key) == shape) / (
        len(set(expected) | set(shapes)) or 1
    )


def family_key(name: str) -> str | None:
    """A tensor that all architectures of the family of this one have; None for an architecture of no known family."""
    return next((key for key, pattern in _FAMILIES if re.match(pattern, name)), None)


def match_architecture(name: str, shapes: Shapes, hints: HeadHints | None = None, **options: Any) -> Match | Difference:
    """The architecture called ``name`` fitted to the tensors (head, input channels, image size), or the difference.

    ``options`` go to torchvision's builder and win over what the tensors show.
    """
    if "heads.pre_logits.weight" in shapes and name.startswith("vit_"):
        options = {"representation_size": shapes["heads.pre_logits.weight"][0], **options}
    try:
        base = skeleton(name, tuple(sorted(options.items())))
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        return Difference(reason=f"torchvision cannot build it with {given}: {error}")
    below_head = base.container + "."
    stem = f"{base.stem}.weight"
    flexible = {stem: 1} if "image_size" in options else {stem: 1, "encoder.pos_embedding": 1}
    difference = compare(
        {key: shape for key, shape in shapes.items() if not key.startswith(below_head)},
        {key: shape for key, shape in base.shapes.items() if not key.startswith(below_head)},
        flexible,
    )
    if len(difference):
        if not any(key.startswith(below_head) for key in shapes):
            difference.missing.append(f"{base.head}.weight")
        return difference
    head = _fit_head(base, shapes, hints)
    if isinstance(head, Difference):
        return head
    if name.startswith("vit_"):
        size = _image_size(base.module, shapes["encoder.pos_embedding"][1])
        if size is None:
            return Difference(reshaped=["encoder.pos_embedding, which is of no square image"])
        options["image_size"] = size
    return _assemble(name, base, head, shapes, options)


def compare(found: Shapes, expected: Shapes, flexible: Mapping[str, int] | None = None) -> Difference:
    """How ``found`` differs from ``expected``; a tensor in ``flexible`` may differ along that dimension."""
    difference = Difference(
        missing=[key for key in expected if key not in found],
        unexpected=[key for key in found if key not in expected],
    )
    for key, shape in expected.items():
        if key not in found:
            continue
        ours, theirs = list(shape), list(found[key])
        if flexible and key in flexible and len(ours) == len(theirs):
            ours[flexible[key]] = theirs[flexible[key]]
        if ours != theirs:
            difference.reshaped.append(f"{key} {theirs} instead of {list(shape)}")
    return difference


def _assemble(name: str, base: Skeleton, head: Head, shapes: Shapes, options: dict[str, Any]) -> Match | Difference:
    network = build_skeleton(name, **{**options, "num_classes": head.num_classes})
    notes, unsettled = [], None
    if head.note:
        notes.append(head.note)
        network.set_submodule(base.container, copy.deepcopy(head.module).eval())
    channels = shapes[f"{base.stem}.weight"][1]
    if channels != 3:
        _set_channels(network, base.stem, channels)
        notes.append(f"the first convolution takes {channels} channel{'s' if channels > 1 else ''} instead of 3")
    difference = compare(shapes, {k: tuple(t.shape) for k, t in network.state_dict().items() if not is_counter(k)})
    if len(difference):
        return difference
    if hasattr(network, "transform_input") and "transform_input" not in options:
        unsettled = "transform_input"
    return Match(
        network,
        name,
        head.num_classes,
        channels,
        _fixed_size(name, network),
        notes,
        head.assumptions,
        head.activated,
        unsettled,
    )


def _candidates(shapes: Shapes) -> list[str]:
    """The architectures that may fit, and some for comparison where none can."""
    families = {name: family_key(name) for name in classification_names()}
    possible = [name for name, family in families.items() if family is None or family in shapes]
    return possible or list({family: name for name, family in families.items()}.values())


def _fit_head(base: Skeleton, shapes: Shapes, hints: HeadHints | None) -> Head | Difference:
    """The head of the file: the architecture's own with another number of classes, or a replaced one."""
    prefix = base.container + "."
    given = {key: shape for key, shape in shapes.items() if key.startswith(prefix)}
    own = {key: shape for key, shape in base.shapes.items() if key.startswith(prefix)}
    rows = given.get(f"{base.head}.weight", (0,))[0]
    expected = {key: (rows, *shape[1:]) if key.startswith(base.head + ".") else shape for key, shape in own.items()}
    if given == expected:
        return Head(base.module, rows, "")
    module = base.module.get_submodule(base.container)
    width = next((m.in_features for m in module.modules() if isinstance(m, nn.Linear)), 0)
    with EmptyOnMeta():
        head = rebuild_head(
            {key.removeprefix(prefix): shape for key, shape in given.items()}, module, width, base.container, hints
        )
    if isinstance(head, Head):
        return head
    difference = compare(given, expected)
    difference.reason, difference.remedy = f"the body fits, but {head.reason}", head.remedy
    difference.body_fits = True
    return difference


def _image_size(network: nn.Module, positions: int) -> int | None:
    patches = math.isqrt(max(positions - 1, 0))
    return patches * int(network.patch_size) if patches * patches == positions - 1 > 0 else None  # type: ignore[arg-type]


def _set_channels(network: nn.Module, stem: str, channels: int) -> None:
    old = network.get_submodule(stem)
    assert isinstance(old, nn.Conv2d)
    new = copy.copy(old)
    new.in_channels = channels
    shape = (old.out_channels, channels, *old.kernel_size)
    new._parameters = {**old._parameters, "weight": nn.Parameter(torch.empty(shape, device="meta"))}
    network.set_submodule(stem, new)


def _fixed_size(name: str, network: nn.Module) -> tuple[int, int] | None:
    if name.startswith("vit_"):
        return (int(network.image_size), int(network.image_size))  # type: ignore[arg-type]
    # MaxViT cuts its maps into windows laid out for one input size (torchvision's default).
    return (224, 224) if name == "maxvit_t" else None

"""Compute the weights that a file holds in parts: pruned, weight-normalised or spectrally normalised."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from imbalance_perturb.method.private_torch import find

#: What a weight that is computed from others ends in, the longest names first.
_PARTS = re.compile(r"(.*?)(?:(\w+)_(orig|mask|g|v|u)|parametrizations\.(\w+)\.(original\d?|0\._u|0\._v))")
_LONGEST_NAME = 500


def compute_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Replace the parts of weights by the weights, as torch's modules compute them when they predict.

    Known are masks of ``torch.nn.utils.prune``, ``weight_norm`` and ``spectral_norm``, each in its own layout and in
    that of ``torch.nn.utils.parametrizations``; anything else stays as it is. With a note on what was computed.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _split(name)
        if found:
            module, old, old_part, new, new_part = found.groups()
            groups.setdefault(f"{module}{old or new}", {})[old_part or new_part] = tensor
    computed = {name: made for name, parts in groups.items() if (made := _compute(parts)) and name not in tensors}
    if not computed:
        return dict(tensors), ()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _split(name)
        whole = f"{found[1]}{found[2] or found[4]}" if found else name
        if whole in computed:
            result[whole] = computed[whole][1]
        else:
            result[name] = tensor
    kinds = sorted({kind for kind, _ in computed.values()})
    return result, (f"{len(computed)} weights were computed from their parts ({', '.join(kinds)})",)


def _split(name: str) -> re.Match[str] | None:
    return _PARTS.fullmatch(name) if len(name) <= _LONGEST_NAME else None


def _compute(parts: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    match sorted(parts):
        case ["mask", "orig"] if parts["mask"].shape == parts["orig"].shape:
            return "pruning masks", parts["mask"].to(parts["orig"].dtype) * parts["orig"]
        case ["g", "v"]:
            return _weight_norm(parts["v"], parts["g"])
        case ["original0", "original1"]:
            return _weight_norm(parts["original1"], parts["original0"])
        case ["orig", "u", "v"]:
            return _spectral_norm(parts["orig"], parts["u"], parts["v"])
        case ["0._u", "0._v", "original"]:
            return _spectral_norm(parts["original"], parts["0._u"], parts["0._v"])
    return None


def _weight_norm(direction: Tensor, length: Tensor) -> tuple[str, Tensor] | None:
    """The weight ``length * direction / norm(direction)``, the norm over all dimensions but that of ``length``."""
    if length.ndim == 0:
        dim = -1
    else:
        along = [i for i, size in enumerate(length.shape) if size != 1]
        if length.ndim != direction.ndim or len(along) > 1:
            return None
        dim = along[0] if along else 0
        if length.shape[dim] != direction.shape[dim]:
            return None
    return "weight norm", find("torch._weight_norm")(direction, length, dim)


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> tuple[str, Tensor] | None:
    """The weight divided by its largest singular value, as its two vectors estimate that."""
    if weight.ndim < 2 or left.shape != weight.shape[:1] or right.shape != weight.flatten(1).shape[1:]:
        return None
    return "spectral norm", weight / torch.dot(left, torch.mv(weight.flatten(1), right))

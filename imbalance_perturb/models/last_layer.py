"""Find the layer whose rows are the classes' weight vectors, in any network, by what it does to the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.models.classifier import LoadedClassifier

#: How far logits may be from what scaled rows predict, relative to the largest one without its bias.
_TOLERANCE = 1e-3

#: Below this, relative to the bias, float32 does not tell what the rows contribute.
_NOTHING = 1e-5


class LastLayer(NamedTuple):
    """The layer with z = W h + b: ``norms`` (C,) of the rows of W, and ``bias`` (C,), float64 on the CPU.

    ``name`` is the weight's in the file's network.
    """

    name: str
    norms: Tensor
    bias: Tensor


def find_last_layer(model: LoadedClassifier, x: Tensor) -> LastLayer | str:
    """The last layer of a network, or why there is none to be had.

    Neither types nor names decide, which a TorchScript or exported file may have lost, but a trial: when the rows of
    the right weight are scaled, one factor for each class, z - b scales by the same factors and nothing else changes.

    Args:
        model: its parameters are changed for the trial and put back.
        x: (N, ...) a few inputs, on the model's device.
    """
    if model.info.outputs == "probabilities":
        return "the model returns probabilities, and the scale of its logits is lost in them"
    parameters = dict(model.network.named_parameters())
    if not parameters:
        return "the file holds no parameters apart from its graph, so the last layer's weights cannot be told"
    classes = model.info.num_classes
    names = [name for name, p in parameters.items() if p.ndim >= 2 and len(p) == classes and p.is_floating_point()]
    with torch.no_grad(), full_precision(x.device):
        logits = model(x)
        for name in reversed(names):
            bias = _bias_beside(name, parameters)
            if _scales_logits(model, parameters[name], bias, x, logits):
                norms = parameters[name].double().flatten(1).norm(dim=1).cpu()
                if (norms == 0).any():
                    return f"the last layer {name} has a row of zeros"
                return LastLayer(name, norms, bias.double().cpu())
    return "no layer of the network gives the logits as a linear map, with one row of weights for each class"


def _bias_beside(name: str, parameters: Mapping[str, Tensor]) -> Tensor:
    weight = parameters[name]
    bias = parameters.get(name.removesuffix("weight") + "bias") if name.endswith("weight") else None
    if bias is None or bias.shape != weight.shape[:1]:
        return torch.zeros(len(weight), device=weight.device, dtype=weight.dtype)
    return bias


def _scales_logits(model: LoadedClassifier, weight: Tensor, bias: Tensor, x: Tensor, logits: Tensor) -> bool:
    # Distinct and none of them 1, so that neither a permutation nor a layer without effect can pass.
    scale = torch.linspace(1.25, 2.0, len(weight), dtype=weight.dtype, device=weight.device)
    with _scaled(weight, scale):
        after = model(x)
    own = logits - bias
    size = own.abs().amax()
    told = size > _NOTHING * logits.abs().amax()
    return bool(told and ((after - own * scale - bias).abs() <= _TOLERANCE * size).all())


@contextmanager
def _scaled(weight: Tensor, scale: Tensor) -> Iterator[None]:
    kept = weight.clone()
    try:
        weight.mul_(scale.reshape(-1, *[1] * (weight.ndim - 1)))
        yield
    finally:
        weight.copy_(kept)

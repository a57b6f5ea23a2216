"""Build the network of a folder, by its own config or as the user says, and read how its images are prepared."""

from __future__ import annotations

from typing import Any

from torch import nn

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models.architectures.building import build_network, noting_unused
from imbalance_perturb.models.architectures.choosing import Asked
from imbalance_perturb.models.architectures.filling import Built
from imbalance_perturb.models.folders.model_folder import ModelFolder
from imbalance_perturb.models.folders.timm_folder import build_timm_folder, read_timm_preprocessing
from imbalance_perturb.models.folders.transformers_folder import build_transformers_folder, read_preprocessing
from imbalance_perturb.models.formats.checkpoint import parse_checkpoint
from imbalance_perturb.models.own_preprocessing import refuse


def build_folder(
    folder: ModelFolder,
    *,
    trust: bool,
    arch: str | None,
    factory: str | None,
    head_activation: str | None,
    num_classes: int | None,
    weights: str | None,
) -> tuple[Built, Any]:
    """Build the network of a folder and fill it; with what its weights were read as.

    Args:
        folder: which file has what.
        trust: whether weights may run code of their own.
        arch, factory, head_activation: what the user says of the network, which wins over the config.
        num_classes: C where the caller knows it.
        weights: ``ema`` or ``model``, where a file holds several sets.

    Raises:
        ArchitectureError: if the network is not known here or the tensors do not fit it.
        ModelFileError: if a file is damaged or is not what its config says.
        UntrustedModelError: if the weights need code and ``trust`` is not given.
    """
    content, notes = folder.read_weights(trust=trust)
    notes, path = (*folder.notes, *notes), folder.path
    by_config = arch is None and factory is None
    if by_config and folder.kind == "transformers":
        return noting_unused(build_transformers_folder(folder, content, notes), head_activation), content
    parsed = parse_checkpoint(content, path, weights)
    if isinstance(parsed, nn.Module):
        raise ModelFileError(
            f"{path}: the weights are a whole module, which brings its own network; give it in a folder without a"
            " config.json, or save its state_dict"
        )
    parsed.notes[:0] = notes
    parsed.ordered = parsed.ordered and folder.weights[0].format != "safetensors"  # that format sorts them by name
    if by_config:
        return noting_unused(build_timm_folder(folder, parsed, Asked(weights, num_classes)), head_activation), content
    kind = f"{folder.kind} folder"
    built = build_network(
        parsed,
        path,
        arch=arch,
        factory=factory,
        kind=kind,
        head_activation=head_activation,
        num_classes=num_classes,
        weights=weights,
    )
    if folder.kind == "timm":
        own = read_timm_preprocessing(folder)
    else:
        own, bgr = read_preprocessing(folder)
        if bgr:
            own = refuse(own.source, "it gives the network blue, green and red in that order")
    told = tuple(note for note in built.notes if built.preprocessing is None or note != built.preprocessing.note)
    return built._replace(preprocessing=own, notes=(*told, own.note)), content

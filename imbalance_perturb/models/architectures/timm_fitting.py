"""Fit a network of timm's to each reading of a file's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.choosing import Asked, Fit, choose, put_in_front, remainder, where_notes
from imbalance_perturb.models.architectures.filling import Built
from imbalance_perturb.models.architectures.hints import explain
from imbalance_perturb.models.architectures.readings import (
    Reading,
    clean,
    find_readings,
    serves_training,
    siblings,
    trunk,
)
from imbalance_perturb.models.architectures.timm_networks import build_by_timm
from imbalance_perturb.models.formats.checkpoint import Checkpoint


def fit_timm(checkpoint: Checkpoint, path: Path, name: str, options: dict[str, Any], asked: Asked) -> Built:
    """Build timm's network of this name for the one reading of a checkpoint's tensors that fits it.

    Args:
        options: of timm's builder.

    Raises:
        ArchitectureError: if timm is not installed, has no such network, none or more than one reading fits it.
    """
    tensors, computed = clean(checkpoint.tensors)
    stems, heads = _timm_names(name)
    readings = find_readings(checkpoint, tensors, [f"{stem}.weight" for stem in stems])
    fits: list[Fit] = []
    errors: list[ArchitectureError] = []
    for reading in readings or [trunk(checkpoint, tensors)]:
        for candidate, used in _candidates(reading, heads):
            part = replace(checkpoint, tensors=candidate, notes=[])
            try:
                built = build_by_timm(part, path, name, options)
            except ArchitectureError as error:
                errors.append(error)
                continue
            fits.append(Fit(reading, built, candidate, used))
            break
    if not fits:
        why = explain(tensors)
        raise ArchitectureError(f"{errors[0]}; {why.removesuffix('; otherwise ')}") if why else errors[0]
    fit, chosen = choose(fits, path, asked)
    assert isinstance(fit.network, Built)
    rest = remainder(fit, fits, checkpoint, path, whole=False)
    notes = (*checkpoint.notes, *computed, *where_notes(fit, checkpoint), *chosen, *fit.network.notes, *rest.notes)
    return fit.network._replace(
        network=put_in_front(fit.network.network, rest.front),
        notes=notes,
        assumptions=(*fit.network.assumptions, *rest.assumptions),
    )


def _candidates(reading: Reading, heads: tuple[str, ...]) -> Iterator[tuple[dict[str, Tensor], frozenset[str]]]:
    """The reading's tensors: with all that lies loose, without, and with a Linear beside it as the head."""
    idle = serves_training(reading.loose)
    loose = {name.removeprefix(reading.where): t for name, t in reading.loose.items() if name not in idle}
    if loose:
        yield {**reading.tensors, **loose}, frozenset()
    yield reading.tensors, frozenset()
    if len(heads) == 1 and not any(name.startswith(f"{heads[0]}.") for name in reading.tensors):
        for path, inside in siblings(reading, serves_training(reading.outside)):
            if set(inside) <= {"weight", "bias"} and "weight" in inside and inside["weight"].ndim == 2:
                head = {f"{heads[0]}.{key}": tensor for key, tensor in inside.items()}
                yield {**reading.tensors, **head}, frozenset(f"{path}.{key}" for key in inside)


def _timm_names(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that timm has for a network's first convolution and for its head, as far as it says."""
    try:
        import timm
    except ImportError:
        return (), ()
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name.partition(".")[0]) else None
    found = []
    for value in (getattr(config, "first_conv", None), getattr(config, "classifier", None)):
        found.append((value,) if isinstance(value, str) else tuple(value or ()))
    return found[0], found[1]

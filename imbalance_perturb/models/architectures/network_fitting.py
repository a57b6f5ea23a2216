"""Fit a network that somebody else's builder made to each reading of a file's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from imbalance_perturb.models.architectures.choosing import Asked, Fit, Remainder, choose, remainder, where_notes
from imbalance_perturb.models.architectures.filling import Built, load_strictly
from imbalance_perturb.models.architectures.readings import Reading, clean, find_readings
from imbalance_perturb.models.architectures.skeleton import is_counter
from imbalance_perturb.models.formats.checkpoint import Checkpoint


def fit_network(
    network: nn.Module, checkpoint: Checkpoint, built: Built
) -> tuple[list[Fit], Reading | None, tuple[str, ...]]:
    """Find the readings whose tensors are just the network's; else the one that is nearest.

    Args:
        network: not filled yet.
        built: what is said of it, for the fits.

    Returns:
        The fits, the nearest reading where there is none, and a note where weights were computed.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, Tensor) and not is_counter(name)
    }
    nearest: tuple[int, Reading] | None = None
    cleaned, computed = clean(checkpoint.tensors)
    # Networks may have wrappers and parametrised layers of their own: names as they are come first.
    for tensors, note in ((checkpoint.tensors, ()), (cleaned, computed)):
        fits: list[Fit] = []
        for reading in find_readings(checkpoint, tensors, list(expected)[:1]):
            loose = {name.removeprefix(reading.where): tensor for name, tensor in reading.loose.items()}
            here = {**reading.tensors, **{name: tensor for name, tensor in loose.items() if name in expected}}
            there = {name: tuple(tensor.shape) for name, tensor in here.items() if not is_counter(name)}
            same = sum(1 for name, shape in expected.items() if there.get(name) == shape)
            left = {name: t for name, t in reading.loose.items() if name.removeprefix(reading.where) not in expected}
            reading = reading._replace(tensors=here, loose=left)
            if there == expected:
                fits.append(Fit(reading, built, here))
            elif nearest is None or same > nearest[0]:
                nearest = (same, reading)
        if fits:
            return fits, None, note
    return [], nearest and nearest[1], ()


def fill_network(
    network: nn.Module, fits: Sequence[Fit], checkpoint: Checkpoint, path: Path, asked: Asked, misfit: str
) -> tuple[tuple[str, ...], Remainder]:
    """Choose among the readings that a whole network fits, and fill it; with notes, and what is said of the rest.

    Args:
        misfit: what does not fit, for messages.

    Raises:
        ArchitectureError: if two readings fit with different tensors, or the rest may change predictions.
    """
    fit, chosen = choose(fits, path, asked)
    rest = remainder(fit, fits, checkpoint, path, whole=True)
    load_strictly(network, fit.tensors, path, misfit)
    return (*where_notes(fit, checkpoint), *chosen), rest

"""The loaded network as a module that a graph can be traced of: a batch in, (N, C) logits out, batch norm folded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imbalance_perturb.deployment.proof import TOLERANCE
from imbalance_perturb.errors import ModelFileError, first_line
from imbalance_perturb.inference.acceleration.optimisation import fold_batch_norm
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.models import LoadedClassifier
from imbalance_perturb.models.outputs import find_logits, follow


class Logits(nn.Module):
    """A network, and of what it returns the logits: what :class:`LoadedClassifier` does, for batches of any size.

    Args:
        network: frozen, in eval mode.
        path: to the logits in what it returns.
        probabilities: whether they are probabilities, of which the logarithm is taken.
    """

    def __init__(self, network: nn.Module, path: tuple[Any, ...], *, probabilities: bool) -> None:
        super().__init__()
        self.network, self.path, self.probabilities = network, path, probabilities

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C) logits of (N, ...) inputs."""
        logits = follow(self.network(x), self.path).flatten(1)
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log() if self.probabilities else logits


def make_functional(model: LoadedClassifier, x: Tensor) -> Logits:
    """Make the module of a loaded model; its own network is not changed.

    Args:
        model: on the CPU.
        x: a trial batch (N, C, H, W).

    Raises:
        ModelFileError: for a file whose program takes batches of one size, or is no flat list of operations.
    """
    if model.info.fixed_batch is not None:
        raise ModelFileError(
            f"the program in this file takes batches of {model.info.fixed_batch} alone, and an exported file takes any:"
            " export the model again with a batch size that is free, or give its state_dict"
        )
    with torch.no_grad():
        expected = model.network(x)
    path = find_logits(expected, len(x)).path
    network = make_plain(model.network, x, expected, path)
    return Logits(network, path, probabilities=model.info.outputs == "probabilities")


def make_plain(network: nn.Module, x: Tensor, expected: Any, path: tuple[Any, ...] = ()) -> nn.Module:
    """Make a frozen copy of a network, or of a part of one, with batch norm folded where it can be.

    Args:
        network: on the CPU; it is not changed.
        x: a trial batch (N, ...).
        expected: what the network returns for it.
        path: to the tensor in what it returns.

    Raises:
        ModelFileError: for TorchScript that is no flat list of operations.
    """
    with torch.no_grad():
        try:
            folded, _ = fold_batch_norm(network)
            found = folded(x)
            moved = (follow(found, path) - follow(expected, path)).abs().max()
            if not moved <= TOLERANCE * follow(expected, path).abs().max():
                raise ValueError(f"its output moves by {moved:.2g}")
        except Exception as error:  # tracers run a network's own code, on symbols, which raises anything
            pass_on_device_errors(error)
            # Batch norm has a place in the graph, too; TorchScript has none but as layers.
            if isinstance(network, torch.jit.ScriptModule):
                raise ModelFileError(
                    f"this TorchScript cannot be converted to a graph of layers ({first_line(error)}); give the model's"
                    " state_dict"
                ) from error
        else:
            network = folded
    network = network.requires_grad_(False)
    for module in network.modules():
        module.training = False
    return network

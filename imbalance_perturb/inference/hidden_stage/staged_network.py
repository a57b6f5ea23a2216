"""What is done to a whole network, done to a network that is cut in two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.inference.acceleration.optimisation import Optimisation
from imbalance_perturb.inference.hidden_stage.cutting import Staged, cut_network
from imbalance_perturb.method.module_state import frozen_eval, full_precision
from imbalance_perturb.models import LoadedClassifier


def cut_model(model: LoadedClassifier, at: str, x: Tensor) -> Staged:
    """Cut the network of a loaded classifier, in place, behind a layer or the one that ``auto`` stands for.

    Args:
        model: not used any more but cut.
        at: as for :func:`cut_network`.
        x: one image (1, C, H, W) on its device.

    Raises:
        SettingsError: if it cannot be cut there.
    """
    if model.batch_range[1] is not None:
        raise SettingsError(
            f"perturb_at is {at}, but this file takes no batch but those of {model.batch_range[1]}; trace or export it"
            " with any batch size, or use perturb_at input"
        )
    model.network = staged = cut_network(model.network, at, x)
    model.batch_range = (1, None)
    return staged


def halves(model: LoadedClassifier) -> tuple[nn.Module, LoadedClassifier]:
    """The front of a classifier that is cut in two, and its back as a classifier of what the front computes."""
    assert isinstance(model.network, Staged)
    return model.network.front, LoadedClassifier(model.network.back, model.info)


def each_part(
    network: nn.Module, x: Tensor, make: Callable[[nn.Module, Tensor], tuple[nn.Module, Optimisation]]
) -> tuple[nn.Module, Optimisation]:
    """Make another network of a network, or of each half of one that is cut in two.

    Args:
        network: on its device.
        x: a trial batch (N, C, H, W) there.
        make: gives the other network, and what was done.
    """
    if not isinstance(network, Staged):
        return make(network, x)
    with torch.no_grad(), frozen_eval(network), full_precision(x.device):
        h = network.front(x)
    front, before = make(network.front, x)
    back, behind = make(network.back, h)
    path = f"cut behind {network.layer}; up to there {before.path}; from there {behind.path}"
    made = Staged(front, back, network.layer, network.behind)
    return made, Optimisation(path, max(before.difference, behind.difference))

"""Build a torchvision network without memory or initialisation: its tensors' names and shapes, its head."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from imbalance_perturb.method.torchvision_import import import_torchvision

#: Rows of the head in a skeleton: a number that no layer inside a network has.
_MARK = 1013


class EmptyOnMeta(TorchFunctionMode):
    """Inside: ``torch.empty``, which layers make their parameters with, allocates nothing and is not filled.

    All else is real, unlike under ``torch.device("meta")``: some builders compute with tensors, and buffers that
    are not in a state_dict must hold their values.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs["device"] = "meta"
        # torch.nn.init hands its tensor over by name.
        filled = args[0] if args else kwargs.get("tensor")
        if isinstance(filled, Tensor) and filled.is_meta and func.__name__ in _FILLERS:
            return filled
        return func(*args, **kwargs)


#: In-place functions that initialise parameters.
_FILLERS = frozenset({
    "normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_",
    "zero_", "zeros_", "ones_", "constant_", "fill_", "mul_", "add_", "clamp_", "erfinv_",
})  # fmt: skip


class Skeleton(NamedTuple):
    """A network with its parameters on the meta device.

    ``head``: the name of its last layer; ``container``: the top-level name below which the head is;
    ``stem``: the name of its first convolution; ``shapes``: of its state_dict, without counters.
    """

    module: nn.Module
    head: str
    container: str
    stem: str
    shapes: Mapping[str, tuple[int, ...]]


def classification_names() -> list[str]:
    """Every classification architecture that the installed torchvision has."""
    models = import_torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


def is_counter(name: str) -> bool:
    """Whether a tensor only counts training batches: of no use in eval mode, and missing in old files."""
    return name.endswith("num_batches_tracked")


def build_skeleton(name: str, **kwargs: Any) -> nn.Module:
    """A torchvision network by name with its parameters on the meta device, in eval mode."""
    models = import_torchvision().models
    if name in ("googlenet", "inception_v3"):
        # The auxiliary heads serve training only.
        kwargs = {"aux_logits": False, "init_weights": False, **kwargs}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), EmptyOnMeta():
        warnings.simplefilter("ignore")
        network: nn.Module = models.get_model(name, weights=None, **kwargs)
    return network.eval()


@functools.cache
def skeleton(name: str, options: tuple[tuple[str, Any], ...] = ()) -> Skeleton:
    """The skeleton of a torchvision architecture, in its default form but for ``options``."""
    network = build_skeleton(name, num_classes=_MARK, **dict(options))
    layers = dict(network.named_modules())
    head = [n for n, m in layers.items() if _MARK in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))][-1]
    stem = next(n for n, m in layers.items() if isinstance(m, nn.Conv2d))
    shapes = {n: tuple(t.shape) for n, t in network.state_dict().items() if not is_counter(n)}
    return Skeleton(network, head, head.partition(".")[0], stem, shapes)

"""Put a module, and torch itself, into the state a pass needs, and leave both as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Inside: every submodule in eval mode, every parameter without ``requires_grad``; outside: as before.

    In training mode batch norm would mix the images of a batch (and learn from them) and dropout would make
    the output random; a parameter that requires grad makes autograd keep what only training needs.
    ``.training`` is set on each module rather than through ``eval()``, which exported programs refuse and
    which would lose the state of a submodule that its owner had set apart.
    """
    modules = [module for module in model.modules() if getattr(module, "training", False)]
    # An inference tensor's flag can be cleared but not set again outside of inference mode: leave it alone.
    parameters = [p for p in model.parameters() if p.requires_grad and not p.is_inference()]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in modules:
            module.training = True
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def float32_products() -> Iterator[None]:
    """Inside: products of float32 are float32, without TF32 and bf16, so that a step of 0.001 is not rounded away."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside: the same, and no autocast."""
    with float32_products(), torch.autocast(device.type, enabled=False):
        yield

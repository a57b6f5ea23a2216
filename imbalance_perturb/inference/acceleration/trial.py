"""Whether two ways to compute a network agree on a trial batch in what the correction takes from it: the gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_perturb.method.module_state import frozen_eval, full_precision

#: Least cosine between the two networks' gradients of a logit: rounding flips activations near their kinks.
LEAST_COSINE = 0.99

#: The same for two ways to compute in bfloat16 or float16. Each has some 86% of its signs in common with float32, a
#: cosine of about 0.9, hence of about 0.8 with the other; a wrong gradient is near 0.
LOW_LEAST_COSINE = 0.7


def same_gradient(network: nn.Module, candidate: nn.Module, x: Tensor) -> bool:
    """Whether both have the gradient of a logit at the input in common, up to flipped kinks of activations."""
    return alike(_gradient(network, x), _gradient(candidate, x))


def alike(first: Tensor | None, second: Tensor | None, least: float = LEAST_COSINE) -> bool:
    """Whether two gradients, or their absence, point the same way: a cosine of at least ``least``."""
    if first is None or second is None:
        return first is second
    # Scaled first: an untrained network's gradient can be so small that its square is 0.
    scale = first.abs().max().double().clamp_min(torch.finfo(torch.float64).tiny)
    a, b = (gradient.flatten().double() / scale for gradient in (first, second))
    return bool(a @ b >= least * a.norm() * b.norm()) and bool(a.any()) == bool(b.any())


def _gradient(network: nn.Module, x: Tensor) -> Tensor | None:
    """Compute the gradient of the first logit at the input, ``None`` where autograd doesn't reach it."""
    with torch.inference_mode(False), torch.enable_grad(), frozen_eval(network), full_precision(x.device):
        leaf = x.detach().clone().requires_grad_(True)
        logits = network(leaf.clone())
        if not logits.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf, allow_unused=True)
    return gradient

"""How strong a step is: what part of the log prior it takes from an image's logits, to first order.

With the log target and a large T the step is ``eps * sign(J^T l)``, J the Jacobian of the logits at the image and l the
centred log prior (``docs/theory.md``). It moves the logits along l by ``-eps ||J^T l||_1 / ||l||^2``: at strength 1 it
takes all of the log prior away, as logit adjustment with tau 1 does. One eps is of another strength for each image, and
on each network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import CountsError, ModelGradientError
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.logit_corrections import log_prior
from imbalance_perturb.method.perturbation import project_gradient


def prior_gradient_norms(
    model: nn.Module, x: Tensor, counts: ClassCounts, unit: float | Tensor = 1.0, prior: Tensor | None = None
) -> Tensor:
    """Compute ||unit * J^T l||_1 of each image, (N,) float64 on the CPU.

    Args:
        model: returns (N, C) logits.
        x: (N, ...) inputs.
        counts: training images of the C classes.
        unit: what a step of 1 is in units of the input, a number or what broadcasts against it.
        prior: (C,) class shares to correct for, instead of equal ones.
    """
    gradient = project_gradient(model, x, centred_log_prior(counts, prior))
    return (gradient.double() * torch.as_tensor(unit).to(gradient.device).double()).abs().flatten(1).sum(1).cpu()


def full_eps(norms: Tensor, counts: ClassCounts, prior: Tensor | None = None) -> float:
    """The eps at which the median strength over images with these norms (N,) is 1, to three digits.

    Raises:
        CountsError: if all classes have the same count, so that there is no prior to take away.
        ModelGradientError: if most images have no gradient.
    """
    size = float((centred_log_prior(counts, prior) ** 2).sum())
    median = float(norms.median())
    if size < 1e-12:
        raise CountsError("all classes have the same count: there is no prior to correct, so eps cannot be auto")
    if not median > 0:
        raise ModelGradientError("the gradient is zero for most images, so eps cannot be auto; give a number")
    # Rounded, so that the parts of a run on several machines come to the same number.
    return float(f"{size / median:.3g}")


def centred_log_prior(counts: ClassCounts, prior: Tensor | None = None) -> Tensor:
    """l, (C,) float64: log of the training shares, over those of ``prior`` (C,) if any, minus their mean."""
    logs = log_prior(counts, prior)
    return logs - logs.mean()

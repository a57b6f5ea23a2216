"""The method of Chen et al. 2021 (MICCAI): one signed-gradient step of the input towards the target.

The costly half, :func:`gradient_sign`, does one forward and one backward pass and does not depend on eps;
the cheap half, :func:`step`, is arithmetic. Everything else in the package that perturbs calls these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelGradientError, ModelOutputError, SettingsError, first_line
from imbalance_perturb.method.module_state import float32_products, frozen_eval

#: γ of the focal loss (Lin et al. 2017, Sec. 3.2; the value its authors found best).
FOCAL_GAMMA = 2.0


#: In autograd's messages for an operation that cannot be differentiated.
_NO_DERIVATIVE = ("derivative for", "does not require grad", "not differentiable", "not implemented")


class GradientSign(NamedTuple):
    """What one forward and one backward pass give.

    ``sign``: (N, ...) int8 in {-1, 0, 1}, the shape of the input; ``logits``: (N, C), of the input as it came.
    """

    sign: Tensor
    logits: Tensor


class LossSpec(NamedTuple):
    """ℓ and T of Eq. (1): how the softened output is compared with the target."""

    loss: str = "cross-entropy"
    temperature: float = 1000.0


def gradient_sign(
    model: nn.Module, x: Tensor, target: Tensor, *, temperature: float = 1000.0, loss: str = "cross-entropy"
) -> GradientSign:
    """Compute sign(∇_x ℓ(softmax(z(x)/T), p*)), for each sample on its own (Eq. 1 and 3).

    Args:
        model: returns (N, C) logits; run in eval mode, left as it was.
        x: (N, ...) floating-point input as the model receives it.
        target: (C,) p*, non-negative, summing to 1.
        temperature: T > 0.
        loss: ℓ: ``cross-entropy``, ``mse`` or ``focal``.

    Works under ``no_grad``, ``inference_mode`` and autocast. The sign of a zero gradient is 0.

    Raises:
        ModelGradientError: if autograd cannot reach the input, or the gradient is not finite.
        ModelOutputError: if the model does not return (N, C) logits.
        SettingsError: for a temperature or loss that is not known.
    """
    (sign,), logits = gradient_signs(model, x, target, [LossSpec(loss, temperature)])
    return GradientSign(sign, logits)


def gradient_signs(
    model: nn.Module, x: Tensor, target: Tensor, loss_specs: Sequence[LossSpec], *, mark_unusable: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Compute :func:`gradient_sign` for several losses and T from one forward pass, and the logits (N, C).

    One backward pass for each; arguments and errors as for :func:`gradient_sign`. With ``mark_unusable`` an image whose
    gradient is not finite is no error but has logits of NaN: a GPU that is not asked need not be waited for.
    """
    for loss, temperature in loss_specs:
        if not temperature > 0:
            raise SettingsError(f"the temperature is {temperature}; it must be above 0 (the paper uses 1000)")
        logit_gradient(loss)
    with torch.inference_mode(False), torch.enable_grad(), frozen_eval(model), float32_products():
        # clone: an input made in inference mode cannot be recorded, and a model whose first layer works in
        # place may write neither to a leaf nor to the caller's tensor.
        leaf = x.detach().clone().requires_grad_(True)
        logits = _forward(model, leaf.clone(), target)
        z = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        directions = [loss_direction(z, target, spec) for spec in loss_specs]
        gradients = [
            _gradient(logits, leaf, v, last=index == len(directions) - 1) for index, v in enumerate(directions)
        ]
    logits = logits.detach()
    for gradient in gradients:
        if not mark_unusable:
            _check_finite(gradient)
            continue
        unusable = ~torch.isfinite(gradient).flatten(1).all(1)
        logits = logits.masked_fill(unusable[:, None], torch.nan)
    return [gradient.sign().to(torch.int8) for gradient in gradients], logits


def project_gradient(model: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """Compute Jᵀv, the gradient at the input x (N, ...) of the logits' (N, C) product with v (C,), for each sample.

    Arguments and errors as for :func:`gradient_sign`.
    """
    with torch.inference_mode(False), torch.enable_grad(), frozen_eval(model), float32_products():
        leaf = x.detach().clone().requires_grad_(True)
        logits = _forward(model, leaf.clone(), direction)
        gradient = _gradient(logits, leaf, direction.to(logits).expand_as(logits), last=True)
    _check_finite(gradient)
    return gradient


def loss_direction(z: Tensor, target: Tensor, spec: LossSpec) -> Tensor:
    """Compute ∂ℓ/∂z (N, C) at logits z (N, C) up to a positive factor per sample: its largest entry is 1 or -1.

    The backward pass from it has the sign of the loss's gradient.
    """
    v = logit_gradient(spec.loss)(z, target, spec.temperature)
    # Only the sign is kept, so any positive factor per sample may go: the 1/T of the true gradient (about
    # 1e-6 an element at T = 1000) would underflow in half precision.
    return v / v.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)


def _gradient(logits: Tensor, leaf: Tensor, v: Tensor, *, last: bool) -> Tensor:
    try:
        # Of the product, whose gradient at the logits is v itself: with v as an argument torch imports sympy first.
        product = (logits * v.to(logits.dtype)).sum()
        (gradient,) = torch.autograd.grad(product, leaf, retain_graph=not last, allow_unused=True)
    except RuntimeError as error:
        # Only what says that there is no derivative: out of memory, say, is another matter.
        if any(sign in str(error) for sign in _NO_DERIVATIVE):
            raise ModelGradientError(f"no gradient reaches the model's input: {first_line(error)}") from error
        raise
    if gradient is None:
        raise ModelGradientError(
            "no gradient reaches the model's input: its output does not depend on it differentiably"
        )
    return gradient


def _check_finite(gradient: Tensor) -> None:
    if not torch.isfinite(gradient).all():
        raise ModelGradientError(
            "the gradient at the model's input is not finite: NaN or infinity in the input or the parameters"
        )


def step(
    x: Tensor, sign: Tensor, eps: float | Tensor, clip: tuple[float | Tensor, float | Tensor] | None = None
) -> Tensor:
    """Compute x̃ = x - eps * sign (Eq. 3); ``eps`` a number or a tensor that broadcasts against ``x`` (N, ...).

    ``clip`` is an optional (lowest, highest) allowed value, numbers or broadcasting tensors; the paper has none.
    """
    moved = x - eps * sign.to(x.dtype)
    if clip is None:
        return moved
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in clip)
    return torch.maximum(torch.minimum(moved, high), low)


def perturb(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor = 1e-3,
    temperature: float = 1000.0,
    loss: str = "cross-entropy",
    clip: tuple[float | Tensor, float | Tensor] | None = None,
    steps: int = 1,
) -> Tensor:
    """Perturb the input to x̃ (Eq. 3): ``steps`` steps of size ``eps`` each, the paper's method with one.

    Arguments and errors as for :func:`gradient_sign` and :func:`step`.

    Returns:
        (N, ...) tensor of the dtype and device of ``x``.
    """
    for _ in range(steps):
        x = step(x, gradient_sign(model, x, target, temperature=temperature, loss=loss).sign, eps, clip)
    return x


def logit_gradient(loss: str) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Look up the function (logits (N, C), p* (C,), T) -> ∂ℓ/∂z (N, C) up to a positive factor, by a loss's name.

    Raises:
        SettingsError: if the loss is not known.
    """
    try:
        return LOGIT_GRADIENTS[loss]
    except KeyError:
        raise SettingsError(f"loss {loss!r} is not known; use {', '.join(LOGIT_GRADIENTS)}") from None


def _cross_entropy(z: Tensor, target: Tensor, temperature: float) -> Tensor:
    # ℓ = -Σ p* log p̂:  T ∂ℓ/∂z = p̂ - p*
    return torch.softmax(z / temperature, dim=1) - target.to(z)


def _mse(z: Tensor, target: Tensor, temperature: float) -> Tensor:
    # ℓ = Σ (p̂ - p*)²:  (T/2) ∂ℓ/∂z = p̂ ⊙ (d - <p̂, d>), d = p̂ - p*
    p = torch.softmax(z / temperature, dim=1)
    d = p - target.to(z)
    return p * (d - (p * d).sum(dim=1, keepdim=True))


def _focal(z: Tensor, target: Tensor, temperature: float) -> Tensor:
    # ℓ = -Σ p* (1 - p̂)^γ log p̂:  T ∂ℓ/∂z_k = u_k - p̂_k Σ u,
    # u = p̂ ∂ℓ/∂p̂ = p* (γ p̂ log p̂ (1 - p̂)^(γ-1) - (1 - p̂)^γ)
    p = torch.softmax(z / temperature, dim=1)
    u = target.to(z) * (FOCAL_GAMMA * torch.xlogy(p, p) * (1 - p) ** (FOCAL_GAMMA - 1) - (1 - p) ** FOCAL_GAMMA)
    return u - p * u.sum(dim=1, keepdim=True)


#: The losses by name, as settings declare them: functions (logits (N, C), p* (C,), T) -> ∂ℓ/∂z up to a factor.
LOGIT_GRADIENTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "mse": _mse,
    "focal": _focal,
}


def _forward(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    try:
        logits = model(x)
    except RuntimeError as error:
        if "nference tensor" in str(error):
            raise ModelGradientError(
                "the model's parameters were made under torch.inference_mode() and cannot be differentiated through;"
                " build or load the model outside of it"
            ) from error
        raise
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelOutputError(f"the model returned {found} for {x.shape[0]} inputs; expected logits of shape (N, C)")
    if logits.shape[1] != target.shape[0]:
        raise ModelOutputError(f"the model has {logits.shape[1]} classes but the target has {target.shape[0]}")
    if not logits.requires_grad:
        raise ModelGradientError(
            "no gradient reaches the model's input: its output does not require grad"
            " (frozen or quantised for inference, or it detaches its input)"
        )
    return logits

"""The method as a module: logits in the place of logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.deployment_prior import check_prior
from imbalance_perturb.method.logit_corrections import adjust_logits
from imbalance_perturb.method.module_state import frozen_eval, full_precision
from imbalance_perturb.method.perturbation import LossSpec, gradient_signs, logit_gradient, step
from imbalance_perturb.method.target import target_distribution


class _Constants(NamedTuple):
    """What each step takes beside images: p* (C,), eps and clip."""

    target: Tensor
    eps: Tensor
    clip: tuple[float | Tensor, float | Tensor] | None


class PerturbedClassifier(nn.Module):
    """A classifier whose input is perturbed towards the minority classes before it predicts.

    Called with (N, ...) inputs it returns (N, C) logits, of the plain model on x̃ = x - eps * sign(∇ℓ)
    (Chen et al. 2021, Eq. 1-3). Both passes run in eval mode whatever mode the module is in, since the
    correction is defined after training; the wrapped module is left as it was (mode, ``requires_grad``,
    ``.grad``, hooks, buffers). It works under ``no_grad``, ``inference_mode`` and autocast: under autocast the
    gradient pass runs as the caller asked and the final pass in full precision, so that the step is not lost.
    Its output is not differentiable.

    Args:
        model: returns (N, C) logits.
        counts: training images of the C classes.
        eps: step size, at least 0, in units of the tensor the model receives; 0 gives the plain logits.
            A tensor that broadcasts against the input serves for a step that differs between channels.
        temperature: T above 0.
        loss: ``cross-entropy``, ``mse`` or ``focal``.
        target: (C,) distribution to push towards, or the name of a function of the counts
            (see :func:`target_distribution`).
        clip: optional (lowest, highest) value of a perturbed input.
        steps: number of steps of size eps, at least 1; the paper has one.
        tau: strength of post-hoc logit adjustment added on top; 0 is none.
        correction: another function of logits (N, C) that is applied to them at the end.
        prior: (C,) class shares of where the model is used, above 0 and summing to 1, that are corrected for instead of
            equal ones, by tau and by a ``target`` that is named.
        front: computes from inputs what ``model`` takes, where the step is to be at a hidden stage: between the two,
            with ``eps`` and ``clip`` in units of the front's output. Its gradient is never needed.
        mark_unusable: whether an image whose gradient is not finite gets logits of NaN, in the place of an error for
            its whole batch, for which a GPU would have to be waited for.

    Raises:
        SettingsError: if an argument is out of range.
        CountsError, TargetError: if counts or target cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        counts: ClassCounts,
        *,
        eps: float | Tensor = 1e-3,
        temperature: float = 1000.0,
        loss: str = "cross-entropy",
        target: str | Tensor = "log",
        clip: tuple[float | Tensor, float | Tensor] | None = None,
        steps: int = 1,
        tau: float = 0.0,
        correction: Callable[[Tensor], Tensor] | None = None,
        prior: Tensor | None = None,
        front: nn.Module | None = None,
        mark_unusable: bool = False,
    ) -> None:
        super().__init__()
        if prior is not None:
            prior = torch.as_tensor(prior, dtype=torch.float64)
            check_prior(prior, counts)
        if isinstance(target, str):
            target = target_distribution(counts, target, prior=prior)
        target = torch.as_tensor(target)
        if target.shape != (len(counts),):
            raise SettingsError(f"the target has shape {tuple(target.shape)}; expected ({len(counts)},)")
        eps = torch.as_tensor(eps, dtype=torch.float64)
        if not (torch.isfinite(eps) & (eps >= 0)).all():
            raise SettingsError(f"eps is {eps.tolist()}; it must be a finite number, at least 0")
        if not temperature > 0:
            raise SettingsError(f"the temperature is {temperature}; it must be above 0")
        if not hasattr(steps, "__index__") or steps < 1:
            raise SettingsError(
                f"steps is {steps}; it must be a whole number, at least 1 (eps = 0 switches the perturbation off)"
            )
        logit_gradient(loss)
        self.model = model
        self.front = front
        self.mark_unusable = mark_unusable
        self.counts = counts
        self.temperature = float(temperature)
        self.loss = loss
        self.clip = clip
        self.steps = int(steps)
        self.tau = float(tau)
        self.correction = correction
        self.prior = prior
        # Plain attributes, no buffers: half() or to(bfloat16) on the module must not round p* and eps.
        self.target = target
        self.eps = eps
        self._placed: dict[torch.device, tuple[_Constants, _Constants]] = {}

    @property
    def active(self) -> bool:
        """Whether any input moves at all (eps is not 0)."""
        return bool(self.eps.any())

    def forward(self, x: Tensor) -> Tensor:
        """Compute the corrected logits (N, C) of (N, ...) inputs."""
        return self.predict_both(x)[1]

    def predict_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute base and corrected logits, each (N, C), of the same images: the first come for free."""
        base, moved = self.perturb_input(x)
        return base, self.predict_perturbed(moved) if self.active else self.adjust(base)

    def perturb_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute base logits (N, C) and perturbed input x̃ (N, ...): a gradient pass a step, a plain one for eps 0.

        With a front it is the front's output that is perturbed.
        """
        base, moved = None, self.to_stage(x)
        self._warn_if_lost(moved)
        if not self.active:
            # A copy of the front's output: the model's first layer may work in place.
            return self.predict_from_stage(moved if self.front is None else moved.clone()), moved
        spec, constants = LossSpec(self.loss, self.temperature), self._constants(moved.device)
        for _ in range(self.steps):
            (sign,), logits = gradient_signs(
                self.model, moved, constants.target, [spec], mark_unusable=self.mark_unusable
            )
            base = logits if base is None else base
            moved = step(moved, sign, constants.eps.to(moved), constants.clip)
        assert base is not None  # steps >= 1
        return base, moved

    def predict_perturbed(self, moved: Tensor) -> Tensor:
        """Compute the corrected logits (N, C) of what :meth:`perturb_input` gave: the final pass and tau."""
        return self.adjust(self.predict_from_stage(moved))

    def adjust(self, logits: Tensor) -> Tensor:
        """Apply the module's tau to logits (N, C) (see :func:`adjust_logits`), and its correction."""
        adjusted = adjust_logits(logits, self.counts, self.tau, self.prior)
        return adjusted if self.correction is None else self.correction(adjusted)

    def predict_plain(self, x: Tensor) -> Tensor:
        """Compute the logits (N, C) of an input (N, ...) without perturbing it, in full precision."""
        return self.predict_from_stage(self.to_stage(x))

    def to_stage(self, x: Tensor) -> Tensor:
        """Compute of inputs (N, ...) what the step moves: the front's output (N, ...), or ``x`` where there is none."""
        return x if self.front is None else _run_plain(self.front, x)

    def predict_from_stage(self, h: Tensor) -> Tensor:
        """Compute the logits (N, C) of what :meth:`to_stage` gave, as it is or moved, in full precision."""
        return _run_plain(self.model, h)

    def _constants(self, device: torch.device) -> _Constants:
        """The constants on a device: sent there once, and not with every batch."""
        given = _Constants(self.target, self.eps, self.clip)
        if device.type == "cpu":
            return given
        source, placed = self._placed.get(device, (None, given))
        if source is None or any(one is not other for one, other in zip(source, given, strict=True)):
            clip = None
            if given.clip is not None:
                low, high = (bound.to(device) if isinstance(bound, Tensor) else bound for bound in given.clip)
                clip = low, high
            placed = _Constants(given.target.to(device), given.eps.to(device), clip)
            self._placed[device] = given, placed
        return placed

    def _warn_if_lost(self, x: Tensor) -> None:
        smallest = self.eps[self.eps > 0].min().item() if self.active else 1.0
        if x.dtype in (torch.float16, torch.bfloat16) and smallest < torch.finfo(x.dtype).eps:
            warnings.warn(
                f"eps {smallest:g} is below the resolution of {x.dtype} inputs near 1 ({torch.finfo(x.dtype).eps:g}):"
                " much of the step is rounded away; keep the input and the model in float32",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        """Describe the settings for ``print(module)``."""
        return f"eps={self.eps.tolist()}, temperature={self.temperature:g}, loss={self.loss!r}, tau={self.tau:g}"


def _run_plain(module: nn.Module, x: Tensor) -> Tensor:
    # no_grad, not inference_mode: the latter would hand out tensors that a caller cannot use in autograd.
    with torch.no_grad(), frozen_eval(module), full_precision(x.device):
        found: Tensor = module(x)
    return found

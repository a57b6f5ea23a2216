"""Try a loaded model before thousands of images go through it: gradient, determinism, independence of batch mates."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelGradientError, ModelOutputError
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.method.module_state import frozen_eval, full_precision
from imbalance_perturb.method.perturbation import gradient_sign
from imbalance_perturb.models.classifier import FORWARD_ERRORS, LoadedClassifier
from imbalance_perturb.models.trial import failing_forward

#: Allowed differences, relative to the largest logit: what the order of summation makes in float32, with room.
REPEAT_TOLERANCE = 1e-5
BATCH_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What was measured on two random images.

    Attributes:
        num_classes: C.
        gradient_nonzero: share of the input's elements whose gradient is not zero, in (0, 1].
        repeat_difference: largest absolute difference of the logits between two runs on the same images.
        batch_difference: the same between an image alone and in a batch: those two runs, where they agree.
        seconds: that the probe took.
    """

    num_classes: int
    gradient_nonzero: float
    repeat_difference: float
    batch_difference: float
    seconds: float


def probe_classifier(model: nn.Module, input_shape: tuple[int, ...], *, num_classes: int | None = None) -> ProbeResult:
    """Check that a model can be used with the method, on two seeded random images on the model's device.

    Args:
        model: returns (N, C) logits; left as it was.
        input_shape: (channels, height, width) of an input as the model receives it.
        num_classes: what C must be.

    Raises:
        ModelOutputError: if the model fails on the input, C differs from ``num_classes``, or the output is not
            finite, not the same twice, or depends on what else is in the batch.
        ModelGradientError: if no gradient, or none but zeros, reaches the input.
    """
    began = time.perf_counter()
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *input_shape, generator=generator).to(parameter.device)
    with full_precision(x.device):
        alone = _alone(model, x)
        _check_logits(alone, num_classes)
        # What is quantised has no gradient, and may depend on its batch for another reason than training.
        share, logits = _try_gradient(model, x, alone.shape[1])
        scale = float(logits.abs().max().clamp_min(1e-6))
        difference = repeat = _largest_difference(logits[:1], alone)
        if difference > REPEAT_TOLERANCE * scale:  # rounding, the other images, or chance
            repeat = _check_repeated(model, x, scale)
        if difference > BATCH_TOLERANCE * scale:
            raise ModelOutputError(
                f"the model's logits for an image depend on the other images in its batch (by up to {difference:.3g}):"
                " it was saved in training mode, with batch normalisation over the batch in it, or traced with a batch"
                " size as a constant, so that images mix; call model.eval() and export it again, with any batch size"
            )
    return ProbeResult(
        num_classes=alone.shape[1],
        gradient_nonzero=share,
        repeat_difference=repeat,
        batch_difference=difference,
        seconds=time.perf_counter() - began,
    )


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    try:
        with torch.no_grad(), frozen_eval(model):
            logits = model(x)
    except ModelOutputError:
        raise
    except FORWARD_ERRORS as error:
        pass_on_device_errors(error, x.device)
        fixed = model.info.fixed_size if isinstance(model, LoadedClassifier) else None
        raise failing_forward(x, error, network=model, fixed_size=fixed) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelOutputError(f"the model returned {found} for {len(x)} images; expected logits of shape (N, C)")
    return logits


def _alone(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of the first image alone."""
    try:
        return _logits(model, x[:1])
    except ModelOutputError as error:
        _logits(model, x)  # fails, too, where it is not for being alone
        raise ModelOutputError(
            "the model takes two images but fails on one alone; if it holds batch normalisation in training mode,"
            f" call model.eval() and export it again ({error})"
        ) from error


def _check_repeated(model: nn.Module, x: Tensor, scale: float) -> float:
    """By how much the logits of two runs on the same batch differ, which is no more than rounding."""
    repeat = _largest_difference(_logits(model, x), _logits(model, x))
    if repeat > REPEAT_TOLERANCE * scale:
        raise ModelOutputError(
            f"the model gives other logits for the same images when run again (they differ by up to {repeat:.3g}):"
            " it was saved in training mode, with dropout or the like in it; call model.eval() and export it again"
        )
    return repeat


def _check_logits(logits: Tensor, num_classes: int | None) -> None:
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ModelOutputError(
            f"the model has {logits.shape[1]} classes but COUNTS has {num_classes}; give the counts of the classes"
            " that it was trained on, in the order of its outputs"
        )
    if logits.shape[1] < 2:
        raise ModelOutputError("the model has a single output; give one with a logit for each of at least two classes")
    if not torch.isfinite(logits).all():
        raise ModelOutputError(
            "the model's logits on a random image are not finite (NaN or infinity): its parameters are damaged or"
            " training diverged; check the file"
        )


def _try_gradient(model: nn.Module, x: Tensor, classes: int) -> tuple[float, Tensor]:
    """The share of the input's elements with a gradient that is not zero, and the logits."""
    # Any direction but a uniform one: the logits of an untrained network are nearly uniform.
    ramp = torch.arange(1, classes + 1, dtype=torch.float64)
    try:
        sign, logits = gradient_sign(model, x, ramp / ramp.sum())
    except ModelGradientError as error:
        remedy = _ATTENTION_REMEDY if any(name in str(error) for name in _FAST_ATTENTION) else _GRADIENT_REMEDY
        raise ModelGradientError(f"{error}; {remedy}") from error
    except FORWARD_ERRORS as error:
        pass_on_device_errors(error, x.device)
        raise ModelGradientError(
            f"the model cannot be differentiated ({(str(error).strip() or type(error).__name__).splitlines()[-1]});"
            f" {_GRADIENT_REMEDY}"
        ) from error
    share = float((sign != 0).double().mean())
    if not share:
        raise ModelGradientError(f"the gradient at the model's input is zero everywhere; {_GRADIENT_REMEDY}")
    return share, logits


#: What nn.MultiheadAttention and nn.TransformerEncoderLayer become in a trace made without autograd.
_FAST_ATTENTION = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
_ATTENTION_REMEDY = (
    "attention was traced as an operation of torch's for inference alone: trace the model again after"
    " torch.backends.mha.set_fastpath_enabled(False), script or export it, or give its state_dict"
)
_GRADIENT_REMEDY = (
    "give its state_dict, or a TorchScript or torch.export file made without torch.no_grad(), freezing or quantisation"
)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())

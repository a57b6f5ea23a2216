"""The proof that ends an export: the file computes what the correction by autograd does, in batches of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.errors import ModelGradientError
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.method.perturbation import gradient_sign, step

#: Batch sizes that are tried: a graph may have taken the one that it was traced with, the first, for the only one.
SIZES = (5, 2, 1)
#: By how much the height and width of a further batch differ, where any will do.
OTHER_SIZE = (32, 64)

#: Largest difference of a logit, relative to the largest logit, that counts as rounding in float32; or as many times
#: what the network's own differ from those in float64, where it magnifies rounding.
TOLERANCE, ROUNDINGS = 1e-3, 3
#: The same of how far the correction moves the logits, relative to that.
SHIFT_TOLERANCE = 0.1
#: From which part of an image's largest gradient on a sign is clear, and what share of the clear ones may differ:
#: rounding that flips one activation at its kink changes up to some thousandths in a deep untrained network. Or as
#: many times what float32 and float64 differ in by autograd, where few activations decide how many signs that is.
CLEAR, FLIPPED, FLIPS = 0.01, 0.005, 10

#: Logits and base logits (N, C), and perhaps the gradient (N, C, H, W) of each step, of a batch.
Candidate = Callable[[Tensor], Sequence[Tensor]]


class TrialBatch(NamedTuple):
    """Random images: ``given`` as the file takes them, and ``x`` as the network does."""

    given: Tensor
    x: Tensor


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared on random images, plain values.

    Attributes:
        batches: their sizes.
        logit_difference: largest difference of a logit, relative to the largest logit: plain ones from the network's,
            corrected ones from the network's for images that are moved by the same signs.
        shift_difference: the same of how far the correction moves the logits, relative to how far that is.
        signs_agreed: share of the clear signs of the gradients that are autograd's; ``None`` where no step is made.
    """

    batches: tuple[int, ...]
    logit_difference: float
    shift_difference: float
    signs_agreed: float | None


def make_trials(
    shape: tuple[int, int, int], preprocessing: Preprocessing | None, *, any_size: bool
) -> list[TrialBatch]:
    """Make random batches of :data:`SIZES` of images (C, H, W): normalised, or pixels with what is made of them.

    With ``any_size`` a batch of 2 of another size comes last.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, channels, height, width) for n in SIZES]
    if any_size:
        shapes.append((2, channels, height + OTHER_SIZE[0], width + OTHER_SIZE[1]))
    trials = []
    for size in shapes:
        if preprocessing is None:
            x = torch.randn(size, generator=generator)
            trials.append(TrialBatch(x, x))
        else:
            pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
            trials.append(TrialBatch(pixels, preprocessing.normalise(pixels)))
    return trials


def prove(graph: Candidate, file: Candidate, debiased: PerturbedClassifier, trials: Sequence[TrialBatch]) -> Proof:
    """Hold a graph and its file against the correction by autograd on trial batches.

    Rounding decides the sign of a gradient next to 0, and where an activation is at its kink more than that one. So
    signs are compared where they are clear, and logits for images that are moved by the same signs.

    Args:
        graph: returns the gradient of each step, too.
        file: the same as it is to be written.
        debiased: the correction around the network as it was loaded.
        trials: what :func:`make_trials` made.

    Raises:
        ModelGradientError: saying where they differ.
    """
    found = []
    for trial in trials:
        try:
            found.append(_compare(graph, file, debiased, trial))
        except ModelGradientError:
            exact = _in_float64(debiased, trial.x)
            if exact is None:
                raise
            found.append(_compare(graph, file, debiased, trial, exact))
    agreed = [one.signs_agreed for one in found if one.signs_agreed is not None]
    return Proof(
        batches=tuple(len(trial.x) for trial in trials),
        logit_difference=max(one.logit_difference for one in found),
        shift_difference=max(one.shift_difference for one in found),
        signs_agreed=min(agreed) if agreed else None,
    )


def _compare(
    graph: Candidate,
    file: Candidate,
    debiased: PerturbedClassifier,
    trial: TrialBatch,
    exact: PerturbedClassifier | None = None,
) -> Proof:
    with torch.no_grad(), full_precision(trial.x.device):
        logits, base, *gradients = graph(trial.given)
        written, written_base = file(trial.given)
    what = f"batch of {len(trial.x)}"
    plain, moved, agreed = debiased.predict_plain(trial.x), debiased.to_stage(trial.x), None
    if debiased.active:
        moved, agreed = _follow(gradients, debiased, exact, moved, f"the graph, {what}")
    corrected = debiased.predict_perturbed(moved)
    scale, tolerance = float(plain.abs().max().clamp_min(1e-6)), TOLERANCE
    if exact is not None:
        rounding = [
            exact.predict_plain(trial.x.double()) - plain,
            exact.predict_perturbed(moved.double()) - corrected,
        ]
        tolerance = max(TOLERANCE, ROUNDINGS * max(map(_largest, rounding)) / scale)
    limits = _Limits(scale, tolerance)
    differences = [
        _check_logits(found, (corrected, plain), limits, f"{name}, {what}")
        for name, found in (("the graph", (logits, base)), ("the file", (written, written_base)))
    ]
    return Proof(
        batches=(len(trial.x),),
        logit_difference=max(logit for logit, _ in differences),
        shift_difference=max(shift for _, shift in differences),
        signs_agreed=agreed,
    )


class _Limits(NamedTuple):
    """The largest logit, and what part of it a difference may be."""

    scale: float
    tolerance: float


def _follow(
    gradients: Sequence[Tensor], debiased: PerturbedClassifier, exact: PerturbedClassifier | None, x: Tensor, what: str
) -> tuple[Tensor, float]:
    """Move images, or what a hidden layer makes of them, by signs that are held against autograd's, step by step."""
    if len(gradients) != debiased.steps:
        own = (
            "; a network that takes signs of its own can be written as a .pt2"
            if len(gradients) > debiased.steps
            else ""
        )
        raise ModelGradientError(f"{what}: {len(gradients)} signs are taken for {debiased.steps} steps{own}")
    agreed = 1.0
    for gradient in gradients:
        agreed = min(agreed, _agreed_signs(gradient, debiased, exact, x, what))
        x = step(x, gradient.sign(), debiased.eps.to(x), debiased.clip)
    return x, agreed


def _check_logits(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], limits: _Limits, what: str
) -> tuple[float, float]:
    """Check corrected and plain logits; returns by how much they and the way between them differ at most."""
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise ModelGradientError(f"{what}: returned {tuple(one.shape)}, not {tuple(other.shape)}")
    scale, tolerance = limits
    difference = max(_largest(one - other) for one, other in zip(found, expected, strict=True)) / scale
    if not difference <= tolerance:
        raise ModelGradientError(f"{what}: logits differ from those by autograd by {difference:.2g} of the largest")
    shift, expected_shift = found[0] - found[1], expected[0] - expected[1]
    moved = float(expected_shift.norm())
    # What the step moves may be no more than what rounding does.
    noise = tolerance if tolerance > TOLERANCE else TOLERANCE / 100
    beyond = max(0.0, float((shift - expected_shift).norm()) - noise * scale * shift.numel() ** 0.5)
    shift_difference = beyond / moved if moved else beyond
    if not shift_difference <= SHIFT_TOLERANCE:
        raise ModelGradientError(
            f"{what}: the correction moves logits otherwise than by autograd ({shift_difference:.2g})"
        )
    for one, other in zip(found, expected, strict=True):
        _check_labels(one, other, 2 * tolerance * scale, what)
    return difference, shift_difference


def _in_float64(debiased: PerturbedClassifier, x: Tensor) -> PerturbedClassifier | None:
    """The same correction in float64, or ``None``: a program with numbers of its own need not compute in it."""
    try:
        exact = copy.deepcopy(debiased)
        exact.double()
        exact.predict_both(x.double())
    except Exception as error:  # noqa: BLE001 - whatever a network raises for a dtype
        pass_on_device_errors(error)
        return None
    return exact


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _check_labels(found: Tensor, expected: Tensor, tie: float, what: str) -> None:
    first, second = expected.topk(2).values.unbind(1)
    decided = first - second > tie
    if not torch.equal(found.argmax(1)[decided], expected.argmax(1)[decided]):
        raise ModelGradientError(f"{what}: labels differ from those by autograd")


def _agreed_signs(
    gradient: Tensor, debiased: PerturbedClassifier, exact: PerturbedClassifier | None, x: Tensor, what: str
) -> float:
    size = gradient.abs().flatten(1)
    largest = size.amax(1, keepdim=True)
    if not (largest > 0).all():
        raise ModelGradientError(f"{what}: the gradient is zero for an image, so it would not be corrected")
    expected, clear = _signs(debiased, x), size >= CLEAR * largest
    allowed = FLIPPED
    if exact is not None:
        allowed = max(allowed, FLIPS * _flipped(_signs(exact, x.double()), expected, clear))
    flipped = _flipped(gradient.sign(), expected, clear)
    if flipped > allowed:
        raise ModelGradientError(
            f"{what}: only {1 - flipped:.2%} of the clear signs of the gradient are those by autograd"
        )
    return 1 - flipped


def _signs(debiased: PerturbedClassifier, x: Tensor) -> Tensor:
    return gradient_sign(debiased.model, x, debiased.target, temperature=debiased.temperature, loss=debiased.loss).sign


def _flipped(sign: Tensor, expected: Tensor, clear: Tensor) -> float:
    return float((sign != expected).flatten(1)[clear].double().mean())

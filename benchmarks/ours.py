"""The package's own contenders: one network, corrected in each of its modes, and what a mode answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peers import TEMPERATURE
from torch import Tensor, nn

from imbalance_perturb.batching import usual_batch_size
from imbalance_perturb.classifier import PerturbedClassifier
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.execution import fast_dtype
from imbalance_perturb.modes import full_precision
from imbalance_perturb.optimisation import lower, optimise
from imbalance_perturb.predictor import Predictor

#: Our modes, in the order of the tables: precision and whether only close calls are corrected.
MODES = {
    "ours, fp32": ("fp32", False),
    "ours, auto": ("auto", False),
    "ours, bf16": ("bf16", False),
    "ours, close calls only": ("auto", True),
}


class Answer(NamedTuple):
    """Labels (N,) of the images of one measurement; of them, how many were ``recomputed`` and ``corrected``."""

    preds: Tensor
    recomputed: int = 0
    corrected: int = 0


@dataclass(frozen=True)
class Ours:
    """A network made ready: corrected in full precision and in low, the modes on top, and ``path``: what was done.

    ``low`` is ``None`` and modes that need it are missing where the device has no fast low precision.
    """

    reference: PerturbedClassifier
    low: PerturbedClassifier | None
    modes: dict[str, Predictor]
    path: str


def make_ours(
    network: nn.Module, counts: ClassCounts, eps: float, calibration: Sequence[Tensor], device: torch.device
) -> Ours:
    """Optimise a network and calibrate every mode.

    Args:
        network: on its device, in eval mode; given up to this.
        counts: training images of the classes.
        eps: the step.
        calibration: batches (n, C, H, W) on the device, of images like those to come.
        device: where it all runs.
    """
    shape = calibration[0].shape
    batch_size = usual_batch_size(device.type, (shape[1], shape[2], shape[3]))
    for parameter in network.parameters():  # one by one: TorchScript modules have no requires_grad_
        parameter.requires_grad_(False)
    optimised, done = optimise(network, calibration[0][:2])
    reference, low, path = PerturbedClassifier(optimised, counts, eps=eps), None, done.path
    if (dtype := fast_dtype(device)) is not None:
        lowered, also = lower(optimised, calibration[0][:2], dtype)
        low = PerturbedClassifier(lowered, counts, eps=eps)
        path += f"; {also.path}"
    modes = {}
    for name, (precision, close_calls_only) in MODES.items():
        if low is None and precision == "bf16":
            continue
        wanted = "fp32" if low is None else precision
        modes[name] = Predictor(
            reference, low, precision=wanted, close_calls_only=close_calls_only, batch_size=batch_size
        )
        if modes[name].needs_calibration:
            modes[name].calibrate(calibration)
    return Ours(reference, low, modes, path)


def notes(made: Ours) -> list[str]:
    """A sentence for every mode that gave up what it was asked for, with its reason."""
    return [f"{name}: {note}." for name, mode in made.modes.items() for note in mode.summary().notes]


def answer(step: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Answer:
    """Labels of what a function of a batch (N, C, H, W) gives as logits."""
    return Answer(torch.cat([step(x).argmax(1) for x in batches]).cpu())


def answer_with(predictor: Predictor, batches: Iterable[Tensor]) -> Answer:
    """Labels of a predictor, and how it came to them."""
    found = [predictor.predict(x) for x in batches]
    return Answer(
        torch.cat([part.logits.argmax(1) for part in found]).cpu(),
        sum(int(part.refined.sum()) for part in found),
        sum(int(part.corrected.sum()) for part in found),
    )


def plain(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A forward pass as users run it: eager, ``no_grad``, torch's switches as they are."""

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(x)
        return logits

    return step


def written_plainly(
    model: nn.Module, target: Tensor, eps: float, batches: Iterable[Tensor], device: torch.device
) -> tuple[Answer, Answer]:
    """Base and corrected labels by a float32 transcription of the paper, which shares no code with the package."""
    base, corrected = [], []
    with full_precision(device):
        for x in batches:
            leaf = x.detach().clone().requires_grad_(True)
            logits = model(leaf)
            loss = -(target * torch.log_softmax(logits / TEMPERATURE, dim=1)).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            with torch.no_grad():
                corrected.append(model(x - eps * gradient.sign()).argmax(1))
            base.append(logits.detach().argmax(1))
    return Answer(torch.cat(base).cpu()), Answer(torch.cat(corrected).cpu())

"""The package's own contenders: a model file made ready as `predict` makes it, for one of the modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imbalance_perturb.data.image_samples import ONE_IN
from imbalance_perturb.inference.acceleration.optimisation import lower, optimise
from imbalance_perturb.inference.allocator import keep_freed_memory
from imbalance_perturb.inference.batching import usual_batch_size
from imbalance_perturb.inference.calibration import Sampled
from imbalance_perturb.inference.execution import fast_dtype
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.models import load_classifier

#: Our modes, in the order of the tables: precision and whether only close calls are corrected.
MODES = {
    "ours, fp32": ("fp32", False),
    "ours, auto": ("auto", False),
    "ours, bf16": ("bf16", False),
    "ours, close calls only": ("auto", True),
}


@dataclass(frozen=True)
class Ours:
    """A network made ready: ``run`` is a calibrated mode, or the network alone for plain predictions.

    ``path``: what was done to the network; ``notes``: what the mode gave up of what it was asked for, and why.
    """

    run: Predictor | PerturbedClassifier
    path: str
    notes: list[str]
    batch_size: int


def prepare(
    model: str,
    arch: str | None,
    counts: ClassCounts,
    eps: float,
    calibration: Tensor,
    device: torch.device,
    name: str,
) -> Ours:
    """Load a model, rewrite its network and calibrate.

    Args:
        model: the file.
        arch: its architecture, where the file doesn't hold it.
        counts: training images of the classes.
        eps: the step.
        calibration: (N, C, H, W) on the device, images like those to come.
        device: where it all runs.
        name: one of :data:`MODES`; another name is a plain prediction, in low precision if it has 'bf16' in it.
    """
    keep_freed_memory()  # as the command line does
    network = load_classifier(model, arch=arch).to(device).network
    batch_size = usual_batch_size(device.type, tuple(calibration.shape[1:]))  # type: ignore[arg-type]
    for parameter in network.parameters():  # one by one: TorchScript modules have no requires_grad_
        parameter.requires_grad_(False)
    optimised, done = optimise(network, calibration[:2])
    reference, low, path = PerturbedClassifier(optimised, counts, eps=eps), None, done.path
    precision, close_calls_only = MODES.get(name, ("bf16" if "bf16" in name else "fp32", False))
    dtype = fast_dtype(device)
    if precision != "fp32" and dtype is not None:
        lowered, also = lower(optimised, calibration[:2], dtype)
        low = PerturbedClassifier(lowered, counts, eps=eps)
        path += f"; {also.path}"
    if name not in MODES:
        return Ours(low or reference, path, [], batch_size)
    predictor = Predictor(
        reference,
        low,
        precision=precision if low else "fp32",
        close_calls_only=close_calls_only,
        batch_size=batch_size,
    )
    if predictor.needs_calibration:
        predictor.calibrate(
            (Sampled(x, [None] * len(x)) for x in calibration.split(16)), ahead=len(calibration) * ONE_IN
        )
    return Ours(predictor, path, [f"{name}: {note}" for note in predictor.summary().notes], batch_size)

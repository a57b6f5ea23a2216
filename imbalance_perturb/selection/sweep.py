"""Compute logits of many corrections of the same images, each image decoded once and differentiated once.

`tune-eps` and `compare` are built on it: the gradient pass does not depend on eps, so K values of eps cost one
forward and one backward pass for each loss and temperature, and one more forward pass each.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.errors import ModelGradientError, OutputFileError, SettingsError
from imbalance_perturb.inference.batching import BatchLimit
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.input_stream import iter_inputs
from imbalance_perturb.inference.pipeline import Pipeline
from imbalance_perturb.inference.progress import Progress
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.perturbation import LossSpec, gradient_signs, step
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.making import StepStrength

#: Strengths that are tried, about log-spaced: 1 takes the whole log prior from the logits of the median image.
STRENGTH_GRID = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.65, 1.0, 1.5, 2.0, 3.0, 5.0)

#: Bytes of logits that are held in memory; more are in a temporary file.
_MOST_IN_MEMORY = 2 << 30

#: Directions an input can be moved in: the method's, and the two controls that a real effect must beat.
PERTURB, RANDOM_SIGN, MINUS_EPS = "perturb", "random-sign", "minus-eps"


def eps_around(strength: StepStrength | None) -> tuple[float, ...]:
    """The eps of these strengths, to three digits: on every network the same corrections are tried."""
    assert strength is not None, "the pipeline was loaded with measure_step"
    return tuple(float(f"{share * strength.full_eps:.3g}") for share in STRENGTH_GRID)


class Variant(NamedTuple):
    """One correction: a loss with its temperature, a step size, a direction, and whether it is at the hidden layer.

    ``eps`` is in units of where the step is taken; the hidden layer is the pipeline's second, ``Pipeline.hidden``.
    """

    loss_spec: LossSpec
    eps: float
    direction: str = PERTURB
    hidden: bool = False


@dataclass(frozen=True)
class Sweep:
    """Logits of every usable image under every variant, on the CPU in float32.

    ``names``: the N usable images in order; ``errors``: reason by name for the others; ``base``: (N, C) plain
    logits; ``logits``: (N, C) for each variant (those with eps 0 are ``base`` itself), in a file that is gone with the
    process where they would fill the memory. ``passes`` counts what the batches cost, by kind: ``forward`` (recorded
    for the gradient), ``backward``, ``final``. ``seconds`` by stage.
    ``warnings``: what the images as a whole give to think about.
    """

    names: list[str]
    errors: dict[str, str]
    base: Tensor
    logits: dict[Variant, Tensor]
    passes: dict[str, int]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()


class _Rows:
    """Rows as they come: in memory, or in a file that is gone with the process, where they may not fit."""

    def __init__(self, files: ExitStack | None) -> None:
        self._file: IO[bytes] | None = None
        if files is not None:
            self._file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        self._rows: list[Tensor] = []
        self._shape = torch.Size()
        self._number = 0

    def append(self, row: Tensor) -> None:
        self._number += 1
        if self._file is None:
            self._rows.append(row)
            return
        self._shape = row.shape
        try:
            self._file.write(row.numpy().tobytes())
        except OSError as error:
            raise OutputFileError(
                f"{tempfile.gettempdir()}: has no room for the logits of these images ({error.strerror}); set TMPDIR"
                " to a folder that has, or give fewer images or a shorter --eps-grid"
            ) from None

    def stack(self, classes: int) -> Tensor:
        if self._number == 0:
            return torch.empty(0, classes)
        if self._file is None:
            return torch.stack(self._rows)
        self._file.flush()
        return torch.from_numpy(np.memmap(self._file, np.float32, "r+", shape=(self._number, *self._shape)))


@dataclass
class _Collected:
    base: _Rows
    logits: dict[Variant, _Rows]
    names: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0, "final": 0})


def run_sweep(
    pipeline: Pipeline,
    images: ImageList,
    variants: Sequence[Variant],
    *,
    progress: Progress | None = None,
) -> Sweep:
    """Run every variant on every image.

    Args:
        pipeline: the checked model; its own eps, loss and temperature are not used, its target, ``eps_space`` and
            ``clip`` are.
        images: decoded once each.
        variants: distinct; one-step corrections.
        progress: told how far it is, and asked whether to stop.

    Raises:
        SettingsError: if the pipeline asks for more than one step, which cannot share a gradient.
        InterruptedRunError: if ``progress`` said to stop.
    """
    if pipeline.debiased.steps != 1:
        raise SettingsError(f"steps is {pipeline.debiased.steps}; a sweep shares one gradient, so it needs steps = 1")
    stopwatch, limit, deep = Stopwatch(), BatchLimit(pipeline.execution.batch_size), DeepImages()
    moving = [variant for variant in variants if variant.eps > 0]
    classes, files = len(pipeline.counts), ExitStack()
    on_disk = 4 * len(images) * classes * (1 + len(moving)) > _MOST_IN_MEMORY
    base, *others = (_Rows(files if on_disk else None) for _ in (None, *moving))
    collected = _Collected(base, dict(zip(moving, others, strict=True)))
    progress, done = progress or Progress(), 0
    with files, applied(pipeline.execution), progress.counting(len(images)):
        for batch in iter_inputs(images, pipeline.preprocessing, pipeline.execution, stopwatch, deep):
            collected.errors |= {
                name: error for name, error in zip(batch.names, batch.errors, strict=True) if error is not None
            }
            # Groups hold the positions of one image size each: put the batch back in order before it is kept.
            kept: list[tuple[int, str, dict[Variant | None, Tensor]]] = []
            for positions, x in batch.groups:
                names = [batch.names[position] for position in positions]
                compute = partial(_sweep_part, pipeline, names, x, collected, stopwatch)
                for position, name, found in zip(positions, names, limit.run(compute, len(names)), strict=True):
                    if found is not None:
                        kept.append((position, name, found))
            for _, name, found in sorted(kept, key=lambda item: item[0]):
                collected.names.append(name)
                collected.base.append(found[None])
                for variant, parts in collected.logits.items():
                    parts.append(found[variant])
            done += len(batch.names)
            progress.advance(len(batch.names))
            progress.check_stop(done, len(images))
        plain = base.stack(classes)
        logits = {v: collected.logits[v].stack(classes) if v.eps > 0 else plain for v in variants}
    return Sweep(collected.names, collected.errors, plain, logits, collected.passes, stopwatch.seconds, deep.warnings)


def _sweep_part(
    pipeline: Pipeline,
    names: list[str],
    x: Tensor,
    collected: _Collected,
    stopwatch: Stopwatch,
    part: slice,
) -> list[dict[Variant | None, Tensor] | None]:
    """For each image of a part its rows of logits by variant, or ``None`` where it has an error."""
    found = dict(_sweep_group(pipeline, names[part], x[part], collected, stopwatch))
    return [found.get(index) for index in range(len(names[part]))]


def _sweep_group(
    pipeline: Pipeline,
    names: list[str],
    x: Tensor,
    collected: _Collected,
    stopwatch: Stopwatch,
) -> list[tuple[int, dict[Variant | None, Tensor]]]:
    """For each usable image of a group: its index and its rows of logits by variant, ``None`` for the plain model."""
    stages = [_Stage.of(pipeline, collected, hidden) for hidden in (False, True)]
    stages = [stage for stage in stages if stage.variants or not stage.hidden]
    try:
        found: dict[Variant | None, Tensor] = {}
        for stage in stages:
            found |= stage.run(names, x, collected, stopwatch)
    except ModelGradientError as error:
        if len(names) == 1:
            collected.errors[names[0]] = str(error)
            return []
        # As in prediction: a gradient that is not finite is one image's fault, not its batch mates'.
        alone = [
            (i, _sweep_group(pipeline, [name], x[i : i + 1], collected, stopwatch)) for i, name in enumerate(names)
        ]
        return [(i, found) for i, one in alone for _, found in one]
    rows = {variant: logits.float().cpu() for variant, logits in found.items()}
    finite = torch.stack([torch.isfinite(logits).all(1) for logits in rows.values()]).all(0).tolist()
    for name, ok in zip(names, finite, strict=True):
        if not ok:
            collected.errors[name] = "the model's output is not finite (NaN or infinity)"
    return [(i, {variant: logits[i] for variant, logits in rows.items()}) for i, ok in enumerate(finite) if ok]


class _Stage(NamedTuple):
    """Where steps are taken, with those that are: the pipeline's own place, or its hidden layer."""

    pipeline: Pipeline
    debiased: PerturbedClassifier
    variants: list[Variant]
    hidden: bool

    @classmethod
    def of(cls, pipeline: Pipeline, collected: _Collected, hidden: bool) -> _Stage:
        variants = [variant for variant in collected.logits if variant.hidden == hidden]
        if not hidden or not variants:
            return cls(pipeline, pipeline.debiased, variants, hidden)
        assert not isinstance(pipeline.hidden, str), "variants of it come from a pipeline that has it"
        return cls(pipeline, pipeline.hidden.debiased, variants, hidden)

    def run(
        self, names: list[str], x: Tensor, collected: _Collected, stopwatch: Stopwatch
    ) -> dict[Variant | None, Tensor]:
        """Logits (n, C) of every step on images (n, ...); the pipeline's own place has the model's, under ``None``."""
        debiased, where = self.debiased, "hidden " if self.hidden else ""
        loss_specs = list(dict.fromkeys(variant.loss_spec for variant in self.variants))
        with stopwatch.timing(f"{where}gradient pass", x.device):
            h = debiased.to_stage(x)
            if any(variant.direction != RANDOM_SIGN for variant in self.variants):
                signs, base = gradient_signs(debiased.model, h, self.pipeline.target, loss_specs)
                collected.passes["backward"] += len(loss_specs)
            else:
                # A copy: the model's first layer may work in place.
                signs, base = [], debiased.predict_from_stage(h.clone())
            collected.passes["forward"] += 1
        by_loss_spec = dict(zip(loss_specs, signs, strict=False))
        found: dict[Variant | None, Tensor] = {} if self.hidden else {None: base}
        with stopwatch.timing(f"{where}final pass", x.device):
            for variant in self.variants:
                sign = _random_sign(names, h) if variant.direction == RANDOM_SIGN else by_loss_spec[variant.loss_spec]
                found[variant] = debiased.predict_from_stage(step(h, sign, self._eps(variant).to(h), debiased.clip))
                collected.passes["final"] += 1
        return found

    def _eps(self, variant: Variant) -> Tensor:
        eps = -variant.eps if variant.direction == MINUS_EPS else variant.eps
        if self.pipeline.settings.debias.eps_space == "pixel" and not self.hidden:
            return self.pipeline.preprocessing.pixel_eps(eps)
        return torch.tensor(eps)


def _random_sign(names: list[str], x: Tensor) -> Tensor:
    """Fair coin for each element, from the image's name: the same whatever the batch or the order."""
    signs = torch.empty(x.shape, dtype=torch.int8)
    for sign, name in zip(signs, names, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode("utf-8", "surrogatepass")))
        sign.copy_(torch.randint(0, 2, sign.shape, generator=generator, dtype=torch.int8) * 2 - 1)
    return signs.to(x.device)

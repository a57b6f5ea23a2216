"""Put settings, files and machine together into what a run needs, cheapest checks first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.config.settings import ModelSettings, Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing, select_preprocessing
from imbalance_perturb.errors import CountsError, ImbperturbError, SettingsError, first_line
from imbalance_perturb.inference.acceleration.optimisation import Optimisation, compiled, lower, optimise
from imbalance_perturb.inference.auto_eps import measure_strength, settle_eps
from imbalance_perturb.inference.batching import TRIED, measure_batch_size, usual_batch_size
from imbalance_perturb.inference.correction import logit_correction, make_debiased, settle_prior
from imbalance_perturb.inference.execution import Execution, select_execution
from imbalance_perturb.inference.model_input import settle_preprocessing, trial_size
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts, CountsFile, name_classes, read_counts_file
from imbalance_perturb.method.deployment_prior import select_prior
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.method.perturbation import gradient_sign
from imbalance_perturb.method.target import load_target, target_distribution
from imbalance_perturb.models import (
    LoadedClassifier,
    OwnPreprocessing,
    ProbeResult,
    load_classifier,
    probe_classifier,
    read_class_names,
)
from imbalance_perturb.predictions.making import StepStrength

#: Fewest images of a run whose batch size is measured: that takes the time of some dozens of images.
MEASURED_FROM = 2000


@dataclass(frozen=True)
class Pipeline:
    """Everything that turns images into predictions, checked: the model takes what preprocessing makes of an image.

    ``counts_sha256`` is of the bytes that the counts were read from, as that in ``model.info`` is of the model's.
    ``settings`` have a number for eps; ``strength`` says how it was found, where it was asked for as ``auto``.
    ``debiased`` is the correction in full precision, ``low`` the same in low precision where the execution has one.
    """

    settings: Settings
    counts: ClassCounts
    counts_sha256: str
    target: Tensor
    model: LoadedClassifier
    probe: ProbeResult
    optimisation: Optimisation
    preprocessing: Preprocessing
    execution: Execution
    debiased: PerturbedClassifier
    low: PerturbedClassifier | None = None
    low_optimisation: Optimisation | None = None
    strength: StepStrength | None = None


class Probed(NamedTuple):
    """A model on its device, the preprocessing that feeds it, and what a trial on ``input_shape`` (C, H, W) showed."""

    model: LoadedClassifier
    preprocessing: Preprocessing
    probe: ProbeResult
    input_shape: tuple[int, int, int]
    optimisation: Optimisation


def load_pipeline(
    settings: Settings,
    images: ImageList,
    *,
    counts_file: CountsFile | None = None,
    exact: bool = False,
    n_images: int | None = None,
    measure_step: bool = False,
) -> Pipeline:
    """Load, check and connect model, counts and preprocessing for these images.

    Args:
        settings: of the run.
        images: what it is about.
        counts_file: what :func:`load_counts` gave, where it was needed before.
        n_images: of how many images it is a part; by default those of the whole list.
        exact: in full precision throughout, as a choice between corrections must be.
        measure_step: find out which eps is the full correction, also where the settings have a number.

    Raises:
        ImbperturbError: the first thing that is wrong, with its remedy.
    """
    counts, counts_sha256 = counts_file or load_counts(settings.model)
    settings = settle_prior(settings, counts)
    target = select_target(settings, counts)
    n_images = len(images.everything) if n_images is None else n_images
    execution = select_execution(settings.run, n_images, exact=exact)
    probed = load_probed(settings, counts, images, execution)
    strength = None
    if measure_step or (isinstance(settings.debias.eps, str) and settings.debias.moves_input):
        strength = measure_strength(probed.model, images, counts, settings.debias, probed.preprocessing, execution)
        settings = settle_eps(settings, strength)
    trial = make_trial(probed.input_shape, execution.device, probed.model.fit_batch(2))
    correction = logit_correction(settings.debias, probed.model, trial, counts)
    execution, lowered = _lower(settings, probed, execution)
    low = None
    if lowered is not None:
        low = make_debiased(settings.debias, lowered.model, counts, target, probed.preprocessing, correction)
    debiased = make_debiased(settings.debias, probed.model, counts, target, probed.preprocessing, correction)
    if settings.run.batch_size is None:
        execution = replace(execution, batch_size=_batch_size(probed, low or debiased, execution, n_images))
    if settings.run.compile:
        execution = _compile(probed, lowered, execution)
    return Pipeline(
        settings=settings,
        counts=counts,
        counts_sha256=counts_sha256,
        target=target,
        model=probed.model,
        probe=probed.probe,
        optimisation=probed.optimisation,
        preprocessing=probed.preprocessing,
        execution=execution,
        debiased=debiased,
        low=low,
        low_optimisation=None if lowered is None else lowered.optimisation,
        strength=strength,
    )


def make_predictor(pipeline: Pipeline) -> Predictor:
    """A fresh predictor, in the precision and with the close calls of the execution."""
    execution = pipeline.execution
    return Predictor(
        pipeline.debiased,
        pipeline.low,
        precision=execution.precision,
        close_calls_only=execution.close_calls_only,
        low_name=execution.low_name,
        batch_size=execution.batch_size,
        # Images that keep a size of their own are often alone in their batch: filled up they would cost four times.
        alike=pipeline.preprocessing.size is not None,
    )


class _Lowered(NamedTuple):
    model: LoadedClassifier
    optimisation: Optimisation


def _lower(settings: Settings, probed: Probed, execution: Execution) -> tuple[Execution, _Lowered | None]:
    """The model in the execution's low precision, if any; where it fails in it, ``auto`` is fp32 after all."""
    if execution.low_dtype is None:
        return execution, None
    model = probed.model
    trial = make_trial(probed.input_shape, execution.device, model.fit_batch(2))
    try:
        network, optimisation = lower(model.network, trial, execution.low_dtype)
        lowered = LoadedClassifier(network, model.info, batch_range=model.batch_range)
        gradient_sign(lowered, trial, torch.full((model.info.num_classes,), 1 / model.info.num_classes))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a network raises in a precision that it was not written for
        reason = first_line(error)
        if settings.run.precision != "auto":
            raise SettingsError(
                f"precision is {execution.precision}, but the model fails in it ({reason}); use auto or fp32"
            ) from error
        notes = (*execution.notes, f"auto: the model fails in {execution.low_name} ({reason})")
        return replace(execution, precision="fp32", low_dtype=None, notes=notes), None
    return execution, _Lowered(lowered, optimisation)


def _batch_size(probed: Probed, debiased: PerturbedClassifier, execution: Execution, n_images: int) -> int:
    """Measured where the run is long enough and may depend on the clock, else from the size of the images."""
    device, shape = execution.device, probed.input_shape
    if execution.deterministic or n_images < MEASURED_FROM:
        return usual_batch_size(device.type, shape)
    with full_precision(device):
        return measure_batch_size(debiased.predict_both, lambda n: make_trial(shape, device, n), TRIED[device.type])


def _compile(probed: Probed, lowered: _Lowered | None, execution: Execution) -> Execution:
    """Compile what the models run, in place; reasons why not are noted."""
    x = make_trial(probed.input_shape, execution.device, probed.model.fit_batch(execution.batch_size))
    notes = list(execution.notes)
    for model in (probed.model, *(() if lowered is None else (lowered.model,))):
        model.network, reason = compiled(model.network, x)
        notes += [reason] if reason is not None and reason not in notes else []
    return replace(execution, notes=tuple(notes))


def load_counts(settings: ModelSettings) -> CountsFile:
    """The class counts that the settings name, and the hash of their file.

    Classes called by index get the names that the model file has; those of the model that is then loaded are held
    against them once more.
    """
    if settings.counts is None:
        raise SettingsError("no class counts are given; name a JSON file with {class: count} after the model")
    if settings.model is not None and settings.model.endswith(".json") and not settings.counts.endswith(".json"):
        raise SettingsError(
            f"{settings.model}: this is a JSON file in the model's place; the order is MODEL COUNTS IMAGES"
        )
    file = read_counts_file(settings.counts)
    if not file.counts.indexed or settings.model is None:
        return file
    found = read_class_names(settings.model, len(file.counts), trust_model_file=settings.trust_model_file)
    return file if found is None else file._replace(counts=_agree(file.counts, found.names, settings))


def _agree(counts: ClassCounts, names: tuple[str, ...], settings: ModelSettings) -> ClassCounts:
    try:
        return name_classes(counts, names)
    except CountsError as error:
        raise CountsError(f"{settings.counts}: {error}, in {settings.model}; write the counts in that order") from None


def select_target(settings: Settings, counts: ClassCounts) -> Tensor:
    """p* as the settings ask for it, (C,) float64."""
    kind, m = settings.debias.target, settings.debias.target_m
    prior = None if settings.debias.method == "none" else select_prior(settings.debias.prior, counts)
    if kind.endswith(".json"):
        if m is not None:
            raise SettingsError("target_m belongs to the log target; a target from a file has none: leave it out")
        if prior is not None and settings.debias.moves_input:
            raise SettingsError(f"target is {kind}, which says it all; a prior goes with a function of the counts")
        return load_target(kind, counts)
    if counts.balanced and settings.debias.method == "none":
        return torch.full((len(counts),), 1 / len(counts), dtype=torch.float64)  # nothing asks for a direction
    with _naming(settings.model.counts):
        return target_distribution(counts, kind, m=m, prior=prior)


@contextmanager
def _naming(path: str | None) -> Iterator[None]:
    """Put the file a fault lies in before the message of an error that cannot know it."""
    try:
        yield
    except ImbperturbError as error:
        if path is None or path in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def load_probed(
    settings: Settings, counts: ClassCounts | None, images: ImageList | None, execution: Execution
) -> Probed:
    """Load the model, settle its preprocessing, and try one with the other on the execution's device."""
    if settings.model.model is None:
        raise SettingsError("no model is given; name the model file first")
    size_of = cache(lambda preprocessing: trial_size(preprocessing, images, execution))
    if settings.preprocess.preset is not None:
        select_preprocessing(settings.preprocess)  # what is wrong with it need not wait for the model

    def shape_for(own: OwnPreprocessing | None) -> tuple[int, ...]:
        # While the file is being read nothing is known of its channels; the preset's colour serves until then.
        provisional = settle_preprocessing(settings.preprocess, own)
        return (provisional.channels, *size_of(provisional))

    model = load_classifier(
        settings.model.model,
        arch=settings.model.arch,
        factory=settings.model.factory,
        head_activation=settings.model.head_activation,
        outputs=settings.model.outputs,
        trust_model_file=settings.model.trust_model_file,
        input_shape=shape_for,
        num_classes=None if counts is None else len(counts),
        weights=settings.model.weights,
    )
    if counts is not None and model.info.classes is not None and len(counts) == model.info.num_classes:
        _agree(counts, model.info.classes, settings.model)
    preprocessing = settle_preprocessing(settings.preprocess, model.preprocessing, model.info.in_channels)
    model.to(execution.device)
    shape = (preprocessing.channels, *size_of(preprocessing))
    with _naming(settings.model.model):
        probe = probe_classifier(model, shape, num_classes=None if counts is None else len(counts))
    model.network, optimisation = optimise(model.network, make_trial(shape, execution.device, model.fit_batch(2)))
    return Probed(model, preprocessing, probe, shape, optimisation)


def make_trial(shape: tuple[int, int, int], device: torch.device, n: int) -> Tensor:
    """Random inputs (n, C, H, W) to try a network on, the same every time."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(device)

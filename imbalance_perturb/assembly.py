"""Put settings, files and machine together into what a run needs, cheapest checks first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.classifier import PerturbedClassifier
from imbalance_perturb.counts import ClassCounts, load_class_counts
from imbalance_perturb.errors import ImageError, ImbperturbError, SettingsError
from imbalance_perturb.execution import Execution, select_execution
from imbalance_perturb.images import ImageList, decode_image
from imbalance_perturb.models import LoadedClassifier, ProbeResult, load_classifier, probe_classifier
from imbalance_perturb.optimisation import Optimisation, optimise
from imbalance_perturb.preprocessing import Preprocessing, make_geometry, select_preprocessing
from imbalance_perturb.settings import DebiasSettings, ModelSettings, Settings
from imbalance_perturb.target import load_target, target_distribution

#: Height and width that a model is tried with where neither preprocessing nor an image says one.
FALLBACK_SIZE = (224, 224)


@dataclass(frozen=True)
class Assembly:
    """Everything that turns images into predictions, checked: the model takes what preprocessing makes of an image."""

    settings: Settings
    counts: ClassCounts
    target: Tensor
    model: LoadedClassifier
    probe: ProbeResult
    optimisation: Optimisation
    preprocessing: Preprocessing
    execution: Execution
    debiased: PerturbedClassifier


class Probed(NamedTuple):
    """A model on its device, the preprocessing that feeds it, and what a trial on ``input_shape`` (C, H, W) showed."""

    model: LoadedClassifier
    preprocessing: Preprocessing
    probe: ProbeResult
    input_shape: tuple[int, int, int]
    optimisation: Optimisation


def assemble(settings: Settings, images: ImageList) -> Assembly:
    """Load, check and connect model, counts and preprocessing for these images.

    Raises:
        ImbperturbError: the first thing that is wrong, with its remedy.
    """
    counts = load_counts(settings.model)
    target = select_target(settings, counts)
    execution = select_execution(settings.run, len(images))
    probed = load_probed(settings, counts, images, execution)
    return Assembly(
        settings=settings,
        counts=counts,
        target=target,
        model=probed.model,
        probe=probed.probe,
        optimisation=probed.optimisation,
        preprocessing=probed.preprocessing,
        execution=execution,
        debiased=make_debiased(settings.debias, probed.model, counts, target, probed.preprocessing),
    )


def load_counts(settings: ModelSettings) -> ClassCounts:
    """The class counts that the settings name."""
    if settings.counts is None:
        raise SettingsError("no class counts are given; name a JSON file with {class: count} after the model")
    return load_class_counts(settings.counts)


def select_target(settings: Settings, counts: ClassCounts) -> Tensor:
    """p* as the settings ask for it, (C,) float64."""
    kind, m = settings.debias.target, settings.debias.target_m
    if kind.endswith(".json"):
        if m is not None:
            raise SettingsError("target_m belongs to the log target; a target from a file has none: leave it out")
        return load_target(kind, counts)
    with _naming(settings.model.counts):
        return target_distribution(counts, kind, m=m)


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
    # Before the file is opened nothing is known of its channels; the preset's colour serves until then.
    provisional = select_preprocessing(settings.preprocess)
    size = _trial_size(provisional, images)
    model = load_classifier(
        settings.model.model,
        arch=settings.model.arch,
        factory=settings.model.factory,
        outputs=settings.model.outputs,
        trust_model_file=settings.model.trust_model_file,
        input_shape=(provisional.channels, *size),
    )
    preprocessing = select_preprocessing(settings.preprocess, model.info.in_channels)
    model.to(execution.device)
    shape = (preprocessing.channels, *size)
    with _naming(settings.model.model):
        probe = probe_classifier(model, shape, num_classes=None if counts is None else len(counts))
    trial = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(execution.device)
    model.network, optimisation = optimise(model.network, trial)
    return Probed(model, preprocessing, probe, shape, optimisation)


def make_debiased(
    settings: DebiasSettings, model: LoadedClassifier, counts: ClassCounts, target: Tensor, preprocessing: Preprocessing
) -> PerturbedClassifier:
    """The corrected classifier, with eps and clip in units of the tensor that preprocessing makes."""
    return PerturbedClassifier(
        model,
        counts,
        eps=preprocessing.pixel_eps(settings.eps) if settings.eps_space == "pixel" else settings.eps,
        temperature=settings.temperature,
        loss=settings.loss,
        target=target,
        clip=preprocessing.bounds() if settings.clip else None,
        steps=settings.steps,
        tau=settings.tau,
    )


def _trial_size(preprocessing: Preprocessing, images: ImageList | None) -> tuple[int, int]:
    if preprocessing.size is not None:
        return preprocessing.size
    geometry = make_geometry(preprocessing)
    for name in () if images is None else images.names:
        try:
            pixels = geometry(decode_image(images.root / name, preprocessing.color))  # type: ignore[union-attr]
        except ImageError:
            continue  # its own row will say so
        return int(pixels.shape[1]), int(pixels.shape[2])
    shorter = preprocessing.resize
    return (shorter, shorter) if isinstance(shorter, int) else FALLBACK_SIZE

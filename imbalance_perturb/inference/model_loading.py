"""Load a model, and try it with the preprocessing that feeds it; load the class counts that belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.config.settings import ModelSettings, Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing, select_preprocessing
from imbalance_perturb.errors import CountsError, ImbperturbError, SettingsError, first_few
from imbalance_perturb.inference.acceleration.optimisation import Optimisation, optimise
from imbalance_perturb.inference.execution import Execution, applied
from imbalance_perturb.inference.hidden_stage.staged_network import cut_model, each_part
from imbalance_perturb.inference.model_input import settle_preprocessing, trial_size
from imbalance_perturb.method.counts import ClassCounts, CountsFile, name_classes, read_counts_file
from imbalance_perturb.method.perturbation import gradient_sign
from imbalance_perturb.models import (
    LoadedClassifier,
    OwnPreprocessing,
    ProbeResult,
    load_classifier,
    probe_classifier,
    read_class_names,
)


class Probed(NamedTuple):
    """A model on its device, the preprocessing that feeds it, and what a trial on ``input_shape`` (C, H, W) showed.

    ``uncut``: why its network is not cut in two, where that was wanted if possible.
    """

    model: LoadedClassifier
    preprocessing: Preprocessing
    probe: ProbeResult
    input_shape: tuple[int, int, int]
    optimisation: Optimisation
    uncut: str | None = None


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


@contextmanager
def naming(path: str | None) -> Iterator[None]:
    """Put the file a fault lies in before the message of an error that cannot know it."""
    try:
        yield
    except ImbperturbError as error:
        if path is None or path in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def load_probed(
    settings: Settings,
    counts: ClassCounts | None,
    images: ImageList | None,
    execution: Execution,
    *,
    optimised: bool = True,
    cut_at: str | None = None,
    must_cut: bool = True,
) -> Probed:
    """Load the model, settle its preprocessing, and try one with the other on the execution's device.

    ``cut_at``: the layer behind which the network is cut in two, or ``auto``; an error where it cannot be and must.
    """
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
    model.place_on(execution.device)
    shape = (preprocessing.channels, *size_of(preprocessing))
    with naming(settings.model.model):
        probe = probe_classifier(model, shape, num_classes=None if counts is None else len(counts))
        check_deterministic(model, make_trial(shape, execution.device, 2), execution)
    uncut = None
    few = images is not None and not optimised and model.card is None
    optimisation = Optimisation("as the file has it (few images)" if few else "as the file has it", 0.0)
    if cut_at is not None and model.card is None:
        try:
            with naming(settings.model.model):
                cut_model(model, cut_at, make_trial(shape, execution.device, 1))
        except SettingsError as error:
            if must_cut:
                raise
            uncut = str(error)
    trial = make_trial(shape, execution.device, model.fit_batch(2))
    if optimised and model.card is None:
        model.network, optimisation = each_part(model.network, trial, optimise)
    elif cut_at is not None and model.card is None:
        model.network, optimisation = each_part(model.network, trial, lambda part, _: (part, optimisation))
    return Probed(model, preprocessing, probe, shape, optimisation, uncut)


def check_deterministic(model: LoadedClassifier, x: Tensor, execution: Execution) -> None:
    """Run both passes under deterministic algorithms, where these are asked for, to find out what has none.

    Raises:
        SettingsError: naming the operation, and the layers that do it.
    """
    if not execution.deterministic:
        return
    classes = model.info.num_classes
    try:
        with applied(execution):
            gradient_sign(model, x, torch.full((classes,), 1 / classes))
    except RuntimeError as error:
        if _NO_DETERMINISTIC not in str(error):
            raise
        operation = str(error).split()[0]
        kind = operation.partition("_backward")[0].replace("_", "")
        layers = [name for name, layer in model.network.named_modules() if type(layer).__name__.lower() == kind]
        where = f" (layers: {first_few(layers)})" if layers else ""
        raise SettingsError(
            f"deterministic is true, but {execution.device} has no such algorithm for {operation}{where}; leave it out,"
            " or use --device cpu"
        ) from error


#: In what torch says where an operation has none.
_NO_DETERMINISTIC = "does not have a deterministic implementation"


def make_trial(shape: tuple[int, int, int], device: torch.device, n: int) -> Tensor:
    """Random inputs (n, C, H, W) to try a network on, the same every time."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(device)

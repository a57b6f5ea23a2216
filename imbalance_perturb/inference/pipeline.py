"""Put settings, files and machine together into what a run needs, cheapest checks first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.errors import SettingsError, first_line
from imbalance_perturb.inference.acceleration.optimisation import Optimisation, compiled, lower
from imbalance_perturb.inference.auto_eps import measure_strength, settle_eps
from imbalance_perturb.inference.batching import MULTIPLE, TRIED, measure_batch_size, usual_batch_size
from imbalance_perturb.inference.correction import logit_correction, make_debiased, settle_corrected, settle_prior
from imbalance_perturb.inference.execution import Execution, enough_memory, select_execution
from imbalance_perturb.inference.hidden_stage.cutting import Staged
from imbalance_perturb.inference.hidden_stage.staged_network import each_part
from imbalance_perturb.inference.model_loading import Probed, load_counts, load_probed, make_trial, naming
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts, CountsFile
from imbalance_perturb.method.deployment_prior import select_prior
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.method.perturbation import gradient_sign
from imbalance_perturb.method.target import load_target, target_distribution
from imbalance_perturb.models import LoadedClassifier, ProbeResult
from imbalance_perturb.models.corrected_file import CorrectedCard
from imbalance_perturb.predictions.making import StepStrength

#: Fewest images of a run whose batch size is measured: that takes the time of some dozens of images.
MEASURED_FROM = 2000

#: Fewest images for which a network is rewritten: that and its trial take the time of about so many.
OPTIMISED_FROM = 16


class HiddenStep(NamedTuple):
    """The correction at a hidden layer beside that at the input: for a choice between the two.

    ``layer``: its path; ``behind``: the share of a forward pass that lies behind it. ``debiased`` has an eps of no
    consequence; ``strength`` says which is the full correction.
    """

    debiased: PerturbedClassifier
    layer: str
    behind: float
    strength: StepStrength


@dataclass(frozen=True)
class Pipeline:
    """Everything that turns images into predictions, checked: the model takes what preprocessing makes of an image.

    ``counts_sha256`` is of the bytes that the counts were read from, as that in ``model.info`` is of the model's.
    ``settings`` have a number for eps; ``strength`` says how it was found, where it was asked for as ``auto``.
    ``input_shape`` (C, H, W) is what the model was tried on, ``n_images`` are those of the list, 0 where there is none.
    ``debiased`` is the correction in full precision, ``low`` the same in low precision where the execution has one.
    ``hidden``: where it was asked for, the correction at a hidden layer, or why this network has none.
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
    input_shape: tuple[int, int, int]
    n_images: int = 0
    low: PerturbedClassifier | None = None
    low_optimisation: Optimisation | None = None
    strength: StepStrength | None = None
    hidden: HiddenStep | str = "not asked for"


def load_pipeline(
    settings: Settings,
    images: ImageList | None,
    *,
    counts_file: CountsFile | None = None,
    exact: bool = False,
    n_images: int | None = None,
    measure_step: bool = False,
    optimised: bool = True,
    cores: int | None = None,
    hidden_at: str | None = None,
) -> Pipeline:
    """Load, check and connect model, counts and preprocessing for these images.

    Args:
        settings: of the run.
        images: what it is about; ``None`` where it is about none, and eps a number.
        counts_file: what :func:`load_counts` gave, where it was needed before.
        n_images: of how many images it is a part; by default those of the whole list.
        exact: in full precision throughout, as a choice between corrections must be.
        measure_step: find out which eps is the full correction, also where the settings have a number.
        optimised: whether the network may be rewritten for this machine; it is where images enough follow.
        cores: of the machine that the run may use; by default those that this process has.
        hidden_at: the layer of a second correction beside that of the settings, or ``auto``, where there is one.

    Raises:
        ImbperturbError: the first thing that is wrong, with its remedy.
    """
    counts, counts_sha256 = counts_file or load_counts(settings.model)
    settings = settle_prior(settings, counts)
    target = select_target(settings, counts)
    if n_images is None:
        n_images = 0 if images is None else len(images.everything)
    execution = select_execution(settings.run, n_images, exact=exact, cores=cores)
    if execution.low_dtype is None and not settings.run.compile and 0 < n_images < OPTIMISED_FROM:
        optimised = False
    with enough_memory(execution.device, "this model and two images: use --device cpu, or smaller images"):
        cut_at = settings.debias.perturb_at if settings.debias.hidden else hidden_at
        probed = load_probed(
            settings, counts, images, execution, optimised=optimised, cut_at=cut_at, must_cut=hidden_at != "auto"
        )
        if probed.model.card is not None:
            settings, target = _take_card(settings, probed.model.card, counts, exact=exact)
            execution = select_execution(settings.run, n_images, cores=cores)
        if settings.debias.hidden and isinstance(probed.model.network, Staged):
            settings = replace(settings, debias=replace(settings.debias, perturb_at=probed.model.network.layer))
        strength = None
        if measure_step or (isinstance(settings.debias.eps, str) and settings.debias.moves_input):
            assert images is not None, "refused before"
            strength = measure_strength(probed.model, images, counts, settings.debias, probed.preprocessing, execution)
            settings = settle_eps(settings, strength)
        trial = make_trial(probed.input_shape, execution.device, probed.model.fit_batch(2))
        # What a corrected file does to its logits it has done.
        corrected = probed.model.card is not None
        correction = None if corrected else logit_correction(settings.debias, probed.model, trial, counts)
        execution, lowered = _lower(settings, probed, execution)
        low = None
        if lowered is not None:
            low = make_debiased(settings.debias, lowered.model, counts, target, probed.preprocessing, correction)
        debiased = make_debiased(settings.debias, probed.model, counts, target, probed.preprocessing, correction)
        hidden: HiddenStep | str = probed.uncut or "not asked for"
        if hidden_at is not None and probed.uncut is None:
            assert images is not None, "a choice is of images"
            hidden = _hidden_step(settings, probed, images, counts, target, execution)
        if settings.run.batch_size is None:
            execution = replace(execution, batch_size=_batch_size(probed, low or debiased, execution, n_images))
        execution = execution.for_images(probed.input_shape)
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
        input_shape=probed.input_shape,
        n_images=n_images,
        low=low,
        low_optimisation=None if lowered is None else lowered.optimisation,
        strength=strength,
        hidden=hidden,
    )


def _hidden_step(
    settings: Settings, probed: Probed, images: ImageList, counts: ClassCounts, target: Tensor, execution: Execution
) -> HiddenStep:
    """The step of the settings at the layer where the network is cut, where there are no pixels."""
    staged = probed.model.network
    assert isinstance(staged, Staged)
    debias = replace(settings.debias, perturb_at=staged.layer, clip=False, eps_space="input")
    strength = measure_strength(probed.model, images, counts, debias, probed.preprocessing, execution)
    debiased = make_debiased(debias, probed.model, counts, target, probed.preprocessing)
    return HiddenStep(debiased, staged.layer, staged.behind, strength)


def _take_card(settings: Settings, card: CorrectedCard, counts: ClassCounts, *, exact: bool) -> tuple[Settings, Tensor]:
    """The settings, and p*, of a file that is corrected already."""
    if exact:
        raise SettingsError(
            f"{settings.model.model} is corrected already, so that nothing can be chosen or corrected with it: give the"
            f" model that it was made from ({card.model.file})"
        )
    return settle_corrected(settings, card, counts), torch.tensor([one.target for one in card.classes]).double()


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
        # Images that keep a size of their own are often alone in their batch: filled up they would cost four times,
        # as would a list of one image.
        alike=pipeline.preprocessing.size is not None and not 0 < pipeline.n_images < MULTIPLE,
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
        network, optimisation = each_part(model.network, trial, partial(lower, dtype=execution.low_dtype))
        lowered = LoadedClassifier(network, model.info, batch_range=model.batch_range)
        gradient_sign(lowered, trial, torch.full((model.info.num_classes,), 1 / model.info.num_classes))
    except Exception as error:  # what a network raises in a precision that it was not written for
        pass_on_device_errors(error)
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

    def compile_part(network: nn.Module, trial: Tensor) -> tuple[nn.Module, Optimisation]:
        made, reason = compiled(network, trial)
        notes.extend([reason] if reason is not None and reason not in notes else [])
        return made, probed.optimisation

    for model in (probed.model, *(() if lowered is None else (lowered.model,))):
        model.network, _ = each_part(model.network, x, compile_part)
    return replace(execution, notes=tuple(notes))


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
    with naming(settings.model.counts):
        return target_distribution(counts, kind, m=m, prior=prior)

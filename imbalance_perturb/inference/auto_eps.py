"""Find the eps at which the step takes the whole log prior away, on a sample of the run's images and without labels."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch
from torch import nn

from imbalance_perturb.config.allowed import auto_factor
from imbalance_perturb.config.settings import DebiasSettings, Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import MEASURED, strength_positions
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.errors import ImageFolderError
from imbalance_perturb.inference.execution import Execution
from imbalance_perturb.inference.hidden_stage.staged_network import halves
from imbalance_perturb.inference.model_input import decode_some
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.deployment_prior import select_prior
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.method.step_strength import full_eps, prior_gradient_norms
from imbalance_perturb.models import LoadedClassifier
from imbalance_perturb.predictions.making import StepStrength

#: Images at a time.
_BATCH = 16


def settle_eps(settings: Settings, strength: StepStrength) -> Settings:
    """The settings with a number for eps, where they ask for ``auto``."""
    eps = settings.debias.eps
    if not isinstance(eps, str):
        return settings
    factor = auto_factor(eps)
    assert factor is not None, "checked where the settings were made"
    return replace(settings, debias=replace(settings.debias, eps=float(f"{factor * strength.full_eps:.3g}")))


def measure_strength(
    model: LoadedClassifier,
    images: ImageList,
    counts: ClassCounts,
    debias: DebiasSettings,
    preprocessing: Preprocessing,
    execution: Execution,
    sampled: int = MEASURED,
) -> StepStrength:
    """Measure on at most ``sampled`` images which eps is the full correction, in units of the settings.

    Raises:
        ImageFolderError: if none of the sampled images can be used.
        CountsError, ModelGradientError: as for :func:`full_eps`.
    """
    # Drawn from all of a run, whichever part of it this is.
    names = [images.everything[index] for index in strength_positions(len(images.everything), sampled)]
    unit = preprocessing.pixel_eps(1.0) if debias.eps_space == "pixel" else torch.tensor(1.0)
    front, back = halves(model) if debias.hidden else (nn.Identity(), model)
    prior = select_prior(debias.prior, counts)
    norms, errors = [], []
    decoded = decode_some(images, names, preprocessing, execution, _BATCH)
    with closing(decoded) as batches, full_precision(execution.device):
        for batch in batches:
            errors += [error for error in batch.errors if error is not None]
            for _, pixels in batch.groups:
                x = preprocessing.normalise(pixels.to(execution.device))
                with torch.no_grad():
                    h = front(x)
                norms.append(prior_gradient_norms(back, h, counts, unit, prior))
    if not norms:
        raise ImageFolderError(
            f"{images.root}: none of {len(names)} sampled images can be used (first: {errors[0]}), so eps cannot be"
            " auto; give a number"
        )
    found = torch.cat(norms)
    return StepStrength(asked=debias.eps, full_eps=full_eps(found, counts, prior), images=len(found))

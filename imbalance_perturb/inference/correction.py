"""From the settings of the correction to the classifier that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, Settings
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.errors import CountsError, SettingsError, first_few
from imbalance_perturb.inference.hidden_stage.staged_network import halves
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.deployment_prior import read_prior, select_prior
from imbalance_perturb.method.logit_corrections import add_offsets, normalise_rows
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.models import LoadedClassifier
from imbalance_perturb.models.corrected_file import CorrectedCard, CorrectedNetwork
from imbalance_perturb.models.last_layer import find_last_layer


def settle_prior(settings: Settings, counts: ClassCounts) -> Settings:
    """The settings with the shares themselves for a prior that is in a file, so that a run holds what it was made with.

    Raises:
        SettingsError: if the prior cannot be used with these classes.
    """
    shares = read_prior(settings.debias.prior, counts)
    return settings if shares is None else replace(settings, debias=replace(settings.debias, prior=shares))


def settle_corrected(settings: Settings, card: CorrectedCard, counts: ClassCounts) -> Settings:
    """The settings of a run of a file that is corrected already: those of the correction are the file's.

    Raises:
        CountsError: if the counts are not those that it was corrected for.
        SettingsError: if another correction is asked for, or what only one that is computed here can have.
    """
    path, run = settings.model.model, settings.run
    check_counts(settings.model, card, counts)
    if settings.debias not in (DebiasSettings(), card.correction):
        differing = [
            f"{name} is {value}, there {getattr(card.correction, name)}"
            for name, value in vars(settings.debias).items()
            if value not in (getattr(card.correction, name), getattr(DebiasSettings(), name))
        ]
        what = first_few(differing or ["its settings are others"])
        raise SettingsError(
            f"{path} is corrected already, when it was exported ({what}); leave options of the correction out, or give"
            " the model that it was made from"
        )
    if run.precision in ("bf16", "fp16") or run.close_calls_only or run.compile:
        raise SettingsError(
            f"{path} is corrected already, in float32 and all in one: precision {run.precision}, close_calls_only and"
            " compile are for the model that it was made from"
        )
    return replace(settings, debias=card.correction, run=replace(run, precision="fp32"))


def check_counts(model: ModelSettings, card: CorrectedCard, counts: ClassCounts) -> None:
    """Refuse counts other than those that a file was corrected for.

    Raises:
        CountsError: with the file's own.
    """
    if (counts.names, counts.counts) != (card.names, tuple(one.count for one in card.classes)):
        own = ", ".join(f"{one.name}: {one.count:,}" for one in card.classes)
        raise CountsError(f"{model.counts}: other counts than {model.model} was corrected for ({own}); give these")


class CorrectedClassifier(PerturbedClassifier):
    """A program that computes both logits by itself, in the place of a classifier that is corrected here.

    Args:
        model: a file's that has a card.
        counts: of its classes.
        target: (C,) p* of its card.
    """

    def __init__(self, model: LoadedClassifier, counts: ClassCounts, target: Tensor) -> None:
        super().__init__(model, counts, eps=0.0, target=target)

    def predict_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return base and corrected logits, each (N, C), as the program computes them."""
        assert isinstance(self.model, LoadedClassifier)
        assert isinstance(self.model.network, CorrectedNetwork)
        with torch.no_grad(), full_precision(x.device):
            logits, base = self.model.network.both(x)
        return base, logits


def make_debiased(
    settings: DebiasSettings,
    model: LoadedClassifier,
    counts: ClassCounts,
    target: Tensor,
    preprocessing: Preprocessing,
    correction: Callable[[Tensor], Tensor] | None = None,
) -> PerturbedClassifier:
    """The corrected classifier, with eps and clip in units of the tensor that preprocessing makes.

    Where the step is at a hidden layer the model is cut in two there.
    """
    if model.card is not None:
        return CorrectedClassifier(model, counts, target)
    eps = settings.eps if settings.moves_input else 0.0
    assert not isinstance(eps, str), "auto is settled before"
    front, back = halves(model) if settings.hidden else (None, model)
    return PerturbedClassifier(
        back,
        counts,
        eps=preprocessing.pixel_eps(eps) if settings.eps_space == "pixel" else eps,
        temperature=settings.temperature,
        loss=settings.loss,
        target=target,
        clip=preprocessing.bounds() if settings.clip else None,
        steps=settings.steps,
        tau=0.0 if settings.method == "tau-norm" else settings.used_tau,
        correction=correction,
        prior=select_prior(settings.prior, counts),
        front=front,
        mark_unusable=next((parameter.is_cuda for parameter in model.parameters()), False),
    )


def logit_correction(
    settings: DebiasSettings, model: LoadedClassifier, trial: Tensor, counts: ClassCounts
) -> Callable[[Tensor], Tensor] | None:
    """What the method does to logits beside logit adjustment.

    Args:
        trial: (N, ...) a few inputs, on the model's device.

    Raises:
        SettingsError: for offsets of another number of classes, and a model without a last layer to normalise.
    """
    if settings.method == "offsets":
        assert settings.offsets is not None, "checked where the settings were made"
        if len(settings.offsets) != len(counts):
            raise SettingsError(f"offsets has {len(settings.offsets)} numbers for {len(counts)} classes; give one each")
        return partial(add_offsets, offsets=settings.offsets)
    if settings.method != "tau-norm":
        return None
    layer = find_last_layer(model, trial)
    if isinstance(layer, str):
        raise SettingsError(f"method is tau-norm, which this model cannot have: {layer}; choose another")
    return partial(normalise_rows, norms=layer.norms, bias=layer.bias, tau=settings.used_tau)

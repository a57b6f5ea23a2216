"""Putting a tuned eps into the recipe, with all that it was tuned for, so that `predict` then uses it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from imbalance_perturb.config.recipe import load_recipe, merge_settings, seen_from_recipe, update_recipe
from imbalance_perturb.config.settings import DebiasSettings, Settings
from imbalance_perturb.selection.tuning.results import Tuning


def tuned_debias(tuning: Tuning, debias: DebiasSettings) -> DebiasSettings:
    """The settings with the chosen eps, and its loss and temperature; with eps 0 those stay as they are."""
    choice = tuning.choice
    if choice.loss is None or choice.temperature is None:
        return replace(debias, eps=0.0)
    return replace(debias, eps=choice.eps, loss=choice.loss, temperature=choice.temperature)


def is_of_recipe(recipe: Path, settings: Settings) -> bool:
    """Whether settings have the model, the counts and the preprocessing of a recipe, which then gets their choice."""
    own = merge_settings(load_recipe(recipe))
    # Whether its code may run is no part of what a model is.
    model = replace(own.model, trust_model_file=settings.model.trust_model_file)
    return model == settings.model and own.preprocess == settings.preprocess


def update_tuned_recipe(recipe: Path, settings: Settings, tuning: Tuning) -> dict[str, Any] | None:
    """Write the choice into ``[debias]`` of the recipe, with whatever else the command line changed there.

    Args:
        recipe: the file the settings came from.
        settings: those of the tuning: the recipe's, with the command line over them.
        tuning: what was chosen.

    Returns:
        The entries written, or ``None`` where the tuning was of another model, other counts or other preprocessing
        than the recipe's: an eps that was not tuned for them must not stand beside them.

    Raises:
        SettingsError, OutputFileError: if the recipe cannot be read or written.
    """
    if not is_of_recipe(recipe, settings):
        return None
    own = merge_settings(load_recipe(recipe))
    before, after = asdict(own.debias), asdict(tuned_debias(tuning, settings.debias))
    # A value of None cannot be written, and no option sets one.
    values = {
        key: value for key, value in after.items() if value is not None and (key == "eps" or value != before[key])
    }
    values = seen_from_recipe(recipe, "debias", values)
    update_recipe(recipe, "debias", values)
    return values

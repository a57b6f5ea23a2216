"""Putting what was chosen into the recipe, with all that it was chosen for, so that `predict` then uses it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from imbalance_perturb.config.recipe import load_recipe, merge_settings, seen_from_recipe, update_recipe
from imbalance_perturb.config.settings import DebiasSettings, Settings
from imbalance_perturb.files.writing import check_writable


def is_of_recipe(recipe: Path, settings: Settings) -> bool:
    """Whether settings have the model, the counts and the preprocessing of a recipe, which then gets their choice."""
    own = merge_settings(load_recipe(recipe))
    # Whether its code may run is no part of what a model is.
    model = replace(own.model, trust_model_file=settings.model.trust_model_file)
    return model == settings.model and own.preprocess == settings.preprocess


def check_recipe(recipe: Path | None, settings: Settings) -> None:
    """Refuse a recipe that is to get the choice and cannot be written, before the work.

    Raises:
        OutputFileError: if it cannot.
    """
    if recipe is not None and is_of_recipe(recipe, settings):
        check_writable(recipe, "copy it to a place that can be, and name the copy with --recipe")


def update_chosen_recipe(
    recipe: Path, settings: Settings, chosen: DebiasSettings, always: Collection[str] = ("eps",)
) -> dict[str, Any] | None:
    """Write the choice into ``[debias]`` of the recipe, with whatever else the command line changed there.

    Args:
        recipe: the file the settings came from.
        settings: those of the choice: the recipe's, with the command line over them.
        chosen: the correction.
        always: entries that are written also where the recipe has that value without saying it.

    Returns:
        The entries written, or ``None`` where the choice was of another model, other counts or other preprocessing than
        the recipe's: a correction that was not chosen for them must not stand beside them.

    Raises:
        SettingsError, OutputFileError: if the recipe cannot be read or written.
    """
    if not is_of_recipe(recipe, settings):
        return None
    before, after = asdict(merge_settings(load_recipe(recipe)).debias), asdict(chosen)
    # A value of None cannot be written, and no option sets one.
    values = {
        key: value for key, value in after.items() if value is not None and (key in always or value != before[key])
    }
    values = seen_from_recipe(recipe, "debias", values)
    update_recipe(recipe, "debias", values)
    return values

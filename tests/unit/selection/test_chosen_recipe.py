from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imbalance_perturb.config.recipe import load_recipe, merge_settings
from imbalance_perturb.config.settings import DebiasSettings
from imbalance_perturb.selection.chosen_recipe import update_chosen_recipe
from imbalance_perturb.selection.cross_validation import Figures
from imbalance_perturb.selection.rule import SelectionRule
from imbalance_perturb.selection.tuning.eps_tuning import tuned_debias
from imbalance_perturb.selection.tuning.results import TriedCorrection, Tuning

FIGURES = Figures(0.5, 0.5, 0.5, 0.5, 0.5)
RECIPE = """\
[model]
model = "model.pt"  # mine
counts = "counts.json"

[debias]
eps = 0.001
temperature = 1000.0  # as the paper
"""


def tuned(eps: float, temperature: float | None = 1000.0, loss: str | None = "cross-entropy") -> Tuning:
    none = TriedCorrection(0.0, None, None, FIGURES, 0.5, 0.0, 0.0, 0.0, 1.0, True)
    some = TriedCorrection(eps, temperature, loss, FIGURES, 0.4, 0.1, 0.1, 0.01, 0.01, True)
    return Tuning(
        tried=(none, some),
        chosen=int(eps > 0),
        splits=(0, 5),
        held_out={},
        rule=SelectionRule(),
        classes=("a", "b"),
        counts=(9, 1),
        support=(20, 20),
        smallest_class="b",
        n=40,
        failed={},
        unused_labels=0,
        passes={},
        seconds={},
        confidence_level=0.95,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "imbperturb.toml"
    path.write_text(RECIPE)
    return path


def test_the_choice_goes_into_the_recipe_and_all_else_stays(recipe: Path) -> None:
    """Only eps changes; comments, order and the other tables stay."""
    settings = merge_settings(load_recipe(recipe))
    assert update_chosen_recipe(recipe, settings, tuned_debias(tuned(0.005), settings.debias)) == {"eps": 0.005}
    assert recipe.read_text() == RECIPE.replace("eps = 0.001", "eps = 0.005")


def test_what_eps_was_tuned_with_goes_along(recipe: Path) -> None:
    """Loss and temperature that won, and what the command line said about the correction."""
    settings = merge_settings(load_recipe(recipe), {"debias": {"target": "sqrt", "clip": True}})
    written = update_chosen_recipe(recipe, settings, tuned_debias(tuned(0.005, 100.0, "mse"), settings.debias))
    assert written == {"eps": 0.005, "temperature": 100.0, "loss": "mse", "target": "sqrt", "clip": True}
    after = merge_settings(load_recipe(recipe)).debias
    assert after == DebiasSettings(eps=0.005, temperature=100.0, loss="mse", target="sqrt", clip=True)


def test_a_target_file_stays_relative_to_the_recipe(recipe: Path) -> None:
    """A distribution named from elsewhere is found again by whoever reads the recipe."""
    target = str(recipe.parent / "more" / "p.json")
    settings = merge_settings(load_recipe(recipe), {"debias": {"target": target}})
    written = update_chosen_recipe(recipe, settings, tuned_debias(tuned(0.005), settings.debias))
    assert written == {"eps": 0.005, "target": "more/p.json"}
    assert merge_settings(load_recipe(recipe)).debias.target == target


@pytest.mark.parametrize(
    "other", [{"model": {"model": "other.pt"}}, {"model": {"counts": "c.json"}}, {"preprocess": {"preset": "none"}}]
)
def test_a_recipe_for_something_else_is_left_alone(recipe: Path, other: dict[str, dict[str, str]]) -> None:
    """An eps tuned for another model, other counts or other preprocessing does not belong into it."""
    settings = merge_settings(load_recipe(recipe), other)
    assert update_chosen_recipe(recipe, settings, tuned_debias(tuned(0.005), settings.debias)) is None
    assert recipe.read_text() == RECIPE


def test_no_correction_is_written_as_eps_0(recipe: Path) -> None:
    """The answer 0 switches the correction off and leaves loss and temperature."""
    settings = merge_settings(load_recipe(recipe))
    none = replace(tuned(0.005), chosen=0)
    assert tuned_debias(none, settings.debias) == replace(settings.debias, eps=0.0)
    assert update_chosen_recipe(recipe, settings, tuned_debias(none, settings.debias)) == {"eps": 0.0}

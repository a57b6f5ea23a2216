"""What happens to a choice: it goes into the recipe, or the line that applies it is said."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.cli.narration import Narrator

if TYPE_CHECKING:
    from imbalance_perturb.config.settings import DebiasSettings, Settings


def hand_over(
    recipe: Path | None,
    settings: Settings,
    chosen: DebiasSettings,
    say: Narrator,
    *,
    always: Collection[str] = ("eps",),
) -> None:
    """Put a choice where `predict` finds it, or say how to use it.

    Args:
        recipe: that gets the choice, if any.
        settings: those of the choice.
        chosen: the correction.
        always: entries that the recipe gets in any case.
    """
    from imbalance_perturb.selection.chosen_recipe import update_chosen_recipe

    usage = f"imbperturb predict ... {options_of(chosen)}"
    if recipe is None:
        keeps = "" if chosen.method == "none" else " (imbperturb init writes a recipe that keeps it)"
        say.line(f"to use it: {usage}{keeps}")
        return
    written = update_chosen_recipe(recipe, settings, chosen, always)
    if written is None:
        say.line(
            f"recipe: {recipe} is left as it is, since model, counts or preprocessing of this run are not its own;"
            f" to use the choice: {usage}"
        )
        return
    entries = ", ".join(f"{key.replace('_', '-')} = {_text(value)}" for key, value in written.items())
    say.line(f"recipe: {recipe}: [debias] now has {entries}")
    say.line("to use it: imbperturb predict IMAGES")


def options_of(debias: DebiasSettings) -> str:
    """The options of the command line that ask for a correction."""
    if debias.method == "none" or (debias.moves_input and debias.eps == 0 and not debias.used_tau):
        return "--eps 0, which is the model as it is" if debias.moves_input else "--method none"
    given = [] if debias.method == "perturb" else [f"--method {debias.method}"]
    if debias.moves_input:
        given += [f"--perturb-at {debias.perturb_at}"] if debias.hidden else []
        given.append(f"--eps {debias.eps:g} --temperature {debias.temperature:g} --loss {debias.loss}")
    if debias.used_tau:
        given.append(f"--tau {debias.used_tau:g}")
    if debias.method == "offsets":
        given.append(f"--offsets={_text(debias.offsets)}")
    return " ".join(given)


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

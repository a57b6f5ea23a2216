"""How command line and recipe become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imbalance_perturb.cli.options import GROUPS, CommonOptions
from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.settings import TABLES, Settings


def resolve_settings(
    common: CommonOptions | None, *groups: object, model: str | None = None, counts: str | None = None
) -> tuple[Settings, Path | None]:
    """Settings from the recipe and, over it, the command line; and the recipe that was read, if any.

    Without ``common`` no recipe is read.

    Raises:
        SettingsError: if the recipe is missing or wrong, asks for code that the command line does not grant, or a value
            cannot be used.
    """
    from imbalance_perturb.config.code_grants import ASKING, grant_code
    from imbalance_perturb.config.recipe import load_recipe, merge_settings

    recipe = None if common is None else find_recipe(common)
    given: dict[str, dict[str, Any]] = {}
    for group in groups:
        table = GROUPS[type(group)]
        known = declarations(TABLES[table])
        given[table] = {
            name: known[name].allowed.parse(name, value) for name, value in vars(group).items() if value is not None
        }
    for key, value in (("model", model), ("counts", counts)):
        if value is not None:
            given.setdefault("model", {})[key] = value
    layers = [] if recipe is None else [load_recipe(recipe)]
    if recipe is not None:
        own = layers[0].get("model", {})
        if "model" in given:  # else the command loads no model
            given["model"] = grant_code(recipe, own, given["model"])
        for key in ASKING:
            own.pop(key, None)
        if given.get("model", {}).keys() & {"arch", "factory"}:
            # Naming the network anew replaces whichever way the recipe named it.
            own.pop("arch", None)
    return merge_settings(*layers, given), recipe


def find_recipe(common: CommonOptions) -> Path | None:
    """The recipe that is read: the one given, or that of the current folder, if there is one."""
    from imbalance_perturb.config.recipe import DEFAULT_NAME

    return common.recipe or (Path(DEFAULT_NAME) if Path(DEFAULT_NAME).is_file() else None)

"""How command line and recipe become settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from imbalance_perturb.cli.options import GROUPS, CommonOptions
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.settings import Settings


def resolve_settings(
    common: CommonOptions | None, *groups: object, model: str | None = None, counts: str | None = None
) -> tuple[Settings, Path | None]:
    """Settings from the recipe and, over it, the command line; and the recipe that was read, if any.

    Without ``common`` no recipe is read.

    Raises:
        SettingsError: if the recipe is missing or wrong, asks for code that the command line does not grant, or a value
            cannot be used.
    """
    from imbalance_perturb.recipe import DEFAULT_NAME, load_recipe, merge_settings
    from imbalance_perturb.trust import ASKING, grant_code

    recipe = None
    if common is not None:
        recipe = common.recipe or (Path(DEFAULT_NAME) if Path(DEFAULT_NAME).is_file() else None)
    given: dict[str, dict[str, Any]] = {}
    for group in groups:
        entries = {entry.name: getattr(group, entry.name) for entry in fields(group)}  # type: ignore[arg-type]
        given[GROUPS[type(group)]] = {key: value for key, value in entries.items() if value is not None}
    for key, value in (("model", model), ("counts", counts)):
        if value is not None:
            given.setdefault("model", {})[key] = value
    _parse_preprocess(given.get("preprocess", {}))
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


def _parse_preprocess(values: dict[str, Any]) -> None:
    for option in ("resize", "crop"):
        if option in values and values[option] != "none":
            numbers = _numbers(option, values[option], int)
            values[option] = numbers[0] if len(numbers) == 1 else numbers
    for option in ("mean", "std"):
        if option in values:
            values[option] = _numbers(option, values[option], float)


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"{option} is {text!r}; expected numbers separated by commas") from None

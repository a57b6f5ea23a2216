"""The recipe file ``imbperturb.toml``: settings kept beside the model, read and written without loss."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.outputs import write_whole
from imbalance_perturb.settings import (
    DebiasSettings,
    ModelSettings,
    PreprocessSettings,
    RunSettings,
    Settings,
)

#: The recipe that every command reads where there is one.
DEFAULT_NAME = "imbperturb.toml"

TABLES: dict[str, type] = {
    "model": ModelSettings,
    "preprocess": PreprocessSettings,
    "debias": DebiasSettings,
    "run": RunSettings,
}

_COMMENTS = {
    "model": "the classifier file and the class counts; paths are relative to this file",
    "preprocess": "what happens to an image before the model sees it",
    "debias": "the correction: x~ = x - eps * sign(gradient); eps = 0 switches it off",
    "run": "where and how fast; changes no label",
}

Tables = dict[str, dict[str, Any]]


def load_recipe(path: Path) -> Tables:
    """The tables of a recipe as plain values, paths made relative to the current folder's view of the recipe.

    Raises:
        SettingsError: naming the file and the entry that is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the recipe cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the recipe is not TOML ({error})") from None
    tables: Tables = {}
    for name, table in data.items():
        if name not in TABLES or not isinstance(table, dict):
            raise SettingsError(f"{path}: [{name}] is not a table of a recipe; it has {', '.join(TABLES)}")
        tables[name] = _parse_table(path, name, table)
    return tables


def _parse_table(path: Path, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    known = {entry.name.replace("_", "-"): entry.name for entry in fields(TABLES[name])}
    known |= {entry.name: entry.name for entry in fields(TABLES[name])}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(set(known.values())))}"
            raise SettingsError(f"{path}: [{name}] has no entry {key!r}{hint}")
        values[known[key]] = tuple(value) if isinstance(value, list) else value
    for key in ("model", "counts"):
        if name == "model" and isinstance(values.get(key), str):
            values[key] = str(path.parent / values[key])
    if name == "debias" and str(values.get("target", "")).endswith(".json"):
        values["target"] = str(path.parent / values["target"])
    return values


def merge_settings(*layers: Tables) -> Settings:
    """Settings from layers of tables; a later layer's entry wins, what no layer has takes its default.

    A preset named in a later layer drops the earlier layers' whole ``[preprocess]`` table: the preset would
    otherwise be hidden behind the single values of the recipe.

    Raises:
        SettingsError: if a value has the wrong type or is out of range.
    """
    merged: Tables = {name: {} for name in TABLES}
    for layer in layers:
        if "preset" in layer.get("preprocess", {}):
            merged["preprocess"] = {}
        for name, values in layer.items():
            merged[name] |= values
    return Settings(**{name: TABLES[name](**values) for name, values in merged.items()})


def write_recipe(path: Path, settings: Settings) -> None:
    """Write a complete recipe; every entry that has a value is there.

    Raises:
        OutputFileError: if the file cannot be written.
    """
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("imbperturb recipe: every command reads it; the command line wins over it"))
    for name in TABLES:
        table = tomlkit.table()
        table.comment(_COMMENTS[name])
        for key, value in asdict(getattr(settings, name)).items():
            if value is not None:
                table.add(key, list(value) if isinstance(value, tuple) else value)
        document.add(tomlkit.nl())
        document.add(name, table)
    write_whole(path, tomlkit.dumps(document).encode("utf-8"))


def update_recipe(path: Path, table: str, values: Mapping[str, Any]) -> None:
    """Change entries of one table of a recipe that is there; comments and all else stay as they are.

    Raises:
        SettingsError: if the recipe cannot be read.
        OutputFileError: if it cannot be written.
    """
    import tomlkit

    load_recipe(path)
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    entries = document.setdefault(table, tomlkit.table())
    for key, value in values.items():
        entries[key] = list(value) if isinstance(value, tuple) else value
    write_whole(path, tomlkit.dumps(document).encode("utf-8"))

"""The recipe file ``imbperturb.toml``: settings kept beside the model, read and written without loss."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.model_names import with_place
from imbalance_perturb.config.settings import INPUT, TABLES, Settings
from imbalance_perturb.config.stored_settings import to_lists, to_tuples
from imbalance_perturb.errors import OutputFileError, SettingsError
from imbalance_perturb.files.writing import write_whole

#: The recipe that every command reads where there is one.
DEFAULT_NAME = "imbperturb.toml"

Tables = dict[str, dict[str, Any]]


def load_recipe(path: Path) -> Tables:
    """Load the tables of a recipe as plain values, with paths as seen from the current folder.

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
    known = declarations(TABLES[name])
    values: dict[str, Any] = {}
    for key, value in table.items():
        entry = known.get(key.replace("-", "_"))
        if entry is None:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(known))}"
            raise SettingsError(f"{path}: [{name}] has no entry {key!r}{hint}")
        if entry.name in values:
            raise SettingsError(f"{path}: [{name}] has {entry.name} twice, as {entry.option} too; leave one")
        value = to_tuples(value)
        try:
            entry.check(value)
        except SettingsError as error:
            raise SettingsError(f"{path}: [{name}] {error}") from None
        values[entry.name] = _seen_from_here(path, value) if entry.names_file(value) else value
    return values


def seen_from_recipe(path: Path, table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries of a table as a recipe has them: files named as seen from the recipe's folder."""
    known = declarations(TABLES[table])
    return {key: _seen_from(path, value) if known[key].names_file(value) else value for key, value in values.items()}


def relative_settings(path: Path, settings: Settings) -> Settings:
    """Return the settings with files named as seen from a recipe's folder."""
    tables = {name: getattr(settings, name) for name in TABLES}
    seen = {name: replace(table, **seen_from_recipe(path, name, vars(table))) for name, table in tables.items()}
    return replace(settings, **seen)


def _seen_from_here(recipe: Path, file: str) -> str:
    return with_place(file, lambda place: str(recipe.parent / place))


def _seen_from(recipe: Path, file: str) -> str:
    return with_place(file, lambda place: _relative_path(recipe, place))


def _relative_path(recipe: Path, file: str) -> str:
    # Folders as they are behind links, since '..' does not lead back through one; the file keeps its own name.
    folder, name = os.path.split(file)
    try:
        return Path(os.path.relpath(Path(os.path.realpath(folder), name), os.path.realpath(recipe.parent))).as_posix()
    except ValueError:  # Windows, on two drives
        return str(Path(file).absolute())


def merge_settings(*layers: Tables) -> Settings:
    """Merge layers of tables; a later layer's entry wins, what no layer has takes its default.

    A preset named in a later layer drops what the earlier layers say of the entries that a preset states: it would
    otherwise be hidden behind the single values of the recipe. What no preset states stays. Likewise another
    ``perturb_at`` drops eps, which is in units of its place; at a hidden layer it is then ``auto``.

    Raises:
        SettingsError: if a value has the wrong type or is out of range.
    """
    merged: Tables = {name: {} for name in TABLES}
    for layer in layers:
        if "preset" in layer.get("preprocess", {}):
            known = declarations(TABLES["preprocess"])
            merged["preprocess"] = {k: v for k, v in merged["preprocess"].items() if not known[k].of_preset}
        here = layer.get("debias", {}).get("perturb_at", _place(merged))
        if here != _place(merged):
            # Each place has units of eps of its own.
            merged["debias"].pop("eps", None)
        for name, values in layer.items():
            merged[name] |= values
    if _place(merged) != INPUT:
        merged["debias"].setdefault("eps", "auto")
    return Settings(**{name: TABLES[name](**values) for name, values in merged.items()})


def _place(tables: Tables) -> Any:
    return tables["debias"].get("perturb_at", INPUT)


def write_recipe(path: Path, settings: Settings) -> None:
    """Write a complete recipe: every setting under its description, commented out where it has no value.

    Raises:
        OutputFileError: if the file cannot be written.
    """
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("imbperturb recipe: every command reads it; the command line wins over it"))
    for name, kind in TABLES.items():
        table = tomlkit.table()
        table.comment(kind.comment)
        for key, entry in declarations(kind).items():
            value = getattr(getattr(settings, name), key)
            table.add(tomlkit.comment(entry.describe(off="false")))
            if value is None:
                table.add(tomlkit.comment(f"{key} ="))
            else:
                table.add(key, _toml(path, key, value))
        document.add(tomlkit.nl())
        document.add(name, table)
    write_whole(path, tomlkit.dumps(document).encode("utf-8"))


def update_recipe(path: Path, table: str, values: Mapping[str, Any]) -> None:
    """Change entries of one table of a recipe that is there; comments and all else are kept.

    Raises:
        SettingsError: if the recipe cannot be read.
        OutputFileError: if it cannot be written.
    """
    import tomlkit

    load_recipe(path)
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    entries = document.setdefault(table, tomlkit.table())
    # As the recipe spells them: with '-' or '_'.
    spelt = {key.replace("-", "_"): key for key in entries}
    for key, value in values.items():
        entries[spelt.get(key, key)] = _toml(path, key, value)
    write_whole(path, tomlkit.dumps(document).encode("utf-8"))


def _toml(path: Path, key: str, value: Any) -> Any:
    import tomlkit

    try:
        ("".join(value) if isinstance(value, Mapping) else str(value)).encode()
    except UnicodeEncodeError:
        raise OutputFileError(
            f"{path}: cannot hold {key} {value!r}, a name that is not UTF-8, as a recipe is; rename the file"
        ) from None
    if isinstance(value, Mapping):
        inline = tomlkit.inline_table()  # a table of its own would take in the entries after it
        inline.update(value)
        return inline
    return to_lists(value)

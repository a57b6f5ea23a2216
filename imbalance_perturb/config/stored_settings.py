"""Settings as JSON has them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.settings import TABLES, Settings
from imbalance_perturb.errors import SettingsError, printable


def to_lists(value: Any) -> Any:
    """Convert a value to what JSON and TOML have: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def to_tuples(value: Any) -> Any:
    """Convert a value of JSON or TOML to a setting's: tuples for lists."""
    return tuple(value) if isinstance(value, list) else value


def parse_settings(data: Any) -> Settings:
    """Parse complete settings from JSON values, as a run file has them (``dataclasses.asdict``).

    Raises:
        SettingsError: beginning with the table and the setting, such as ``debias.eps``, that is not as expected.
    """
    given = data if isinstance(data, Mapping) else {}
    tables = {}
    for name, table in TABLES.items():
        values, known = given.get(name), declarations(table)
        if not isinstance(values, Mapping):
            raise SettingsError(f"{name} is no table of settings; expected {', '.join(known)}")
        for key in (*known, *values):
            if key not in values:
                raise SettingsError(f"{name}.{key} is missing; expected {known[key].allowed.expected or 'text'}")
            if key not in known:
                raise SettingsError(f"{name}.{printable(key)} is not known; expected {', '.join(known)}")
        try:
            tables[name] = table(**{key: to_tuples(value) for key, value in values.items()})
        except SettingsError as error:  # begins with the setting's name
            raise SettingsError(f"{name}.{error}") from None
    for name in given:
        if name not in TABLES:
            raise SettingsError(f"{printable(name)} is not known; expected {', '.join(TABLES)}")
    return Settings(**tables)

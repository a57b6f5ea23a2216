"""Read what a user says of the classes in JSON: their shares where the model is used, and what errors cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.errors import SettingsError, brief, first_few
from imbalance_perturb.files.strict_json import read_json

Floats = NDArray[np.float64]

#: How far the sum of shares may be from 1: they are rounded where people write them.
SUM_TOLERANCE = 0.01

_SHARES = '{"name": share, ...}, {"shares": {...}} or a list of shares in class order'
_COSTS = '{"true class": {"predicted class": cost, ...}, ...} or a list of rows in class order'


def parse_shares(data: object, names: Sequence[str]) -> Floats:
    """Parse the shares of C classes: a mapping, one under the key ``shares``, or a list in class order.

    Returns:
        (C,) shares, at least 0, that sum to 1.

    Raises:
        SettingsError: if they do not fit the classes, are negative or do not sum to 1 within :data:`SUM_TOLERANCE`.
    """
    if isinstance(data, Mapping) and isinstance(data.get("shares"), Mapping | list):
        data = data["shares"]
    entries = _in_order("shares", data, names, _SHARES)
    shares = np.array([_number(f"the share of {name!r}", entry) for name, entry in zip(names, entries, strict=True)])
    total = math.fsum(shares)
    if abs(total - 1) > SUM_TOLERANCE:
        raise SettingsError(f"the shares sum to {total:g}; shares of all images sum to 1")
    return np.asarray(shares / total)


def parse_costs(data: object, names: Sequence[str]) -> Floats:
    """Parse what each error costs: a mapping of mappings, or a list of rows in class order.

    Returns:
        (C, C) costs, at least 0, true classes as rows, predicted ones as columns. The diagonal, what a right prediction
        costs, may be above 0; in a mapping it may be left out, and is 0.

    Raises:
        SettingsError: if they do not fit the classes, one is negative, or all are 0.
    """
    rows = _in_order("costs", data, names, _COSTS)
    costs = np.empty((len(names), len(names)))
    for c, (name, row) in enumerate(zip(names, rows, strict=True)):
        if isinstance(row, Mapping) and name not in row:
            row = {**row, name: 0}
        cells = _in_order(f"costs of true class {name!r}", row, names, _COSTS)
        for k, cell in enumerate(cells):
            costs[c, k] = _number(f"the cost of {names[k]!r} for true class {name!r}", cell)
    if not costs.any():
        raise SettingsError("all costs are 0, so no error is worse than another; give at least one above 0")
    return costs


def load_shares(path: str | Path, names: Sequence[str]) -> Floats:
    """Load shares from a JSON file (the forms of :func:`parse_shares`).

    Raises:
        SettingsError: naming the file and what is wrong with it.
    """
    return _load(path, _SHARES, parse_shares, names)


def load_costs(path: str | Path, names: Sequence[str]) -> Floats:
    """Load costs from a JSON file (the forms of :func:`parse_costs`).

    Raises:
        SettingsError: naming the file and what is wrong with it.
    """
    return _load(path, _COSTS, parse_costs, names)


def _load(
    path: str | Path, expected: str, parse: Callable[[object, Sequence[str]], Floats], names: Sequence[str]
) -> Floats:
    try:
        return parse(read_json(Path(path), expected, SettingsError), names)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _in_order(what: str, data: object, names: Sequence[str], expected: str) -> list[Any]:
    """The C entries in class-index order."""
    if isinstance(data, Mapping):
        missing = [name for name in names if name not in data]
        known = set(names)
        unknown = [str(name) for name in data if name not in known]
        if missing or unknown:
            raise SettingsError(
                f"the {what} are not of these classes: missing {first_few(missing, 10) or 'none'}; unknown"
                f" {first_few(unknown, 10) or 'none'}"
            )
        return [data[name] for name in names]
    entries = data.tolist() if isinstance(data, np.ndarray) else data
    if not isinstance(entries, list | tuple):
        raise SettingsError(f"the {what} are {brief(data)}; expected {expected}")
    if len(entries) != len(names):
        raise SettingsError(f"the {what} have {len(entries)} entries for {len(names)} classes; give one for each")
    return list(entries)


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SettingsError(f"{what} is {brief(value)}; expected a number, at least 0")
    return float(value)

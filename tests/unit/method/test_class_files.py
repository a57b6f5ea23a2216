from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.method.class_files import load_costs, load_shares, parse_costs, parse_shares

NAMES = ("nv", "mel", "df")


@pytest.mark.parametrize(
    "data",
    [
        {"nv": 0.7, "df": 0.1, "mel": 0.2},
        [0.7, 0.2, 0.1],
        {"shares": {"nv": 0.7, "mel": 0.2, "df": 0.1}, "images": 50},
        {"shares": [0.7, 0.2, 0.1]},
        {"nv": 0.7035, "mel": 0.201, "df": 0.1005},
    ],
)
def test_shares_of_every_form(data: object) -> None:
    """Shares by name, in class order, or under the key shares are brought into class order, with sum 1."""
    assert parse_shares(data, NAMES).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=1e-3)
    assert parse_shares(data, NAMES).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nv": 0.7, "mel": 0.3}, "the shares are not of these classes: missing df; unknown none"),
        ({"nv": 0.5, "mel": 0.2, "df": 0.1, "x": 0.2}, "missing none; unknown x"),
        ([0.5, 0.5], "the shares have 2 entries for 3 classes"),
        ([0.5, 0.5, 0.5], "the shares sum to 1.5; shares of all images sum to 1"),
        ([1.2, -0.2, 0.0], "the share of 'mel' is -0.2; expected a number, at least 0"),
        ([True, 0, 0], "the share of 'nv' is True; expected a number"),
        ({"nv": "0.7", "mel": 0.2, "df": 0.1}, "the share of 'nv' is '0.7'; expected a number"),
        (0.5, "the shares are 0.5; expected"),
    ],
)
def test_shares_that_cannot_be_meant(tmp_path: Path, data: object, message: str) -> None:
    """Shares that do not fit the classes are refused in one line that names the file and what is wrong."""
    path = tmp_path / "shares.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SettingsError) as raised:
        load_shares(path, NAMES)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_costs_of_both_forms() -> None:
    """Costs by name, where the diagonal may be left out, and a list of rows give the same matrix."""
    rows = [[0, 1, 2], [3, 0.5, 4], [5, 6, 0]]
    named = {"df": {"nv": 5, "mel": 6}, "nv": {"mel": 1, "df": 2}, "mel": {"nv": 3, "mel": 0.5, "df": 4}}
    assert parse_costs(rows, NAMES).tolist() == parse_costs(named, NAMES).tolist() == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[0, 1, 1], [1, 0, 1]], "the costs have 2 entries for 3 classes"),
        ([[0, 1], [1, 0, 1], [1, 1, 0]], "the costs of true class 'nv' have 2 entries for 3 classes"),
        (
            [[0, 1, -1], [1, 0, 1], [1, 1, 0]],
            "the cost of 'df' for true class 'nv' is -1; expected a number, at least 0",
        ),
        ([[0, 0, 0]] * 3, "all costs are 0"),
        ({"nv": {"mel": 1, "df": 1}}, "missing mel, df"),
        ({name: {"nv": 1, "mel": 1} for name in NAMES}, "true class 'nv' are not of these classes: missing df"),
    ],
)
def test_costs_that_cannot_be_meant(tmp_path: Path, data: Any, message: str) -> None:
    """Costs that do not fit the classes are refused in one line that names the file and what is wrong."""
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SettingsError) as raised:
        load_costs(path, NAMES)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)

"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from imbalance_perturb import ClassCounts

# How long an example takes says more of the machine than of the code: no time limit decides a test.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: the last process does not work on alone while the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("skin7") is None)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the Skin7 images and checkpoints, which are not part of the project."""
    folder = Path(os.environ.get("IMBPERTURB_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "skin7" / "labels.csv").is_file():
        pytest.skip(f"the Skin7 images and checkpoints are not at {folder} (set IMBPERTURB_SHARED)")
    return folder


@pytest.fixture
def skin7_counts() -> ClassCounts:
    """The counts of the folds that the Skin7 checkpoints were trained on."""
    return ClassCounts(("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df"), (4023, 668, 659, 308, 195, 86, 69))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

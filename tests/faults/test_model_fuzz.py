"""Damaged model files, a bounded number; ``python -m tests.faults.fuzz_models`` runs as many as asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import fuzz_models
from tests.faults.fuzzing import KINDS, Edit

shares = st.floats(0, 1, exclude_max=True)
edits = st.lists(st.builds(Edit, st.sampled_from(KINDS), shares, shares, st.integers(0, 2**64 - 1)), max_size=6)

NAMES = ("zip", "legacy", "safetensors", "script", "traced", "export", "evil-zip", "evil-legacy", "evil-export")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A whole file of each kind."""
    return fuzz_models.samples()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that is damaged again and again."""
    return tmp_path_factory.mktemp("fuzz") / "model"


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=60,
    deadline=None,  # the first file of a kind waits for imports
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(edits=edits, number=st.integers(0, fuzz_models.CHOICES - 1))
def test_a_damaged_model_is_an_error_or_a_classifier(
    files: dict[str, bytes], place: Path, name: str, edits: list[Edit], number: int
) -> None:
    """However a model file is damaged, it ends in a reason of one line or in a classifier."""
    place.write_bytes(fuzz_models.damaged(files[name], edits, number))
    assert fuzz_models.check(place, number) in fuzz_models.FINE


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_model_is_what_it_is(files: dict[str, bytes], place: Path, name: str) -> None:
    """The files that are damaged load while they are whole, but for those that would run code."""
    place.write_bytes(files[name])
    assert fuzz_models.check(place, 1) == ("error" if name.startswith("evil") else "classifier")


@pytest.mark.parametrize("doing", ["os.mkdir('x')", "open('x', 'w')", "os.system('true')"])
def test_the_watch_sees_what_code_does(doing: str) -> None:
    """What the fuzzing calls code that ran is noted when it does run: the watch watches something."""
    code = (
        "import os, tempfile; from tests.faults import fuzz_models as f; os.chdir(tempfile.mkdtemp()); f.watch();"
        f" f._watching = True; {doing}; f._watching = False; assert f._seen, 'unseen'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

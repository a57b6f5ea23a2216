"""Damaged files of each format, a bounded number; ``python -m tests.faults.fuzz_images`` runs as many as asked."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz_images import check
from tests.faults.fuzzing import KINDS, SECONDS, Edit, damage
from tests.image_samples import dicom_samples, heif_samples, samples

shares = st.floats(0, 1, exclude_max=True)
edits = st.lists(st.builds(Edit, st.sampled_from(KINDS), shares, shares, st.integers(0, 2**64 - 1)), max_size=6)

FILES = samples()
DICOM = ("gray.dcm", "window.dcm", "rgb.dcm", "jpeg.dcm")
HEIC = ("rgb.heic", "rgb12.heic")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that is damaged again and again."""
    return tmp_path_factory.mktemp("fuzz") / "image"


@pytest.mark.parametrize("name", [*FILES, *DICOM, *HEIC])
@settings(
    max_examples=150,
    deadline=timedelta(seconds=SECONDS),
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(edits=edits, options=st.integers(0, 7))
def test_a_damaged_file_is_an_error_or_an_image(place: Path, name: str, edits: list[Edit], options: int) -> None:
    """However a file is damaged, it ends in a reason of one line or in valid pixels, within seconds."""
    if name in DICOM:
        pytest.importorskip("pydicom", reason="needs pydicom (the extra dicom)")
        data = dicom_samples()[name]
    elif name in HEIC:
        pytest.importorskip("pillow_heif", reason="needs pillow-heif (the extra heif)")
        data = heif_samples()[name]
    else:
        data = FILES[name]
    place.write_bytes(damage(data, edits))
    check(place, options)

"""Every width of stored bits through every rescale, window and table, beside the standard's own words in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from imbalance_perturb.data.pixels import Peak, find_peak
from imbalance_perturb.errors import ImageError
from tests.image_samples import deep, dicom
from tests.unit.data.test_dicom import array, decode, lookup_table

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (the extra dicom)")

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def stored_range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def window(x: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with black 0 and white 1."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (x - center) / width))
    if function == "LINEAR_EXACT":
        low, high, inside = center - width / 2, center + width / 2, (x - center) / width + 0.5
    else:
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
        inside = (x - (center - 0.5)) / (width - 1) + 0.5 if width > 1 else np.zeros_like(x)
    return np.where(x <= low, 0, np.where(x > high, 1, inside))


def table(x: np.ndarray, entries: list[int], first: int) -> np.ndarray:
    """PS3.3 C.11.1.1.1: below the first value mapped the first entry, above the last one the last."""
    return np.array(entries, dtype=np.float64)[np.clip(np.rint(x) - first, 0, len(entries) - 1).astype(np.int64)]


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    """Stored values, the attributes that say how they are shown, and the pixels in [0, 255] that come of it."""
    bits, signed = draw(st.sampled_from((1, 8, 10, 12, 16, 24, 32))), draw(st.booleans())
    assume(not (signed and bits == 1))
    least, most = stored_range(bits, signed)
    numbers = st.one_of(st.integers(least, most), st.sampled_from((least, most, (least + most) // 2, most - most // 4)))
    size = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    kind = np.dtype(size) if not signed else np.dtype(f"i{np.dtype(size).itemsize}")
    values = np.array(draw(st.lists(numbers, min_size=12, max_size=12)), dtype=kind).reshape(3, 4)
    attributes: dict[str, Any] = {"BitsStored": bits}
    x, black, white = values.astype(np.float64), float(least), float(most)
    modality = draw(st.sampled_from(("none", "rescale", "table") if bits <= 16 else ("none", "rescale")))
    if modality == "rescale":
        slope = draw(st.sampled_from((1, 2, -1, 0.5, 0.0078125, -3.25)))
        intercept = draw(st.sampled_from((0, -1024, 1_000_000, 0.5)))
        attributes |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
        x = x * slope + intercept
        black, white = sorted((least * slope + intercept, most * slope + intercept))
    elif modality == "table":
        entries = draw(st.lists(st.integers(0, 65535), min_size=2, max_size=40))
        first = draw(st.integers(max(least, -100), min(most, 100)))
        attributes["ModalityLUTSequence"] = lookup_table(entries, first, 16)
        attributes["ModalityLUTSequence"][0]["LUTDescriptor"].VR = "SS" if signed else "US"
        x, black, white = table(x, entries, first), 0.0, 65535.0
    voi = draw(st.sampled_from(("none", *FUNCTIONS, "table")))
    if voi in FUNCTIONS:
        center = draw(st.one_of(st.sampled_from((black, white, (black + white) / 2)), st.sampled_from(x.ravel())))
        width = draw(st.sampled_from((1.0, 2.0, 400.0, max(1.0, (white - black) / 2), max(1.0, white - black + 1))))
        # As it will stand in the file, in at most 16 characters.
        center, width = (float(f"{value:.9g}") for value in (center, width))
        attributes |= {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": voi}
        shown = window(x, center, width, voi)
    elif voi == "table":
        depth = draw(st.sampled_from((8, 10, 16)))
        entries = draw(st.lists(st.integers(0, 2**depth - 1), min_size=2, max_size=300))
        first = draw(st.integers(0, 1000))
        attributes["VOILUTSequence"] = lookup_table(entries, first, depth)
        shown = table(x, entries, first) / (2**depth - 1)
    else:
        shown = (x - black) / (white - black)
    if draw(st.booleans()):
        attributes["PhotometricInterpretation"] = "MONOCHROME1"
        shown = 1 - shown
    return values, attributes, 255 * shown


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(image=images())
def test_every_image_is_shown_as_the_standard_says(image: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """8 to 32 bits, signed or not, any rescale or modality table, any window or VOI table, MONOCHROME1 or 2."""
    values, attributes, expected = image
    folder = tmp_path_factory.getbasetemp()
    found = array(decode(folder, dicom(values, **attributes)))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_window_shows_the_highest_of_32_bits_white(tmp_path: Path) -> None:
    """Numbers above half of 32 unsigned bits are bright, not black."""
    values = np.array([[0, 0x40000000, 0x80000000, 0xC0000000, 0xFFFFFFFF]], dtype=np.uint32)
    for voi in ({}, {"WindowCenter": 2**31, "WindowWidth": 2**32, "VOILUTFunction": "LINEAR_EXACT"}):
        found = array(decode(tmp_path, dicom(values, **voi)))
        np.testing.assert_allclose(found, [[0, 63.75, 127.5, 191.25, 255]], atol=1e-3)


def test_a_narrow_window_far_from_zero_keeps_every_step(tmp_path: Path) -> None:
    """Eight neighbours of 32 bits in a window of their own differ; so do those that a rescale moved far away."""
    steps = np.arange(8)[None]
    expected = 255 * steps / 7
    exact = {"WindowWidth": 7, "VOILUTFunction": "LINEAR_EXACT"}
    values = (0xF0000000 + steps).astype(np.uint32)
    np.testing.assert_allclose(
        array(decode(tmp_path, dicom(values, WindowCenter=0xF0000000 + 3.5, **exact))), expected, atol=1e-3
    )
    moved = dicom(steps.astype(np.uint16), BitsStored=3, RescaleSlope=1, RescaleIntercept=1e9)
    np.testing.assert_allclose(array(decode(tmp_path, moved)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "value", "meant"), [(np.uint16, 0x8FFF, 4095), (np.int16, 0x0FFF, -1), (np.int16, -4000, 96)]
)
def test_bits_above_the_stored_ones_are_no_brightness(kind: Any, value: int, meant: int, tmp_path: Path) -> None:
    """Of 16 bits that hold 12 the upper four (overlays, in old files) do not count: PS3.5 8.1.1."""
    for voi in ({}, {"WindowCenter": 20, "WindowWidth": 1000}):
        found, expected = (
            array(decode(tmp_path, dicom(np.array([[0, 5], [number, 7]], dtype=kind), BitsStored=12, **voi)))
            for number in (value, meant)
        )
        assert (found == expected).all()


def test_what_a_table_would_hide_is_refused(tmp_path: Path) -> None:
    """NaN before a table, entries above the table's own bits, 64-bit numbers and signed colours are no pixels."""
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    data = dicom(values, RescaleSlope="1.0", RescaleIntercept="1.0", VOILUTSequence=lookup_table([1, 2, 3], 0, 16))
    with pytest.raises(ImageError, match="not finite"):
        decode(tmp_path, data.replace(b"1.0 ", b"nan ", 1))
    with pytest.raises(ImageError, match="entries up to 999, above the 255"):
        decode(tmp_path, dicom(values, VOILUTSequence=lookup_table([1, 999, 3], 0, 8)))
    with pytest.raises(ImageError, match="pixels of 64 bits"):
        decode(tmp_path, dicom(values.astype(np.uint64), WindowCenter=5, WindowWidth=9))
    with pytest.raises(ImageError, match="signed colours"):
        decode(tmp_path, dicom(np.full((2, 2, 3), -5, np.int16)))


@pytest.mark.parametrize(
    ("attributes", "peak"),
    [
        ({}, Peak(4095, 65535)),
        ({"BitsStored": 12}, Peak(4095, 4095)),
        ({"RescaleSlope": 2, "RescaleIntercept": -9}, Peak(4095, 65535)),
        ({"PhotometricInterpretation": "MONOCHROME1"}, Peak(4095, 65535)),
        ({"WindowCenter": 5, "WindowWidth": 9}, None),
        ({"VOILUTSequence": lookup_table([0, 255], 0, 8)}, None),
        ({"ModalityLUTSequence": lookup_table([0, 255], 0, 8)}, None),
    ],
)
def test_white_is_assumed_where_nothing_states_it(attributes: dict[str, Any], peak: Peak, tmp_path: Path) -> None:
    """A window or table says what white is; without one it is the highest of the stored bits, and that is noted."""
    values = deep(1, highest=4095)
    assert find_peak(decode(tmp_path, dicom(values, **attributes))) == peak
    assert find_peak(decode(tmp_path, dicom(values), max_value=4095)) is None
    assert find_peak(decode(tmp_path, dicom(values.astype(np.int16)))) is None
    assert find_peak(decode(tmp_path, dicom((values >> 4).astype(np.uint8)))) is None
    assert find_peak(decode(tmp_path, dicom(deep(3, highest=700)))) == Peak(700, 65535)

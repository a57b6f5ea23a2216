"""DICOM as hospitals' archives export it: without preamble, with entries that are empty, missing or at odds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.errors import ImageError
from tests.image_samples import dicom

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
GRAY = np.random.default_rng(0).integers(0, 4096, (6, 9), dtype=np.uint16)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
STORED = {"BitsStored": 12, "HighBit": 11}
SHOWN = GRAY * (255 / 4095)


def shown(tmp_path: Path, data: bytes) -> np.ndarray:
    (tmp_path / "x.dcm").write_bytes(data)
    return np.asarray(decode_image(tmp_path / "x.dcm", "rgb"))


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        shown(tmp_path, data)
    return str(caught.value)


def bare(values: np.ndarray, syntax: str, *, meta: bool) -> bytes:
    """The file without preamble, and without the group that names the transfer syntax."""
    if meta:
        return dicom(values, syntax=syntax, **STORED)[132:]
    dataset = pydicom.dcmread(io.BytesIO(dicom(values, **STORED)))
    plain, stream = pydicom.Dataset(), io.BytesIO()
    plain.update(dataset)
    if syntax == BIG:
        plain.PixelData = values.astype(">u2").tobytes()
    plain.save_as(stream, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG, enforce_file_format=False)
    return stream.getvalue()


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_without_preamble_it_is_read_as_with_one(syntax: str, tmp_path: Path) -> None:
    """With or without the group that names the transfer syntax; found in a folder by content, too."""
    data = [bare(GRAY, syntax, meta=False)] + ([] if syntax == BIG else [bare(GRAY, syntax, meta=True)])
    for index, one in enumerate(data):
        np.testing.assert_allclose(shown(tmp_path, one), SHOWN, atol=1e-4)
        (tmp_path / f"IM{index}").write_bytes(one)
    (tmp_path / "notes").write_bytes(b"\x08\0\x05\0 no image at all, but a text that begins so" * 20)
    (tmp_path / "zeros").write_bytes(bytes(600))
    assert list(find_images(tmp_path).names) == ["IM0", "IM1", "x.dcm"][-len(data) - 1 :] or syntax == BIG
    assert "notes" not in find_images(tmp_path).names
    assert "zeros" not in find_images(tmp_path).names


def test_no_transfer_syntax_is_the_plain_one(tmp_path: Path) -> None:
    """As the file's other elements are written; not where the pixels are compressed."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(GRAY, **STORED)))
    del dataset.file_meta.TransferSyntaxUID
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=False, little_endian=True, enforce_file_format=False)
    np.testing.assert_allclose(shown(tmp_path, stream.getvalue()), SHOWN, atol=1e-4)
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert refused(tmp_path, stream.getvalue()) == "the DICOM file does not state its transfer syntax"


WINDOWED = np.clip((GRAY - 1024.0 - 1023.5) / 2047 + 0.5, 0, 1) * 255
WINDOW = {"WindowCenter": 1024, "WindowWidth": 2048}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, SHOWN),
        ({"RescaleSlope": None, "RescaleIntercept": "0"}, SHOWN),
        ({"RescaleSlope": None, "RescaleIntercept": -1024} | WINDOW, WINDOWED),
        ({"RescaleIntercept": -1024} | WINDOW, WINDOWED),
        ({"RescaleSlope": "1", "RescaleIntercept": None, "WindowCenter": 2048, "WindowWidth": 4096}, SHOWN),
        ({"RescaleSlope": -1, "RescaleIntercept": 0}, 255 - SHOWN),
        ({"WindowCenter": None, "WindowWidth": None}, SHOWN),
        ({"WindowCenter": 40, "WindowWidth": None}, SHOWN),
        ({"WindowCenter": [2048, 40], "WindowWidth": [4096, 400]}, SHOWN),
        ({"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": None}, SHOWN),
        ({"NumberOfFrames": None}, SHOWN),
        ({"PhotometricInterpretation": ["MONOCHROME2", "MONOCHROME2"]}, SHOWN),
        ({"PhotometricInterpretation": "monochrome2"}, SHOWN),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_entries_that_are_empty_say_nothing(entries: dict[str, Any], expected: np.ndarray, tmp_path: Path) -> None:
    """Of rescaling, window and frames: as if they were not there; what one of two states holds."""
    empty = [name for name, value in entries.items() if value is None]
    data = dicom(GRAY, **STORED, **{name: value for name, value in entries.items() if value is not None})
    if empty:
        dataset = pydicom.dcmread(io.BytesIO(data))
        for name in empty:
            setattr(dataset, name, None)
        stream = io.BytesIO()
        dataset.save_as(stream)
        data = stream.getvalue()
    np.testing.assert_allclose(shown(tmp_path, data), expected, atol=1e-3)


def test_samples_a_pixel_are_those_of_the_interpretation(tmp_path: Path) -> None:
    """Where they are not stated; where they contradict it, which is right is not guessed."""
    np.testing.assert_allclose(shown(tmp_path, dicom(GRAY, **STORED, SamplesPerPixel=None)), SHOWN, atol=1e-4)
    np.testing.assert_array_equal(shown(tmp_path, dicom(COLOURS, SamplesPerPixel=None)), COLOURS)
    assert "3 samples a pixel in place of 1" in refused(
        tmp_path, dicom(COLOURS, PhotometricInterpretation="MONOCHROME2")
    )
    assert "1 samples a pixel in place of 3" in refused(tmp_path, dicom(GRAY, PhotometricInterpretation="RGB"))


@pytest.mark.parametrize(
    ("interpretation", "reason"),
    [
        (None, "DICOM without photometric interpretation, so black and white are not known"),
        (["MONOCHROME1", "MONOCHROME2"], "photometric interpretations MONOCHROME1 and MONOCHROME2: which is unclear"),
        ("ARGB", "photometric interpretation 'ARGB' is not supported"),
    ],
)
def test_an_interpretation_is_not_guessed(interpretation: Any, reason: str, tmp_path: Path) -> None:
    """None, two or an unknown one: the row says so, and not that the file is truncated."""
    assert reason in refused(tmp_path, dicom(GRAY, **STORED, PhotometricInterpretation=interpretation))


def test_bits_beside_the_stored_ones_are_left_out(tmp_path: Path) -> None:
    """Above them, or below where they end at the highest bit; a place that the pixels contradict is refused."""
    rest = np.random.default_rng(2).integers(0, 16, GRAY.shape, dtype=np.uint16)
    np.testing.assert_allclose(shown(tmp_path, dicom(GRAY | rest << 12, **STORED)), SHOWN, atol=1e-4)
    for low in (0, rest):
        data = dicom(GRAY << 4 | low, BitsStored=12, HighBit=15)
        np.testing.assert_allclose(shown(tmp_path, data), SHOWN, atol=1e-4)
    assert "12 stored bits of 16 end at bit 15, as its pixels do not" in refused(
        tmp_path, dicom(GRAY, BitsStored=12, HighBit=15)
    )
    for high in (None, 3, 20):  # no place that can be
        np.testing.assert_allclose(shown(tmp_path, dicom(GRAY, BitsStored=12, HighBit=high)), SHOWN, atol=1e-4)
    signed = (GRAY.astype(np.int16) - 2048) & 0xFFF
    np.testing.assert_allclose(shown(tmp_path, dicom(signed.astype(np.int16), **STORED)), SHOWN, atol=1e-4)


def test_deep_ybr_is_refused_by_name(tmp_path: Path) -> None:
    """No reader converts more than 8 bits of it."""
    deep = COLOURS.astype(np.uint16) * 257
    assert "YBR_FULL with more than 8 bits" in refused(tmp_path, dicom(deep, PhotometricInterpretation="YBR_FULL"))

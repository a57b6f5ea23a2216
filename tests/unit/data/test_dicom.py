from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.errors import ImageError
from tests.image_samples import deep, dicom, picture, saved

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (the extra dicom)")

VALUES = deep(1, highest=4095)


def decode(folder: Path, data: bytes, color: str = "rgb", **options: Any) -> Any:
    path = folder / "image"  # no suffix: content says that it is DICOM
    path.write_bytes(data)
    return decode_image(path, color, **options)


def array(pixels: Any) -> np.ndarray:
    """(H, W) or (H, W, C) pixels in [0, 255]."""
    return np.stack([np.asarray(p) for p in pixels], -1) if isinstance(pixels, tuple) else np.asarray(pixels)


def lookup_table(entries: list[int], first: int, bits: int) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return pydicom.Sequence([item])


def packed(syntax: str) -> bytes:
    """A file in a compressed syntax whose frame is nothing of the kind."""
    from pydicom.encaps import encapsulate

    return dicom(VALUES, syntax=syntax, PixelData=encapsulate([b"no frame"]))


@pytest.mark.parametrize("signed", [False, True])
def test_without_window_the_stored_bits_are_the_range(signed: bool, tmp_path: Path) -> None:
    """Black and white are the lowest and highest number that the stored bits can hold; nothing is clipped."""
    values = VALUES.astype(np.int16) - 2048 if signed else VALUES
    pixels = array(decode(tmp_path, dicom(values, BitsStored=12)))
    np.testing.assert_allclose(pixels, VALUES * (255 / 4095), rtol=1e-5, atol=1e-4)
    # A rescale moves pixels and range alike.
    for slope in (2, -2):
        same = array(decode(tmp_path, dicom(values, BitsStored=12, RescaleSlope=slope, RescaleIntercept=-1000)))
        np.testing.assert_allclose(same, pixels if slope > 0 else 255 - pixels, atol=1e-3)


def test_max_value_where_no_window_says_it(tmp_path: Path) -> None:
    """16 stored bits of which twelve are used: max_value is white, above it is an error; a window makes it idle."""
    np.testing.assert_allclose(array(decode(tmp_path, dicom(VALUES), max_value=4095)), VALUES * (255 / 4095), rtol=1e-5)
    with pytest.raises(ImageError, match="the highest pixel is 4095, above the 4000 expected"):
        decode(tmp_path, dicom(VALUES), max_value=4000)
    with pytest.raises(ImageError, match="signed pixels and no window"):
        decode(tmp_path, dicom(VALUES.astype(np.int16)), max_value=4095)
    windowed = dicom(VALUES, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_array_equal(array(decode(tmp_path, windowed, max_value=9)), array(decode(tmp_path, windowed)))


@pytest.mark.parametrize("slope", [1, 0.5])
def test_the_window_is_applied_after_the_rescale(slope: float, tmp_path: Path) -> None:
    """A CT in Hounsfield units through a soft-tissue window, as PS3.3 C.11.2.1.2.1 has it."""
    values = deep(1, highest=4000).astype(np.int16)
    data = dicom(values, RescaleSlope=slope, RescaleIntercept=-1024, WindowCenter=[40, 500], WindowWidth=[400, 9])
    hounsfield = values * slope - 1024
    expected = np.clip(((hounsfield - (40 - 0.5)) / (400 - 1) + 0.5), 0, 1) * 255
    np.testing.assert_allclose(array(decode(tmp_path, data)), expected, atol=1e-3)


def test_other_window_functions(tmp_path: Path) -> None:
    """LINEAR_EXACT and SIGMOID windows, as PS3.3 C.11.2.1.3 has them."""
    values = VALUES.astype(float)
    for function, expected in (
        ("LINEAR_EXACT", np.clip((values - 2000) / 1000 + 0.5, 0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-4 * (values - 2000) / 1000))),
    ):
        data = dicom(VALUES, WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function)
        np.testing.assert_allclose(array(decode(tmp_path, data)), expected * 255, atol=1e-3)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    """Where the lowest value is white, pixels are inverted, after the window."""
    for window in ({}, {"WindowCenter": 2000, "WindowWidth": 1000}):
        plain = array(decode(tmp_path, dicom(VALUES, **window)))
        inverted = array(decode(tmp_path, dicom(VALUES, PhotometricInterpretation="MONOCHROME1", **window)))
        np.testing.assert_allclose(inverted, 255 - plain, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lookup_tables(bits: int, tmp_path: Path) -> None:
    """A VOI table goes before a window; one of 8 bits may have more than 256 entries; outside it its ends count."""
    highest = 2**bits - 1
    entries = [round(highest * (1 - i / 2999)) for i in range(3000)]
    table = lookup_table(entries, 500, bits)
    data = dicom(VALUES, VOILUTSequence=table, WindowCenter=2000, WindowWidth=1000)
    expected = np.array(entries)[np.clip(VALUES.astype(int) - 500, 0, 2999)] * (255 / highest)
    np.testing.assert_allclose(array(decode(tmp_path, data)), expected, atol=1e-3)


def test_a_modality_table(tmp_path: Path) -> None:
    """A modality table has the range of its own bits."""
    entries = [i * 2 for i in range(4096)]
    data = dicom(VALUES, ModalityLUTSequence=lookup_table(entries, 0, 16))
    np.testing.assert_allclose(array(decode(tmp_path, data)), VALUES * 2 * (255 / 65535), atol=1e-3)


def test_colour(tmp_path: Path) -> None:
    """RGB by pixel or by plane, YBR and palettes become RGB; 16-bit colours keep their bits."""
    rgb = np.asarray(picture())
    assert (array(decode(tmp_path, dicom(rgb))) == rgb).all()
    planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0)).tobytes()
    assert (array(decode(tmp_path, dicom(rgb, PlanarConfiguration=1, PixelData=planes))) == rgb).all()
    ycbcr = np.asarray(picture().convert("YCbCr"))
    ybr = array(decode(tmp_path, dicom(ycbcr, PhotometricInterpretation="YBR_FULL")))
    np.testing.assert_allclose(ybr.astype(int), rgb, atol=3)
    assert (array(decode(tmp_path, dicom(rgb), "gray")) == np.asarray(picture().convert("L"))).all()
    values = deep(3)
    np.testing.assert_allclose(array(decode(tmp_path, dicom(values))), values * (255 / 65535), rtol=1e-5)
    index = np.arange(12, dtype=np.uint8).reshape(3, 4)
    table = np.arange(256, dtype=np.uint8)
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in (("Red", table), ("Green", table[::-1]), ("Blue", table // 2)):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    expected = np.stack([index, 255 - index, index // 2], -1)
    assert (array(decode(tmp_path, dicom(index, **palette))) == expected).all()


def test_compressed_files(tmp_path: Path) -> None:
    """JPEG and RLE inside DICOM are decoded; JPEG 2000 too, where Pillow was built with it."""
    from pydicom import uid
    from pydicom.encaps import encapsulate

    rgb = np.asarray(picture())
    jpeg = saved(picture(), "JPEG", quality=95)
    data = dicom(
        rgb, syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422", PixelData=encapsulate([jpeg])
    )
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg)
    np.testing.assert_allclose(array(decode(tmp_path, data)).astype(int), array(decode_image(path, "rgb")), atol=4)
    lossless = saved(Image.fromarray(VALUES), "JPEG2000", irreversible=False, no_jp2=True)
    data = dicom(VALUES, syntax=uid.JPEG2000Lossless, PixelData=encapsulate([lossless]))
    np.testing.assert_allclose(array(decode(tmp_path, data)), VALUES * (255 / 65535), rtol=1e-5, atol=1e-3)
    path = tmp_path / "plain"
    path.write_bytes(dicom(rgb))
    dataset = pydicom.dcmread(path)
    dataset.compress(uid.RLELossless)
    dataset.save_as(path)
    assert (array(decode_image(path, "rgb")) == rgb).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: dicom(VALUES, NumberOfFrames=30), "DICOM with 30 frames; split it into one file a frame"),
        (lambda: dicom(VALUES, Rows=50000, Columns=50000), "50000 x 50000 pixels are more than"),
        (lambda: dicom(VALUES, Rows=0), "0 x 9 pixels: the image is empty"),
        (lambda: dicom(VALUES, PhotometricInterpretation="HSV"), "photometric interpretation 'HSV' is not supported"),
        (lambda: dicom(VALUES, PixelData=None), "states an image but has no pixels: it is truncated"),
        (lambda: dicom(VALUES, PixelData=None, Rows=None), "without an image .Secondary Capture Image Storage., or"),
        (lambda: dicom(VALUES, RescaleSlope=0, RescaleIntercept=5), "makes all pixels the same"),
        (lambda: dicom(VALUES, WindowCenter=5, WindowWidth=0), "greater than or equal to 1"),
        (lambda: dicom(VALUES)[:-40], "less than expected .68 vs 108 bytes."),
        (lambda: dicom(VALUES)[:300], "without an image .*, or a truncated one"),
        (lambda: packed("1.2.840.10008.1.2.4.100"), "compressed as MPEG2 .*, which pydicom does not decode"),
        (lambda: dicom(VALUES).replace(b".10008.1.2.1\0", b".10008.1.2.9\0"), "which pydicom does not decode"),
        (lambda: packed("1.2.840.10008.1.2.5"), "cannot be decoded"),
        (lambda: packed("1.2.840.10008.1.2.4.50"), "cannot be decoded"),
    ],
)
def test_what_cannot_be_shown_is_refused(data: Any, reason: str, tmp_path: Path) -> None:
    """Several frames, absent or senseless pixels and unknown compressions are errors with the reason."""
    with pytest.raises(ImageError, match=reason):
        decode(tmp_path, data())


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    """Floating-point pixels have no known range, and NaN among them would reach the model."""
    data = dicom(VALUES, PixelData=None, BitsAllocated=32, BitsStored=32, FloatPixelData=VALUES.astype("<f4").tobytes())
    with pytest.raises(ImageError, match="floating-point pixels"):
        decode(tmp_path, data)


def test_a_rescale_that_makes_nan_is_refused(tmp_path: Path) -> None:
    """A slope that is no number makes no pixels."""
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom(VALUES, RescaleSlope="1.0", RescaleIntercept="1.0").replace(b"1.0 ", b"nan ", 1))
    with pytest.raises(ImageError, match="pixels that are not finite"):
        decode_image(path, "rgb")


def test_a_deflated_file_is_read_and_a_bomb_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deflated transfer syntax is read, unless it inflates to more than the limit."""
    data = dicom(VALUES, syntax="1.2.840.10008.1.2.1.99")
    np.testing.assert_allclose(array(decode(tmp_path, data)), VALUES * (255 / 65535), rtol=1e-5)
    monkeypatch.setattr("imbalance_perturb.data.dicom._MAX_INFLATED", 100)
    with pytest.raises(ImageError, match="deflated DICOM file is larger than 100 bytes"):
        decode(tmp_path, data)


def test_without_pydicom_or_a_decoder_the_row_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a missing pydicom nor a missing decoder ends the run; the reason names the remedy."""
    from pydicom.pixels.decoders import base

    monkeypatch.setattr(base.Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ImageError, match=r"compressed as JPEG-LS.*pip install 'pylibjpeg\[all\]'"):
        decode(tmp_path, packed("1.2.840.10008.1.2.4.80"))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install 'imbalance-perturb\[dicom\]'"):
        decode(tmp_path, b"\0" * 128 + b"DICM" + b"\0" * 20)

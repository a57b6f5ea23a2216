"""DICOM files: the stored numbers to the picture that a reader of the image would see."""

from __future__ import annotations

import warnings
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from imbalance_perturb.data.dicom_headers import COLOURS, GRAYS, find_interpretation, read_stored, settle
from imbalance_perturb.data.picture_formats import HEAD_BYTES, is_bare_dicom
from imbalance_perturb.data.pixels import Peak, Pixels, check_highest, check_pixel_count, scale_pixels, scale_to_white
from imbalance_perturb.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# Of the file's beginning, before the first data element.
_PREAMBLE = 132

_META_GROUP = 0x0002
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAX_INFLATED = 1 << 30


def read_dicom(stream: BinaryIO, color: str, max_value: int | None) -> Pixels:
    """Read the picture of a single-frame DICOM file, as it is meant to be shown.

    Gray: modality LUT or rescale, then VOI LUT or the first window, else the whole range of the stored bits; in
    MONOCHROME1 inverted. Colour: as RGB, palettes looked up.

    Args:
        stream: the open file.
        color: ``rgb`` or ``gray``.
        max_value: the stored value of white where the file gives no window; ``None`` is the highest of its bits.

    Raises:
        ImageError: with the reason; whatever else pydicom raises is for the caller to word.
    """
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise ImageError("a DICOM file; to read it, pip install 'imbalance-perturb[dicom]'") from None
    _check_inflated(stream)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream.seek(0)
        # The caller has seen that it is DICOM: without its preamble pydicom has to be told.
        _refuse_unusable(pydicom.dcmread(stream, stop_before_pixels=True, force=True))
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=True)
        if any("end of file" in str(warning.message).lower() for warning in caught):
            raise ImageError("the DICOM file is truncated")
        if "PixelData" not in dataset:
            _refuse_without_pixels(dataset)
        settle(dataset)
        values = read_stored(dataset, pixel_array)
        if values.shape[:2] != (dataset.Rows, dataset.Columns):
            raise ImageError(f"the pixels are not the {dataset.Rows} x {dataset.Columns} that the file states")
        return _show(dataset, values, color, max_value)


def _check_inflated(stream: BinaryIO) -> None:
    # pydicom inflates a deflated file at once, however large it becomes.
    from pydicom.filereader import read_dataset

    stream.seek(0)
    stream.seek(0 if is_bare_dicom(stream.read(HEAD_BYTES)) else _PREAMBLE)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != _META_GROUP)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed := stream.read(1 << 20):
        while packed:
            total += len(inflater.decompress(packed, 1 << 24))
            packed = inflater.unconsumed_tail
            if total > _MAX_INFLATED:
                raise ImageError(f"the deflated DICOM file is larger than {_MAX_INFLATED:,} bytes (a bomb?)")


def _refuse_unusable(header: Dataset) -> None:
    if "Rows" not in header or "Columns" not in header:
        _refuse_without_pixels(header)
    kind = find_interpretation(header)
    if (frames := int(header.get("NumberOfFrames") or 1)) > 1:
        raise ImageError(f"DICOM with {frames} frames; split it into one file a frame")
    if kind not in (*COLOURS, *GRAYS, "PALETTE COLOR"):
        raise ImageError(f"DICOM of the photometric interpretation {kind!r} is not supported; convert to RGB")
    samples = header.get("SamplesPerPixel")
    if samples is not None and int(samples) != (expected := 3 if kind in COLOURS else 1):
        raise ImageError(
            f"DICOM of {kind} with {samples} samples a pixel in place of {expected}: which is right is unclear"
        )
    if kind.startswith("YBR") and int(header.get("BitsAllocated") or 8) > 8:
        raise ImageError(f"DICOM of {kind} with more than 8 bits is not supported; convert to RGB")
    check_pixel_count(int(header.Rows), int(header.Columns))
    if header.file_meta.get("TransferSyntaxUID") is not None:
        _check_decoder(header)


def _refuse_without_pixels(dataset: Dataset) -> None:
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ImageError("DICOM with floating-point pixels, of which black and white are not known")
    if "Rows" in dataset:
        raise ImageError("the DICOM file states an image but has no pixels: it is truncated")
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    raise ImageError(f"DICOM without an image ({uid.name if uid else 'of no stated kind'}), or a truncated one")


def _check_decoder(header: Dataset) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise ImageError(f"compressed as {syntax.name}, which pydicom does not decode; convert the file") from None
    if not available:
        raise ImageError(
            f"compressed as {syntax.name}, for which no decoder is installed; pip install 'pylibjpeg[all]'"
        )


def _show(dataset: Any, values: npt.NDArray[Any], color: str, max_value: int | None) -> Pixels:
    from pydicom.pixels.processing import apply_color_lut

    kind = dataset.PhotometricInterpretation
    if kind in GRAYS:
        # pydicom subtracts in the type it is given: the stored one would wrap.
        shown, low, high = _show_gray(dataset, values.astype(_signed_type(values)), max_value)
        black, white = (high, low) if kind == "MONOCHROME1" else (low, high)
        return scale_pixels(shown, black, white, color, _assumed_peak(dataset, values, max_value))
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
        highest = int(np.iinfo(values.dtype).max)
    else:
        highest = 2**dataset.BitsStored - 1
    if highest == 255 and values.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(values))
        return image.convert("L") if color == "gray" else image
    if values.min() < 0:
        raise ImageError("DICOM with signed colours, of which black and white are not known")
    return scale_to_white(values, highest, max_value, color)


def _assumed_peak(dataset: Any, values: npt.NDArray[Any], max_value: int | None) -> Peak | None:
    """Find the highest stored pixel, where neither the file nor ``max_value`` says of the stored bits what white is."""
    least, most = _stored_range(dataset)
    states_white = _find_window(dataset) or dataset.get("ModalityLUTSequence") or max_value is not None
    return None if states_white or least < 0 or most <= 255 else Peak(int(values.max()), most)


def _signed_type(values: npt.NDArray[Any]) -> npt.DTypeLike:
    """Choose a signed type that holds the stored values and what is subtracted from them."""
    if values.dtype.itemsize > 4:
        raise ImageError(f"DICOM with pixels of {8 * values.dtype.itemsize} bits; convert to 32 bits or fewer")
    return np.int32 if values.dtype.itemsize < 4 else np.int64


def _show_gray(dataset: Any, values: npt.NDArray[Any], max_value: int | None) -> tuple[npt.NDArray[Any], float, float]:
    """Compute the pixels to show, and their values of black and white."""
    from pydicom.pixels.processing import apply_modality_lut

    window = _find_window(dataset)
    shown = apply_modality_lut(values, dataset)
    _check_finite(shown)  # a lookup table would give pixels for NaN
    if window == "lut":
        shown, low, high = _look_up(dataset, shown)
        if shown.max() > high:
            raise ImageError(f"the VOI lookup table has entries up to {shown.max()}, above the {high:g} of its bits")
    elif window == "window":
        shown, low, high = _apply_window(dataset, shown)
    else:
        low, high = _whole_range(dataset, values, max_value)
    _check_finite(shown, low, high)
    if low == high:
        raise ImageError("the rescale slope or lookup table makes all pixels the same")
    return shown, low, high


def _look_up(dataset: Any, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float, float]:
    from pydicom.pixels.processing import apply_voi_lut

    item = dataset.VOILUTSequence[0]
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    if bits == 8:
        # For 8 bits pydicom counts the entries in 8 bits too: a table of more than 256 would wrap.
        item.LUTDescriptor = [entries, first, 16]
    last = first + (entries or 65536) - 1
    return apply_voi_lut(np.clip(np.rint(values), first, last).astype(np.int64), dataset), 0, 2**bits - 1


def _apply_window(dataset: Any, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float, float]:
    from pydicom.pixels.processing import apply_voi_lut

    with np.errstate(over="ignore"):
        # Far below and above the window lies exactly what pydicom makes of black and white.
        low, high = apply_voi_lut(np.array([-1e200, 1e200]), dataset).tolist()
        return apply_voi_lut(values, dataset), low, high


def _whole_range(dataset: Any, values: npt.NDArray[Any], max_value: int | None) -> tuple[float, float]:
    from pydicom.pixels.processing import apply_modality_lut

    least, most = _stored_range(dataset)
    if max_value is not None:
        if least < 0:
            raise ImageError("DICOM with signed pixels and no window: --max-value says nothing of its black")
        most = max_value
        check_highest(values, most)
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    low, high = sorted(apply_modality_lut(np.array([least, most], dtype=np.int64), dataset).tolist())
    return low, high


def _stored_range(dataset: Any) -> tuple[int, int]:
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


def _find_window(dataset: Any) -> str | None:
    # The order that pydicom has, and DICOM viewers: a table before a window.
    if dataset.get("VOILUTSequence"):
        return "lut"
    present = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    return "window" if present else None


def _check_finite(*values: npt.ArrayLike) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise ImageError("the rescale slope, intercept or window make pixels that are not finite")

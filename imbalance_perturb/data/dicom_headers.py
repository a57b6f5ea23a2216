"""What the headers of DICOM files leave empty, leave out or contradict, settled before pydicom acts on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from imbalance_perturb.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
GRAYS = ("MONOCHROME1", "MONOCHROME2")

#: Transfer syntaxes without compression, by whether value types are implicit and bytes come in little-endian order.
_PLAIN = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}


def find_interpretation(header: Dataset) -> str:
    """Find the photometric interpretation, as DICOM writes it.

    Raises:
        ImageError: if none is stated, or several.
    """
    stated = header.get("PhotometricInterpretation") or ""
    kinds = {str(kind).strip().upper() for kind in ([stated] if isinstance(stated, str) else stated)}
    if len(kinds) > 1:
        raise ImageError(f"DICOM of the photometric interpretations {' and '.join(sorted(kinds))}: which is unclear")
    if not (kind := kinds.pop()):
        raise ImageError("DICOM without photometric interpretation, so black and white are not known; state it")
    return kind


def settle(dataset: Any) -> None:
    """Give what a file leaves empty or out the one meaning that it can have, in the place where pydicom looks for it.

    An empty window, function or rescaling is none; a rescaling that states one of slope and intercept has 1 or 0 for
    the other; as many samples a pixel as the photometric interpretation has; without transfer syntax, the plain one
    that the file was read by.

    Raises:
        ImageError: if the transfer syntax is not stated and pixels are compressed.
    """
    kind = dataset.PhotometricInterpretation = find_interpretation(dataset)
    for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"):
        if name in dataset and dataset.get(name) in (None, ""):
            delattr(dataset, name)
    if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
        dataset.RescaleSlope = dataset.get("RescaleSlope", 1)
        dataset.RescaleIntercept = dataset.get("RescaleIntercept", 0)
    if dataset.get("SamplesPerPixel") is None:
        dataset.SamplesPerPixel = 3 if kind in COLOURS else 1
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        if dataset["PixelData"].is_undefined_length:
            raise ImageError("the DICOM file does not state its transfer syntax")
        dataset.file_meta.TransferSyntaxUID = _PLAIN[dataset.original_encoding]


def read_stored(dataset: Any, pixel_array: Callable[[Any], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Decode the stored values; those above other bits, which pydicom does not know of, brought down.

    Raises:
        ImageError: if the values contradict what the header says of their place.
    """
    allocated, stored, highest = (int(dataset.get(name) or 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    shift = highest + 1 - stored
    is_plain = dataset.file_meta.TransferSyntaxUID in _PLAIN.values()
    # A codestream says itself where its bits are; and a place that cannot be is none.
    if not is_plain or not stored or not 0 < shift <= allocated - stored:
        return pixel_array(dataset)
    unclear = ImageError(
        f"DICOM whose {stored} stored bits of {allocated} end at bit {highest}, as its pixels do not: where they lie is"
        " unclear"
    )
    if dataset.PixelRepresentation:
        raise unclear
    dataset.BitsStored, dataset.HighBit = allocated, allocated - 1
    values = pixel_array(dataset)
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    if (values & ((1 << shift) - 1)).any() and values.max() < 1 << stored:
        raise unclear
    return (values >> shift) & ((1 << stored) - 1)

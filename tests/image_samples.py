"""Image files of every kind that is read, as bytes, and the pixels they hold."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(height: int = 24, width: int = 32) -> Image.Image:
    """A smooth colour picture, different in every corner, with some noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1), (rows + columns) * 3 % 256]
    noise = np.random.default_rng(1).integers(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(channels, -1) + noise, 0, 255).astype(np.uint8))


def deep(channels: int, height: int = 6, width: int = 9, highest: int = 65535) -> np.ndarray:
    """(H, W) or (H, W, C) uint16 pixels from 0 to ``highest``, both there in every channel."""
    values = np.random.default_rng(2).integers(0, highest + 1, (height, width, channels), dtype=np.uint16)
    values[0, 0], values[-1, -1] = 0, highest
    return values[..., 0] if channels == 1 else values


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as Pillow saves it."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png16(values: np.ndarray, *, interlaced: bool = False) -> bytes:
    """A 16-bit PNG of 1 to 4 channels, which Pillow cannot write in colour."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes:
        for row in values[top::down, left::across] if width > left else ():
            rows += b"\0" + row.astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    values: np.ndarray,
    *,
    order: str = "<",
    photometric: int | None = None,
    bits: int | None = None,
    deflate: bool = False,
    planar: bool = False,
    sample_format: int = 1,
    extra: int | None = None,
) -> bytes:
    """A TIFF of one strip (a plane, if ``planar``), of integers or floats of any width in bytes."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    bits = bits or values.dtype.itemsize * 8
    planes = [values[..., c] for c in range(channels)] if planar else [values]
    strips = [np.ascontiguousarray(p).astype(p.dtype.newbyteorder(order)).tobytes() for p in planes]
    if bits == 12:  # two pixels in three bytes
        pairs = values.reshape(height, -1, 2).astype(np.uint32)
        packed = pairs[..., 0] << 12 | pairs[..., 1]
        strips = [np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8).tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    entries: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [8 if deflate else 1],
        262: [photometric if photometric is not None else (1 if channels < 3 else 2)],
        273: [],
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planar else 1],
        339: [sample_format] * channels,
    }
    if extra is not None:
        entries[338] = [extra]
    position = 8
    for strip in strips:
        entries[273].append(position)
        position += len(strip)
    body, table, overflow = b"".join(strips), b"", b""
    end = 8 + len(body) + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(data) > 4:
            table += struct.pack(f"{order}HHII", tag, 4, len(numbers), end + len(overflow))
            overflow += data
        else:
            table += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + data
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + overflow


def dicom(values: np.ndarray, *, syntax: str | None = None, **attributes: Any) -> bytes:
    """A DICOM file of (H, W) or (H, W, 3) integers; ``attributes`` are put over what the pixels say (None: without)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image_samples"])
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = values.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
    for name, value in attributes.items():
        if value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)
    if "HighBit" not in attributes:
        dataset.HighBit = dataset.BitsStored - 1
    data = values.tobytes()
    if "PixelData" not in attributes:
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if bits == 8 or syntax else "OW"
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def samples() -> dict[str, bytes]:
    """One small file for each way that pixels are read, by a name with its suffix."""
    rgb = picture()
    gray, first = rgb.convert("L"), rgb.quantize(16)
    return {
        "rgb.jpg": saved(rgb, "JPEG"),
        "gray.jpg": saved(gray, "JPEG"),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "rgb.png": saved(rgb, "PNG"),
        "alpha.png": saved(rgb.convert("RGBA"), "PNG"),
        "palette.png": saved(first, "PNG", transparency=3),
        "bit.png": saved(gray.convert("1"), "PNG"),
        "gray16.png": png16(deep(1)),
        "rgb16.png": png16(deep(3), interlaced=True),
        "rgb.tif": saved(rgb, "TIFF"),
        "lzw.tif": saved(rgb, "TIFF", compression="tiff_lzw"),
        "gray16.tif": tiff(deep(1)),
        "rgb16.tif": tiff(deep(3), deflate=True),
        "rgb16planes.tif": tiff(deep(3), planar=True),
        "rgb16.ppm": b"P6 9 6 65535\n" + deep(3).astype(">u2").tobytes(),
        "rgb.bmp": saved(rgb, "BMP"),
        "frames.gif": saved(first, "GIF", save_all=True, append_images=[gray.convert("P")]),
        "rgb.webp": saved(rgb, "WEBP"),
        "gray.pgm": saved(gray, "PPM"),
        "rgb.avif": saved(rgb, "AVIF", quality=90),
        "rgb.jp2": saved(rgb, "JPEG2000"),
        "gray16.j2k": saved(Image.fromarray(deep(1)), "JPEG2000", no_jp2=True),
    }


def heic(values: np.ndarray, bits: int = 8) -> bytes:
    """A HEIC file of (H, W, 3) or (H, W) pixels, without loss; needs pillow-heif."""
    import pillow_heif

    height, width = values.shape[:2]
    mode = ("RGB" if values.ndim == 3 else "L") + (f";{bits}" if bits > 8 else "")
    stream = io.BytesIO()
    picture = pillow_heif.from_bytes(mode=mode, size=(width, height), data=values.tobytes())
    picture.save(stream, quality=-1, chroma=444, matrix_coefficients=0)
    return stream.getvalue()


def heif_samples() -> dict[str, bytes]:
    """The same for HEIC, which needs pillow-heif."""
    return {"rgb.heic": heic(np.asarray(picture())), "rgb12.heic": heic(deep(3, highest=4095), 12)}


def dicom_samples() -> dict[str, bytes]:
    """The same for DICOM, which needs pydicom."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    rgb = np.asarray(picture())
    jpeg = {"syntax": JPEGBaseline8Bit, "PhotometricInterpretation": "YBR_FULL_422"}
    return {
        "gray.dcm": dicom(deep(1)),
        "window.dcm": dicom(
            deep(1).astype(np.int16), WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-9
        ),
        "rgb.dcm": dicom(rgb),
        "bare.dcm": dicom(deep(1))[132:],
        "jpeg.dcm": dicom(rgb, **jpeg, PixelData=encapsulate([saved(picture(), "JPEG")])),
    }

"""Detect which format a model file has, by its content."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models.formats.zip_archive import Archive

#: What other programs' files begin with, and what they are.
_FOREIGN = (
    (b"\x89HDF", 0, "an HDF5 file (Keras?)"),
    (b"TFL3", 4, "a TensorFlow Lite file"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"\x1f\x8b", 0, "a gzip-compressed file; unpack it first"),
    (b"\x89PNG", 0, "a PNG image"),
    (b"\xff\xd8\xff", 0, "a JPEG image"),
)
_MAX_HEADER = 100_000_000  # the limit of the safetensors format itself


def detect_format(file: BinaryIO, path: Path, archive: Callable[[], Archive]) -> str:
    """Detect the format of a model file: ``checkpoint``, ``safetensors``, ``torchscript`` or ``export``.

    Args:
        file: at its beginning.
        path: of the file, for messages.
        archive: opens the file as a zip archive; called if it begins like one.

    Raises:
        ModelFileError: for anything else, saying what it is.
    """
    head = file.read(512)
    size = file.seek(0, 2)
    if head.startswith(b"PK"):
        return _detect_in_archive(archive(), path)
    if len(head) >= 9 and head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length <= _MAX_HEADER:
            if 8 + length > size:
                raise ModelFileError(f"{path}: this safetensors file is cut off; copy or download it again")
            return "safetensors"
    if head.startswith(b"\x80") and len(head) > 1 and head[1] <= pickle.HIGHEST_PROTOCOL:
        return "checkpoint"
    for magic, offset, what in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise _not_a_model(path, what)
    if head.startswith(b"\x08") and (path.suffix == ".onnx" or b"pytorch" in head or b"onnx" in head):
        raise _not_a_model(path, "an ONNX file, whose runtimes give no gradient")
    raise _not_a_model(path, "no PyTorch model file")


def _detect_in_archive(archive: Archive, path: Path) -> str:
    names = [part.filename for part in archive.parts]
    parts = {name.split("/", 1)[-1] for name in names}
    if parts & {"archive_format", "models/model.json", "serialized_exported_program.json"}:
        return "export"
    if "data.pkl" in parts:
        return "torchscript" if "constants.pkl" in parts else "checkpoint"
    if any(name.endswith(".weights.h5") for name in names):
        raise _not_a_model(path, "a Keras file")
    if any(name.endswith(".npy") for name in names):
        raise _not_a_model(path, "a NumPy archive")
    raise _not_a_model(path, "a zip archive without a PyTorch model in it")


def _not_a_model(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: this is {what}; expected a PyTorch state_dict (.pth, .pt, .safetensors), TorchScript or"
        " torch.export (.pt2) file"
    )

"""Detect which format a model file has, by its content."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models.formats.foreign import describe_foreign, describe_pickle, describe_zip
from imbalance_perturb.models.formats.zip_archive import Archive

#: What torch.save wrote before its zip archives: a pickle of this number.
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
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
        if not head.startswith(_TORCH_MAGIC) and (found := describe_pickle(head)) is not None:
            raise _not_a_model(path, found)
        return "checkpoint"
    raise _not_a_model(path, describe_foreign(head, path, file))


def _detect_in_archive(archive: Archive, path: Path) -> str:
    names = [part.filename for part in archive.parts]
    parts = {name.split("/", 1)[-1] for name in names}
    if parts & {"archive_format", "models/model.json", "serialized_exported_program.json"}:
        return "export"
    if "data.pkl" in parts:
        return "torchscript" if "constants.pkl" in parts else "checkpoint"
    raise _not_a_model(path, describe_zip(names))


def _not_a_model(path: Path, described: tuple[str, str]) -> ModelFileError:
    what, remedy = described
    return ModelFileError(f"{path}: this is {what}; {remedy}")

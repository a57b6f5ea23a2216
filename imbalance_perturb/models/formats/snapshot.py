"""The bytes of a model file, read once: what was checked is what is loaded, and what its hash is of."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.models.formats.detection import detect_format
from imbalance_perturb.models.formats.zip_archive import Archive

#: What TorchScript notes on the source of its code, for error messages alone: more than the code itself, and parsed by
#: torch without any check.
_SOURCE_NOTES = ".debug_pkl"
#: Of a file: what is larger may be larger than memory, and is not read before it looks like a model.
_LARGE = 2**30


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model file as it was when it was read; what happens to the file afterwards does not matter.

    Held in memory rather than as an open file: that would show what someone writes into it after the checks.

    Attributes:
        path: of the file, for messages.
        content: all of it.
        part: of the archive at ``path``, where this is the content of that alone.
        file_sha256: of the file, where its content is more than ``content``.
    """

    path: Path
    content: bytes = field(repr=False)
    part: str = ""
    file_sha256: str | None = None

    @property
    def name(self) -> str:
        """The path, and the part of the archive there, for messages."""
        return f"{self.path} ({self.part[:80]!r})" if self.part else str(self.path)

    def open(self) -> BinaryIO:
        """Make a file object at the beginning of the content, which is not copied."""
        return io.BytesIO(self.content)

    @property
    def is_archive(self) -> bool:
        """Whether it begins as a zip archive does."""
        return self.content.startswith(b"PK")

    @cached_property
    def archive(self) -> Archive:
        """The content as a zip archive, opened once for all who look into it."""
        return Archive(self.open(), self.name)

    @cached_property
    def format(self) -> str:
        """Which format it has, as :func:`detect_format` finds it.

        Raises:
            ModelFileError: for anything but a model.
        """
        return detect_format(self.open(), self.path, lambda: self.archive)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, or of its part, in hexadecimal."""
        return self.file_sha256 or hashlib.sha256(self.content).hexdigest()


def read_snapshot(path: Path) -> Snapshot:
    """Read a model file, once: everything after this looks at its bytes in memory in place of the file.

    Raises:
        ModelFileError: if it cannot be read, or is large and of no format that :func:`detect_format` knows.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path}: this is a folder; give the model file in it")
        size = path.stat().st_size
        if not size:
            raise ModelFileError(f"{path}: the model file is empty; copy or download it again")
        with path.open("rb") as file:
            if size > _LARGE:  # an archive of images, given by mistake
                detect_format(file, path, lambda: Archive(file, str(path)))
                file.seek(0)
            return _without_source_notes(Snapshot(path, file.read()))
    except FileNotFoundError:
        raise ModelFileError(f"{path}: there is no such model file; check the path") from None
    except OSError as error:
        raise ModelFileError(f"{path}: the model file cannot be read ({error.strerror or error})") from error
    except MemoryError:
        raise ModelFileError(f"{path}: the model file is larger than the memory that is free") from None


def _without_source_notes(snapshot: Snapshot) -> Snapshot:
    if not snapshot.is_archive or snapshot.format != "torchscript":
        return snapshot
    return Snapshot(snapshot.path, snapshot.archive.without(_SOURCE_NOTES), file_sha256=snapshot.sha256)

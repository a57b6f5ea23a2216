"""Writing a report: under its name only when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

from imbalance_perturb.errors import OutputFileError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and then move it there, so that an old one stays until the new one is whole.

    Raises:
        OutputFileError: if it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputFileError(f"{path}: cannot be written ({error.strerror}); choose another place") from None

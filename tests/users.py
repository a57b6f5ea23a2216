"""Folders of a test as another user finds them."""

from __future__ import annotations

import tempfile
from pathlib import Path


def open_to_others(folder: Path) -> None:
    """Let other users into a temporary folder, through however many folders pytest has put around it."""
    around = Path(tempfile.gettempdir()).resolve()
    for each in (folder, *folder.parents):
        if each.resolve() == around:
            return
        each.chmod(0o755)

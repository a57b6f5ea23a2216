"""Files and folders that no search takes: hidden ones, and those that systems and programs keep beside people's own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from imbalance_perturb.errors import first_few

#: Names (lower case) besides those that begin with a dot: NAS thumbnails and bins, Windows, macOS archives, ext4.
SYSTEM_NAMES = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
)

_NAMED = 3


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left aside wherever it is found."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


@dataclass
class HiddenFiles:
    """What a search left aside: ``loose`` files, the names of the folders, and the number of the files in those."""

    loose: int = 0
    inside: int = 0
    folders: list[str] = field(default_factory=list)

    def add_file(self) -> None:
        """Count one more file."""
        self.loose += 1

    def add_folder(self, name: str, path: str, *, is_link: bool) -> None:
        """Count one more folder and the files in it; follows no links, and leaves out what cannot be read."""
        self.folders.append(name)
        if not is_link:
            self.inside += sum(len(files) for _, _, files in os.walk(path))

    def merge(self, other: HiddenFiles) -> None:
        """Count what another search left aside, too."""
        self.loose += other.loose
        self.inside += other.inside
        self.folders += other.folders

    def describe(self) -> str:
        """Describe in one line what was left aside; empty where nothing was."""
        parts = []
        if self.folders:
            parts.append(
                f"{self.inside:,} files in {len(self.folders):,} hidden or system folders"
                f" ({first_few(sorted(set(self.folders)), _NAMED)})"
            )
        if self.loose:
            parts.append(f"{self.loose:,} hidden or system files")
        return f"left aside: {', '.join(parts)}" if parts else ""

    def to_dict(self) -> dict[str, int]:
        """Return the numbers, for a run file."""
        return {"files": self.loose + self.inside, "folders": len(self.folders)}

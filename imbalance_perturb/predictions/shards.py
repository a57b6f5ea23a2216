"""Parts of a list of images for runs side by side: an image's path alone decides in which it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from imbalance_perturb.errors import SettingsError


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, from 1 on."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, name: str) -> bool:
        """Whether the image of this name is in this part; the others of the list make no difference."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """Parse ``I/N``, such as ``3/8``.

    Raises:
        SettingsError: if it is not two whole numbers with I from 1 to N.
    """
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return Shard(int(index), int(count))
    raise SettingsError(f"shard is {text!r}; expected I/N with I from 1 to N, such as 3/8")


def list_sha256(names: Iterable[str]) -> str:
    """Compute the SHA-256 of a list of images, in hexadecimal: of the names and their order alone."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def files_sha256(names: Iterable[str], sizes: Iterable[int | None]) -> str:
    """Compute the SHA-256 of a list of images and the bytes of each, in hexadecimal; ``None``: no such file."""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(name.encode("utf-8", "surrogateescape") + f"\0{'null' if size is None else size}\0".encode())
    return digest.hexdigest()

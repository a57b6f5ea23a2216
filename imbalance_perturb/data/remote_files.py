"""Files named by a URL, in S3 or Google Cloud Storage, through the file systems of pyarrow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from imbalance_perturb.errors import ImageError, ImageFolderError, first_few

#: No larger file is opened: decoders may read one whole into memory.
MAX_FILE_BYTES = 2 * 1024**3

EMPTY = "the file is empty (0 bytes)"

#: Stores by the scheme of their URLs.
STORES = ("s3", "gs")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# The last '?': a name may have one, too.
_OPTIONS = re.compile(r"\?(?=[a-z_]+=[^?]*$)")
_LONGEST = 200

#: What stores say, and what that is called of a file.
_REASONS = (
    (re.compile(r"NO_SUCH_(KEY|BUCKET)|RESOURCE_NOT_FOUND|\b404\b|does not exist", re.I), "no such file or directory"),
    (re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|\b40[13]\b|forbidden|denied", re.I), "permission denied"),
)


@dataclass(frozen=True)
class RemotePath(os.PathLike[str]):
    """A file or folder in a store, where a path may stand.

    ``base`` is the URL without a slash at its end, ``options`` what follows its ``?``: of the store, such as
    ``region=eu-central-1`` or ``endpoint_override=http://127.0.0.1:9000``.
    """

    base: str
    options: str = ""

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.base}/{name}", self.options)

    def __fspath__(self) -> str:
        return self.base

    def __str__(self) -> str:
        return f"{self.base}?{self.options}" if self.options else self.base

    @property
    def name(self) -> str:
        """The last part."""
        return self.base.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return RemotePath(self.base.rpartition("/")[0], self.options)

    def absolute(self) -> RemotePath:
        """Itself: a URL is the same wherever it is read."""
        return self

    resolve = absolute

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self.kind() is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.kind() == "folder"

    def kind(self) -> str | None:
        """What it is, ``file`` or ``folder``; ``None`` where there is nothing.

        Raises:
            ImageFolderError: if the store does not say.
        """
        with _naming(self):
            system, key = self._at()
            return {"File": "file", "Directory": "folder"}.get(system.get_file_info(key).type.name)

    def read(self, head: int | None = None) -> bytes:
        """Read a whole file, or what stands at its beginning.

        Raises:
            ImageError: with the reason: there is none, it is empty or too large, or the store does not give it.
        """
        try:
            system, key = self._at()
            with system.open_input_file(key) as stream:
                size: int = stream.size()
                if not size:
                    raise ImageError(EMPTY)
                if head is None and size > MAX_FILE_BYTES:
                    raise ImageError(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
                content: bytes = stream.read(head)
                return content
        except OSError as error:
            raise ImageError(_reason(error)) from error

    def iter_files(self) -> Iterator[tuple[str, int]]:
        """Yield the name, relative to this folder, and the bytes of each file below it.

        Raises:
            ImageFolderError: if the store does not list it.
        """
        import pyarrow.fs as fs

        with _naming(self):
            system, key = self._at()
            for info in system.get_file_info(fs.FileSelector(key, recursive=True)):
                if info.type is fs.FileType.File:
                    yield info.path.removeprefix(f"{key}/"), info.size

    def _at(self) -> tuple[Any, str]:
        """The file system, of this process, and what it calls the file."""
        scheme, _, rest = self.base.partition("://")
        bucket, _, key = rest.partition("/")
        system, root = _file_system(f"{scheme}://{bucket}{'?' if self.options else ''}{self.options}", os.getpid())
        return system, f"{root}/{key}" if key else root


def find_place(given: str | os.PathLike[str]) -> Path | RemotePath:
    """The path that a text names: of ``s3://`` and ``gs://`` one in a store, of ``file://`` and others one here.

    Raises:
        ImageFolderError: if it is a URL of anything else, or holds a password.
    """
    text = os.fspath(given)
    found = _URL.match(text)
    if isinstance(given, RemotePath) or found is None:
        return given if isinstance(given, RemotePath) else Path(given)
    scheme = found[1].lower()
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ImageFolderError(f"{text}: names another machine, {parts.netloc}; expected file:///FOLDER")
        return Path(url2pathname(parts.path))
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in (*STORES, "file"))
        raise ImageFolderError(f"{first_few([text])}: is a URL that is not read: download it, or give one of {known}")
    base, *options = _OPTIONS.split(text, maxsplit=1)
    bucket = base.partition("://")[2].partition("/")[0]
    if ":" in bucket.rpartition("@")[0]:
        raise ImageFolderError(
            f"{scheme}://...@{bucket.rpartition('@')[2]}: holds a password, which would stand in the run file: put it"
            " into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the store's own configuration"
        )
    if not bucket:
        raise ImageFolderError(f"{text}: names no bucket; expected {scheme}://BUCKET/FOLDER")
    return RemotePath(f"{scheme}://{base.partition('://')[2].rstrip('/')}", *options)


def iter_remote_sizes(root: RemotePath, names: Iterable[str]) -> Iterator[int | None]:
    """Yield the bytes of each file of a folder, in order; ``None`` for what is not there."""
    found = dict(root.iter_files())
    for name in names:
        yield found.get(name)


@cache
def _file_system(store: str, process: int) -> tuple[Any, str]:
    """The file system of a bucket, and what it calls it; a process that is forked needs its own."""
    try:
        import pyarrow.fs as fs
    except ImportError:
        raise ImageFolderError(
            f"{store}: to read from a store needs pyarrow: pip install 'imbalance-perturb[cloud]'"
        ) from None
    try:
        system, root = fs.FileSystem.from_uri(store)
    except (ValueError, NotImplementedError) as error:  # an option that is none; a store left out when it was built
        raise ImageFolderError(f"{store}: {_first_line(error)}") from None
    return system, root


@contextmanager
def _naming(path: RemotePath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason, said = _reason(error), _first_line(error)
        raise ImageFolderError(f"{path}: {said}" if said == reason else f"{path}: {reason} ({said})") from error


def _reason(error: OSError) -> str:
    """What is wrong, as it is called of a file of this machine where there is such a word."""
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    text = str(error)
    return next((reason for pattern, reason in _REASONS if pattern.search(text)), _first_line(error))


def _first_line(error: Exception) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."

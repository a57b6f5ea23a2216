"""Writing results: never a half-written file under a final name, and never into a file that somebody else put there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.files.csv_tables import encode_json
from imbalance_perturb.files.parquet import has_pyarrow

#: Suffixes that a predictions file may have.
FORMATS = (".csv", ".jsonl", ".parquet")

STDOUT = "-"

_ELSEWHERE = "choose another place"

# What Windows lacks is 0. A named pipe would be waited for.
_CAREFULLY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


@contextmanager
def open_whole(path: Path, *, binary: bool = False, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a file, UTF-8 text or bytes, that appears under its name only when the block ends without an error.

    Until then it has another name in the same folder, which nobody can foresee; after an error nothing is left of it.
    A file that is replaced hands on its permissions; a symbolic link is replaced itself, not what it leads to.

    Args:
        path: the file.
        binary: whether bytes are written.
        sync: whether to wait until it is on the disk, so that a power cut leaves the old file or the new one.

    Raises:
        OutputFileError: if it cannot be written.
    """
    # Names that are not UTF-8 were escaped before, each format in its own way, so that they read back the same.
    text = {} if binary else {"encoding": "utf-8", "newline": ""}
    with refusing(path):
        _check_replaceable(path)
        temporary = _temporary_path(path)
        stream: IO[Any] = temporary.open("xb" if binary else "x", **text)  # type: ignore[call-overload]
    try:
        with refusing(path, "writing stopped"):
            with stream:
                keep_permissions(stream, path)
                yield stream
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            move_into_place(temporary, path, sync=sync)
    finally:
        with suppress(OSError):  # it is in its place; or so is the error that matters on its way
            temporary.unlink()


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file, whole or not at all (:func:`open_whole`)."""
    with open_whole(path, binary=True, sync=sync) as stream:
        stream.write(content)


def write_json(path: Path, data: object) -> None:
    """Write JSON, whole or not at all (:func:`open_whole`)."""
    with open_whole(path) as stream:
        stream.write(json_text(data, indent=2) + "\n")


def json_text(data: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Write plain values as JSON text, valid UTF-8 whatever the names in them: see :func:`encode_json`."""
    return encode_json(json.dumps(data, indent=indent, ensure_ascii=ascii_only, allow_nan=False))


def keep_permissions(stream: IO[Any], path: Path) -> None:
    """Give a file that is to replace another, where there is one, the permissions of that."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode) and hasattr(os, "fchmod"):
        with suppress(OSError):  # a file system without permissions
            os.fchmod(stream.fileno(), status.st_mode & 0o777)


def move_into_place(whole: Path, path: Path, *, sync: bool = True) -> None:
    """Put a closed file under its final name, where it is after a power cut, too.

    Raises:
        OSError: if that cannot be done.
    """
    whole.replace(path)
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders; elsewhere a folder may be one that only can be written
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # A file system that cannot do this.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def check_output(path: Path | None, suffixes: Sequence[str] = FORMATS) -> None:
    """Refuse a file that could not be written, before any work is done; ``None`` is no file.

    Raises:
        OutputFileError: if its suffix is none of ``suffixes``, it is to be Parquet and pyarrow is not installed, or
            as in :func:`check_writable`.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        stdout = f", or {STDOUT} for stdout" if suffixes is FORMATS else ""
        raise OutputFileError(f"{path}: the suffix names no format; use {_alternatives(suffixes)}{stdout}")
    if path.suffix.lower() == ".parquet" and not has_pyarrow():
        raise OutputFileError(f"{path}: needs pyarrow; pip install 'imbalance-perturb[parquet]', or use .csv or .jsonl")
    check_writable(path)


def check_writable(path: Path, remedy: str = _ELSEWHERE) -> None:
    """Refuse a place that :func:`open_whole` could not write to: a file is made beside it, and removed.

    Args:
        path: the file to be.
        remedy: what to do, for the message.

    Raises:
        OutputFileError: if its folder is not there or takes no file, or what is there cannot be replaced.
    """
    with refusing(path, remedy=remedy):
        if not path.parent.is_dir():
            raise OutputFileError(f"{path}: there is no folder {path.parent}; make it first or choose another")
        _check_replaceable(path)
        _try_folder(path)


def open_own(path: Path, *, write: bool = True, create: bool = False) -> BinaryIO:
    """Open a file whose name others can foresee, such as that of the rows so far, only if it is the user's own.

    Else, in a folder that several may write to, another user could have these bytes go elsewhere, or have others taken
    for them.

    Args:
        path: the file; what is in it stays.
        write: whether it is also to be written.
        create: whether to make it where it is not there.

    Raises:
        OutputFileError: if it is a link or no regular file, has further names, or belongs to another user.
        OSError: if it cannot be opened.
    """
    access = (os.O_RDWR if write else os.O_RDONLY) | _CAREFULLY
    descriptor = _open_descriptor(path, access, create)
    stream: BinaryIO = os.fdopen(descriptor, "r+b" if write else "rb")
    try:
        _check_own(path, os.fstat(descriptor))  # and not what has come into its place meanwhile
    except OSError:
        stream.close()
        raise
    return stream


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _alternatives(suffixes: Sequence[str]) -> str:
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last


@contextmanager
def refusing(path: Path, what: str = "cannot be written", *, remedy: str = _ELSEWHERE) -> Iterator[None]:
    """Inside: what the system refuses becomes an OutputFileError that names the file, and what to do."""
    try:
        yield
    except OutputFileError:
        raise
    except OSError as error:
        raise OutputFileError(f"{path}: {what} ({error.strerror or error}); {remedy}") from None


def _temporary_path(path: Path) -> Path:
    # Not the whole name: with more to it, it might be too long.
    return path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.tmp")


def _try_folder(path: Path) -> os.stat_result:
    """Make a file in this folder, remove it, and return its status."""
    temporary = _temporary_path(path)
    with temporary.open("xb") as stream:
        status = os.fstat(stream.fileno())
    temporary.unlink()
    return status


def _check_replaceable(path: Path) -> None:
    """Refuse a name that no file can take; a link that leads to a file, or nowhere, can be replaced."""
    try:
        status = path.lstat()
        kind = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        raise OutputFileError(
            f"{path}: is {'a folder' if stat.S_ISDIR(kind) else 'a device or pipe'}, not a file; {_ELSEWHERE}"
        )
    if stat.S_ISLNK(status.st_mode):
        return
    try:
        os.close(os.open(path, os.O_WRONLY | _CAREFULLY))
    except OSError as error:
        # That it may not be written does not matter, since it is replaced; but an immutable one cannot be.
        if error.errno in (errno.EPERM, errno.EROFS):
            raise
    folder = path.parent.stat()
    others = hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid, folder.st_uid)
    if folder.st_mode & stat.S_ISVTX and others:
        raise OutputFileError(f"{path}: is another user's, who alone may replace it in this folder; {_ELSEWHERE}")


def _open_descriptor(path: Path, access: int, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            return os.open(path, access | os.O_CREAT | os.O_EXCL, 0o666)
    _check_own(path, path.lstat())
    return os.open(path, access)


def _check_own(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        what = "is a link"
    elif not stat.S_ISREG(status.st_mode):
        what = "is no regular file"
    elif status.st_nlink > 1:
        what = "is a file that has another name, too (a hard link)"
    # On network drives all files may be somebody else's, so what counts is whose a new one is.
    elif hasattr(os, "geteuid") and os.geteuid() != status.st_uid != _try_folder(path).st_uid:
        what = "belongs to another user"
    else:
        return
    raise OutputFileError(f"{path}: {what}, so it is not used for a run's rows; remove it, or {_ELSEWHERE} with -o")

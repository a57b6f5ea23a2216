"""The pixels of one image file, or the reason why there are none."""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imbalance_perturb.data.picture_formats import (
    HEAD_BYTES,
    find_kind,
    is_dicom,
    refuse_reason,
    suffix_of,
    unknown_reason,
)
from imbalance_perturb.data.remote_files import EMPTY, MAX_FILE_BYTES, RemotePath
from imbalance_perturb.errors import ImageError

if TYPE_CHECKING:
    from imbalance_perturb.data.pixels import DraftSize, Pixels

_DICOM_SUFFIXES = (".dcm", ".dicom")
_LONGEST_REASON = 240


def decode_image(
    path: str | Path | RemotePath,
    color: str,
    *,
    max_value: int | None = None,
    exif_orientation: bool = False,
    draft_size: DraftSize = lambda height, width: None,
) -> Pixels:
    """Decode the pixels of an image file; of one with several frames (GIF, WebP, APNG) the first.

    Args:
        path: the file; its content says the format, not its suffix.
        color: ``rgb`` or ``gray``.
        max_value: the pixel value of white in images of more than 8 bits; ``None`` is the highest of the type. It
            does not concern PGM and DICOM files that state the range themselves.
        exif_orientation: whether to turn a picture upright as its EXIF data say (TIFF always is).
        draft_size: for the height and width of a JPEG those that it may be decoded at instead, or more; ``None``
            for the whole.

    Returns:
        A PIL image of mode ``RGB`` or ``L``; for more than 8 bits mode ``F``, scaled to [0, 255] without loss, one
        image for gray and three for colour.

    Raises:
        ImageError: with the reason in one line, whatever is wrong with the file.
    """
    head = b""
    try:
        # Decoders warn about what they then read all the same; what cannot be read is an error.
        with open_regular(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from imbalance_perturb.data import dicom, raster

            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            if is_dicom(head):
                return dicom.read_dicom(stream, color, max_value)
            if (reason := refuse_reason(head, path)) is not None:
                raise ImageError(reason)
            return raster.read_raster(stream, color, max_value, exif_orientation, draft_size)
    except ImageError as error:
        raise ImageError(_one_line(str(error))) from None
    except OSError as error:
        raise ImageError(_reason(error, path, head)) from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on a broken file; the row says what
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ImageError(f"cannot be decoded ({_one_line(text)})") from None


def open_regular(path: str | Path | RemotePath) -> BinaryIO:
    """Open an image file to be read.

    Raises:
        ImageError: if it is no file (but a folder, pipe, socket, device), is empty, or too large.
        OSError: if it cannot be opened.
    """
    if isinstance(path, RemotePath):  # whole: each piece for itself would be a request for itself
        return io.BytesIO(path.read())

    # A pipe would be waited for; and a path instead of a stream would let Pillow map the file into memory, where a
    # file cut short during the run kills the process.
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    kind = os.stat(path).st_mode  # noqa: PTH116 - as above
    if not stat.S_ISREG(kind):
        names = (
            (stat.S_ISDIR, "folder"),
            (stat.S_ISFIFO, "named pipe"),
            (stat.S_ISSOCK, "socket"),
            (stat.S_ISCHR, "device"),
        )
        raise ImageError(f"is a {next((name for test, name in names if test(kind)), 'device')}, not a file")
    stream = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller closes it
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_FILE_BYTES:
        return stream
    stream.close()
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(f"the file has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    raise ImageError(EMPTY)


def _reason(error: OSError, path: str | Path | RemotePath, head: bytes) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        if suffix_of(path) in _DICOM_SUFFIXES and find_kind(head) is None:
            return "not a DICOM file: has no 'DICM' at byte 128"
        return unknown_reason(head, path)
    if error.errno == errno.ENOENT and os.path.islink(path):  # noqa: PTH114 - as above
        return "a link to a file that is not there"
    if error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return _one_line(str(error) or type(error).__name__)


def _one_line(text: str) -> str:
    # Messages of decoders may hold line ends, and bytes of the broken file.
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."

"""Image files: which there are, and the pixels of one."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imbalance_perturb.cells import printable
from imbalance_perturb.data.hidden_files import HiddenFiles, is_hidden
from imbalance_perturb.data.picture_formats import (
    HEAD_BYTES,
    READ_SUFFIXES,
    find_kind,
    is_dicom,
    is_named_like_picture,
    may_be_picture,
    refuse_reason,
    suffix_of,
    unknown_reason,
)
from imbalance_perturb.errors import ImageError, ImageFolderError
from imbalance_perturb.files.csv_tables import iter_images

if TYPE_CHECKING:
    from imbalance_perturb.data.pixels import DraftSize, Pixels

#: No larger file is opened: decoders may read one whole into memory.
MAX_FILE_BYTES = 2 * 1024**3

_DICOM_SUFFIXES = (".dcm", ".dicom")
_LONGEST_REASON = 240


@dataclass(frozen=True)
class ImageList:
    """The images of a run: ``names`` sorted, distinct, POSIX paths relative to ``root``.

    ``source`` is what the user named (folder, CSV or image); ``ignored`` counts the other files of the folder by
    suffix and ``hidden`` what is never searched, so that nothing is left out in silence. ``whole`` holds the names of
    which ``names`` are a part, if so.
    """

    source: Path
    root: Path
    names: Sequence[str]
    ignored: Counter[str] = field(default_factory=Counter)
    whole: Sequence[str] | None = None
    hidden: HiddenFiles = field(default_factory=HiddenFiles)

    @property
    def everything(self) -> Sequence[str]:
        """The names of the whole list, of which ``names`` may be a part."""
        return self.names if self.whole is None else self.whole

    def part(self, holds: Callable[[str], bool]) -> ImageList:
        """The images whose names a part ``holds``, which may be none, with the whole list beside them."""
        return replace(self, names=[name for name in self.names if holds(name)], whole=self.names)

    def describe_left_aside(self) -> list[str]:
        """Lines on the files that are not among the images; none where there are none."""
        lines = []
        if self.ignored:
            kinds = ", ".join(f"{count} {printable(suffix)}" for suffix, count in self.ignored.most_common(5))
            lines.append(f"{self.ignored.total():,} other files left aside: {kinds}")
        if hidden := self.hidden.describe():
            lines.append(hidden)
        return lines

    def __len__(self) -> int:
        return len(self.names)


def find_images(path: str | Path) -> ImageList:
    """The images of a folder (searched recursively, links followed), of a CSV with an ``image`` column, or one file.

    Paths in a CSV are relative to the CSV's folder. In a folder hidden and system files are left aside, and so are
    files that are no pictures; a picture in a format that is not read is among the images, for its row to say so.
    What is named itself, as ``path`` or in a CSV, is taken whatever its name.

    Raises:
        ImageFolderError: if the path is not there, holds no image, or the CSV has no such column or a double.
    """
    path = Path(path)
    if path.is_dir():
        return _find_in_folder(path)
    if not path.exists():
        raise ImageFolderError(f"{path}: no such file or folder; give a folder of images, one image or a CSV")
    if path.suffix.lower() == ".csv":
        return ImageList(path, path.parent, sorted(_read_image_column(path)))
    return ImageList(path, path.parent, [path.name])


def iter_sizes(root: Path, names: Iterable[str]) -> Iterator[int | None]:
    """The bytes of each file, in order; ``None`` for what is no file, or no longer there."""
    for name in names:
        try:
            status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - as below
        except (OSError, ValueError):  # a CSV may name what can be no path
            yield None
        else:
            yield status.st_size if stat.S_ISREG(status.st_mode) else None


def _find_in_folder(root: Path) -> ImageList:
    names: list[str] = []
    ignored: Counter[str] = Counter()
    hidden = HiddenFiles()
    for name, entry in _iter_files(root, "", (_identity(root),), hidden):
        if is_named_like_picture(name) or _is_picture_inside(entry):
            names.append(name)
        else:
            ignored[suffix_of(name) or "no suffix"] += 1
    if not names:
        found = f"none of its {ignored.total()} files is one" if ignored else "it is empty"
        aside = f"; {left}" if (left := hidden.describe()) else ""
        raise ImageFolderError(
            f"{root}: no image in this folder ({found}{aside}); images end in {', '.join(sorted(READ_SUFFIXES))}"
        )
    # Sorted as whole strings: '/' sorts after '-' and '.', so sorting folder by folder would differ.
    names.sort()
    return ImageList(root, root, names, ignored, hidden=hidden)


def _iter_files(
    folder: str | Path, prefix: str, ancestors: tuple[tuple[int, int], ...], hidden: HiddenFiles
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ImageFolderError(
            f"{folder}: cannot be searched ({error.strerror}); make it readable or remove it"
        ) from None
    for entry in entries:
        name = prefix + entry.name
        if is_hidden(entry.name):
            if _is_folder(entry):
                hidden.add_folder(entry.name, entry.path, is_link=entry.is_symlink())
            else:
                hidden.add_file()
        elif not _is_folder(entry):
            yield name, entry
        # A link back to a folder above would be searched for ever.
        elif (identity := _identity(entry.path)) not in ancestors:
            empty = True
            for found in _iter_files(entry.path, f"{name}/", (*ancestors, identity), hidden):
                empty = False
                yield found
            if empty and is_named_like_picture(name):
                yield name, entry  # named like an image: its row says that it is none


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _is_picture_inside(entry: os.DirEntry[str]) -> bool:
    # Archives export DICOM files without suffix, or named by a UID, of which the last number looks like one.
    if not may_be_picture(entry.name) or entry.name == "DICOMDIR":
        return False
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as stream:  # noqa: PTH123 - a Path for each of 300,000 files is slow
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return is_dicom(head) or find_kind(head) is not None


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 - as above
    return status.st_dev, status.st_ino


def _read_image_column(path: Path) -> list[str]:
    names = [image for _, image, _ in iter_images(path, ("image",), ImageFolderError)]
    if not names:
        raise ImageFolderError(f"{path}: lists no image; give one path a line in the column 'image'")
    return names


def decode_image(
    path: str | Path,
    color: str,
    *,
    max_value: int | None = None,
    exif_orientation: bool = False,
    draft_size: DraftSize = lambda height, width: None,
) -> Pixels:
    """The pixels of an image file; of one with several frames (GIF, WebP, APNG) the first.

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


def open_regular(path: str | Path) -> BinaryIO:
    """Open an image file to be read.

    Raises:
        ImageError: if it is no file (but a folder, pipe, socket, device), is empty, or too large.
        OSError: if it cannot be opened.
    """

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
    raise ImageError("the file is empty (0 bytes)")


def _reason(error: OSError, path: str | Path, head: bytes) -> str:
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

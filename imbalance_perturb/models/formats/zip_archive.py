"""Look at the outside of a zip archive: what its parts declare to hold, before anything unpacks them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import torch

from imbalance_perturb.errors import ModelFileError, first_line
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import untrusted

#: ``torch.save`` writes no part compressed; TorchScript compresses its code, some megabytes at most.
MOST_UNPACKED = 64 * 2**20
_MOST_TEXT = 16 * 2**20
#: How much more than its size a larger archive may unpack to, as some people zip their files again.
_RATIO = 8
_TEXT = (".py", "pkl", ".json")
#: One part for each tensor and each class: large language models have some thousands.
_MOST_PARTS = 100_000
_LOCAL_HEADER = struct.Struct("<4s5HLLL2H")
_ENCRYPTED = 0x1


def read_parts(file: BinaryIO, name: str) -> list[zipfile.ZipInfo]:
    """The parts of a zip archive, none of them unpacked.

    Args:
        file: the archive.
        name: of the file, for messages.

    Raises:
        ModelFileError: if it is no archive, or damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except Exception as error:  # zipfile raises whatever a damaged directory leads to
        raise ModelFileError(f"{name}: this zip archive is damaged or cut off; copy or download it again") from error


def check_container(file: BinaryIO, name: str) -> list[zipfile.ZipInfo]:
    """Refuse a zip archive that unpacks to far more than its size, or that two readers could read differently.

    Returns:
        its parts.

    Raises:
        ModelFileError: naming what is wrong.
    """
    parts = read_parts(file, name)
    size = file.seek(0, 2)
    if len(parts) > _MOST_PARTS:
        raise ModelFileError(f"{name}: this archive has {len(parts):,} parts, more than a model has; save it again")
    if reason := _ending_reason(file, size) or next(filter(None, (_part_reason(file, part) for part in parts)), None):
        raise ModelFileError(f"{name}: the archive is damaged or made to mislead ({reason}); save the model again")
    if reason := _overlap_reason(file, parts, size):
        raise ModelFileError(f"{name}: the archive is damaged or made to mislead ({reason}); save the model again")
    packed = [part for part in parts if part.compress_type != zipfile.ZIP_STORED]
    _check_unpacked(packed, max(MOST_UNPACKED, _RATIO * size), name)
    text = (part for part in packed if part.filename.endswith(_TEXT))
    _check_unpacked(text, max(_MOST_TEXT, _RATIO * size // 2), name)
    return parts


def _check_unpacked(parts: Iterable[zipfile.ZipInfo], most: int, name: str) -> None:
    parts = list(parts)
    total = sum(part.file_size for part in parts)
    if total > most:
        largest = max(parts, key=lambda part: part.file_size).filename
        raise ModelFileError(
            f"{name}: {sum(part.compress_size for part in parts):,} bytes of this archive would unpack to {total:,}"
            f" (most of it {largest[:80]!r}), as a model's do not; if it is one, zip it again without compression"
        )


def _ending_reason(file: BinaryIO, size: int) -> str | None:
    # Readers look for the directory from the end; what follows it could be another one to some of them.
    file.seek(max(0, size - 22))
    ending = file.read(22)
    if not ending.startswith(b"PK\5\6") or ending[-2:] != b"\0\0":
        return "something follows its directory"
    file.seek(0)
    return None if file.read(4) in (b"PK\3\4", b"PK\5\6") else "something stands before its first part"


def _part_reason(file: BinaryIO, part: zipfile.ZipInfo) -> str | None:
    """Why a part's two headers, one beside it and one in the directory, cannot both be right."""
    what = repr(part.filename[:80])
    if part.flag_bits & _ENCRYPTED:
        return f"the part {what} is encrypted"
    if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"the part {what} is compressed in an unusual way"
    if part.compress_type == zipfile.ZIP_STORED and part.compress_size != part.file_size:
        return f"the part {what} has two sizes"
    if part.header_offset < 0:
        return f"the part {what} is not where it should be"
    file.seek(part.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        return f"the part {what} is not where it should be"
    _, _, _, method, _, _, _, _, unpacked, length, _ = _LOCAL_HEADER.unpack(header)
    encoding = "utf-8" if part.flag_bits & 0x800 else "cp437"
    if method != part.compress_type or file.read(length).decode(encoding, "replace") != part.orig_filename:
        return f"the part {what} has two descriptions"
    # Writers that learn the size last leave 0 here, those of large files 2^32 - 1.
    return f"the part {what} has two sizes" if unpacked not in (0, 2**32 - 1, part.file_size) else None


def _overlap_reason(file: BinaryIO, parts: list[zipfile.ZipInfo], size: int) -> str | None:
    end = 0
    for part in sorted(parts, key=lambda part: part.header_offset):
        if part.header_offset < end:
            return f"the part {part.filename[:80]!r} lies within another"
        file.seek(part.header_offset + 26)
        name_length, extra_length = struct.unpack("<2H", file.read(4))
        end = part.header_offset + _LOCAL_HEADER.size + name_length + extra_length + part.compress_size
        if end > size:
            return f"the part {part.filename[:80]!r} reaches past the end"
    return None


def records(file: BinaryIO, name: str, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The parts of an archive with such names, as each of the two parsers sees it that torch reads archives with.

    Raises:
        ModelFileError: if the archive cannot be read.
    """
    # A file made to look different to the two must pass as each of them sees it.
    try:
        with zipfile.ZipFile(file) as archive:
            for part in archive.namelist():
                if part.endswith(endings):
                    yield part, archive.read(part)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error) as error:
        raise ModelFileError(f"{name}: the archive is damaged ({error}); copy or save it again") from error
    file.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(file)
    except RuntimeError:
        return  # torch's parser cannot read it (the layout before 2.8), so it will not load anything by it
    except Exception as error:  # a number or a name in it that is none
        raise ModelFileError(f"{name}: the archive is damaged ({error}); copy or save it again") from error
    try:
        found = [(part, reader.get_record(part)) for part in reader.get_all_records() if part.endswith(endings)]
    except Exception as error:
        raise ModelFileError(f"{name}: the archive is damaged ({first_line(error)}); copy or save it again") from error
    yield from found


def text_records(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """The parts of an archive that hold code, JSON or pickles.

    Raises:
        UntrustedModelError: if two parts have one name.
        ModelFileError: if the archive cannot be read.
    """
    path = snapshot.path
    names = [part.filename for part in read_parts(snapshot.open(), str(path))]
    if len(set(names)) != len(names):
        raise untrusted(path, "holds two parts of the same name")
    yield from records(snapshot.open(), str(path), (".json", ".py", ".pkl"))

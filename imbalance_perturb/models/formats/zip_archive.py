"""Open a zip archive once, check what its parts declare to hold, and only then unpack them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, BinaryIO

from imbalance_perturb.errors import ModelFileError, first_line
from imbalance_perturb.method.private_torch import find

#: ``torch.save`` writes no part compressed; TorchScript compresses its code, some megabytes at most.
MOST_UNPACKED = 64 * 2**20
_MOST_TEXT = 16 * 2**20
#: How much more than its size a larger archive may unpack to, as some people zip their files again.
_RATIO = 8
#: Code, pickles and JSON: what the checks read, some of them more than once.
_TEXT = (".py", "pkl", ".json")
#: One part for each tensor and each class: large language models have some thousands.
_MOST_PARTS = 100_000
_LOCAL_HEADER = struct.Struct("<4s5HLLL2H")
_ENCRYPTED = 0x1
#: What zipfile raises for a part that is damaged.
_UNPACK_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error)


class Archive:
    """A zip archive in a model file: its directory is parsed, its container checked and its text unpacked once.

    Attributes:
        name: of the file, for messages.
        size: of the archive itself, in bytes.
        parts: as the directory describes them.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Parse the directory; nothing is unpacked.

        Args:
            file: the archive, to stay open as long as this is in use.
            name: of the file, for messages.

        Raises:
            ModelFileError: if it is no archive, or damaged.
        """
        self.name = name
        self.size = file.seek(0, 2)
        self._file = file
        self._checked = False
        self._texts: dict[Hashable, bytes] = {}  # by place as zipfile reads them, by name as torch does
        try:
            self._zip = zipfile.ZipFile(file)
            self.parts = self._zip.infolist()
        except Exception as error:  # zipfile raises whatever a damaged directory leads to
            raise ModelFileError(
                f"{name}: this zip archive is damaged or cut off; copy or download it again"
            ) from error

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Unpacked bytes of each part, by its name below the archive's own folder."""
        return {part.filename.partition("/")[2]: part.file_size for part in self.parts}

    @cached_property
    def has_twins(self) -> bool:
        """Whether two parts have one name to torch, which takes ``Net.py`` for ``net.py``."""
        return len({part.filename.lower() for part in self.parts}) != len(self.parts)

    def check(self) -> None:
        """Refuse an archive that unpacks to far more than its size, or that two readers could read differently.

        Reading a part does this first; done once, it is not done again.

        Raises:
            ModelFileError: naming what is wrong.
        """
        if self._checked:
            return
        self._check_layout()
        packed = [part for part in self.parts if part.compress_type != zipfile.ZIP_STORED]
        _check_unpacked(packed, max(MOST_UNPACKED, _RATIO * self.size), self.name)
        text = (part for part in packed if part.filename.endswith(_TEXT))
        _check_unpacked(text, max(_MOST_TEXT, _RATIO * self.size // 2), self.name)
        self._checked = True

    def _check_layout(self) -> None:
        file, name, parts = self._file, self.name, self.parts
        if len(parts) > _MOST_PARTS:
            raise ModelFileError(f"{name}: this archive has {len(parts):,} parts, more than a model has; save it again")
        reasons = (_ending_reason(file, self.size), *(_part_reason(file, part) for part in parts))
        if reason := next(filter(None, reasons), None) or _overlap_reason(file, parts, self.size):
            raise ModelFileError(f"{name}: the archive is damaged or made to mislead ({reason}); save the model again")

    def without(self, ending: str) -> bytes:
        """The archive with the parts left out whose names end so, in upper or lower case; none is unpacked.

        Raises:
            ModelFileError: if it is damaged or two readers could read it differently.
        """
        self._check_layout()
        self._file.seek(0)
        rest = io.BytesIO(self._file.read())
        # Only the directory is written anew: a part that it does not name is not there to any reader.
        try:
            with zipfile.ZipFile(rest, "a") as archive:
                archive.filelist[:] = [part for part in archive.filelist if not part.filename.lower().endswith(ending)]
                archive.comment = b""  # said to have none: the directory counts as changed
        except (*_UNPACK_ERRORS, struct.error, ValueError) as error:
            raise self._damaged(error) from error
        return rest.getvalue()

    def check_storages(self, storages: Mapping[str, int], folder: str = "data") -> None:
        """Refuse tensors that the archive lacks or holds less of than is declared.

        Args:
            storages: bytes of each tensor's storage, as a pickle declares them.
            folder: of the parts that hold them.

        Raises:
            ModelFileError: naming the tensor.
        """
        for key, length in storages.items():
            there = self.sizes.get(f"{folder}/{key}")
            if there is None:
                raise ModelFileError(
                    f"{self.name}: the archive lacks the content of tensor {key[:40]!r}; save the model again"
                )
            if there < length:
                raise ModelFileError(
                    f"{self.name}: the content of tensor {key[:40]!r} is damaged: {length:,} bytes are declared,"
                    f" {there:,} are there; copy or save it again"
                )

    def read(self, part: zipfile.ZipInfo) -> bytes:
        """Unpack one of the parts.

        Raises:
            ModelFileError: if it or the container is damaged.
        """
        self.check()
        try:
            return self._kept(part.header_offset, part.filename, partial(self._zip.read, part))
        except _UNPACK_ERRORS as error:
            raise self._damaged(error) from error

    def records(self, wanted: Callable[[str], Any]) -> Iterator[tuple[str, bytes]]:
        """Read the parts with such names, as each of the two parsers sees them that torch reads archives with.

        Those of text are kept, any other is in memory as long as the caller holds it.

        Args:
            wanted: whether a part of this name is; one parser's names lack the archive's own folder.

        Raises:
            ModelFileError: if the archive cannot be read.
        """
        # A file made to look different to the two must pass as each of them sees it.
        for part in self.parts:
            if wanted(part.filename):
                yield part.filename, self.read(part)
        reader = self._reader
        if reader is None:
            return
        try:
            names = [name for name in reader.get_all_records() if wanted(name)]
        except Exception as error:
            raise self._damaged(first_line(error)) from error
        for name in names:
            try:
                content = self._kept(name, name, partial(reader.get_record, name))
            except Exception as error:
                raise self._damaged(first_line(error)) from error
            yield name, content

    @cached_property
    def _reader(self) -> Any:
        """Torch's own, or ``None``."""
        self._file.seek(0)
        try:
            return find("torch._C.PyTorchFileReader")(self._file)
        except RuntimeError:
            return None  # torch's parser cannot read it (the layout before 2.8), so it will not load anything by it
        except Exception as error:  # a number or a name in it that is none
            raise self._damaged(error) from error

    def _kept(self, key: Hashable, name: str, unpack: Callable[[], bytes]) -> bytes:
        if not name.endswith(_TEXT):
            return unpack()
        if key not in self._texts:
            self._texts[key] = unpack()
        return self._texts[key]

    def _damaged(self, error: object) -> ModelFileError:
        return ModelFileError(f"{self.name}: the archive is damaged ({error}); copy or save it again")


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

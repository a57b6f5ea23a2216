"""Hold what a model file declares against what it has, before torch makes anything of it.

None of this is about trust: a file refused here would exhaust memory or crash its reader, whoever wrote it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch

from imbalance_perturb.errors import ModelFileError, first_line
from imbalance_perturb.models.formats.pickles import OddPickleError, UnknownOperationError, describe
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.torchscript import MOST_DEPTH, code_depth, has_long_chain, text_depth
from imbalance_perturb.models.formats.zip_archive import check_container

#: Parts of an exported program that torch reads as files of ``torch.save``, and those it may by their description.
_SAVED = re.compile(r"(.*/)?(data/(weights|constants|sample_inputs)/[^/]*|serialized_\w+)\.pt")
_PAYLOAD_PART = re.compile(r"(.*/)?data/(weights|constants)/(weight|tensor)_\d+")
_SOME_BYTES, _MOST_SHARED = 64 * 2**20, 8


def check_checkpoint(file: BinaryIO, name: str) -> None:
    """Refuse what ``torch.save`` cannot have written: too large, too deep, tensors beyond their storage.

    Args:
        file: in either layout, at its beginning.
        name: of the file, for messages.

    Raises:
        ModelFileError: naming what is wrong.
    """
    if file.read(2) != b"PK":
        file.seek(0)
        _check_legacy(file, name)
        return
    parts = check_container(file, name)
    names = [part.filename.lower() for part in parts]
    if len(set(names)) != len(names):
        raise ModelFileError(f"{name}: this archive holds two parts of the same name; save the model again")
    sizes = {part.filename.partition("/")[2]: part.file_size for part in parts}
    for part, content in records(file, name, ("data.pkl",)):
        try:
            storages = describe(io.BytesIO(content), strict=False).storages
        except UnknownOperationError:
            continue  # torch's reader stops at the same place, and says why
        except OddPickleError as error:
            raise _odd(name, part, error) from error
        _check_storages(storages, sizes, name)


def check_script(snapshot: Snapshot) -> None:
    """Refuse TorchScript whose pickles or code its reader could not hold, or that reads beyond its tensors.

    Raises:
        ModelFileError: naming what is wrong.
    """
    path, file = snapshot.path, snapshot.open()
    sizes = {part.filename.partition("/")[2]: part.file_size for part in check_container(file, str(path))}
    if "model.json" in sizes:
        raise ModelFileError(f"{path}: this TorchScript file has the layout of before torch 1.2; script it again")
    code: dict[str, str] = {}
    for part, content in records(file, str(path), (".py", "pkl")):
        if part.endswith("traced_inputs.pkl"):
            continue  # of use to a debugger, not read here
        try:
            if part.endswith("pkl"):
                _check_script_pickle(part, content, sizes, str(path))
                continue
        except (OddPickleError, UnknownOperationError) as error:
            raise _odd(str(path), part, error) from error
        text = code[re.sub(r"^.*?/?code/|\.py$", "", part).replace("/", ".")] = content.decode("utf-8", "replace")
        if code_depth(text) > MOST_DEPTH:
            raise ModelFileError(f"{path}: the code in {part[:80]!r} is nested too deeply; script the model again")
    if has_long_chain(code):
        raise ModelFileError(f"{path}: its classes are made of one another without end; script the model again")


def check_program(snapshot: Snapshot) -> None:
    """Refuse an exported program that declares tensors far larger than the file, in itself or in its pickles.

    Raises:
        ModelFileError: naming what is wrong.
    """
    path, file = snapshot.path, snapshot.open()
    parts = check_container(file, str(path))
    most = _SOME_BYTES + _MOST_SHARED * sum(part.file_size for part in parts)
    for part, content in records(file, str(path), ("_config.json",)):
        if (shown := _declared(content)) > most:
            raise ModelFileError(
                f"{path}: {part[:80]!r} declares tensors of {shown:,} bytes, far more than the file has;"
                " export the model again"
            )
    for part, content in records(file, str(path), ("",)):
        pickled = _PAYLOAD_PART.fullmatch(part) and content[:2] in (b"PK", b"\x80\x02")
        if content and (pickled or _SAVED.fullmatch(part)):
            check_checkpoint(io.BytesIO(content), f"{path} ({part[:80]!r})")


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


def _check_legacy(file: BinaryIO, name: str) -> None:
    """A magic number, a version, the writer's system, the object, and then each storage's content."""
    size = file.seek(0, 2)
    file.seek(0)
    for _ in range(4):
        try:
            declared = sum(describe(file, strict=False).storages.values())
        except UnknownOperationError:
            return  # torch's reader stops at the same place, and says why
        except OddPickleError as error:
            raise _odd(name, "", error) from error
        if declared > size:
            raise ModelFileError(
                f"{name}: this file is cut off or damaged: its tensors take {declared:,} bytes, the file has {size:,};"
                " copy or download it again"
            )


def _check_script_pickle(part: str, content: bytes, sizes: Mapping[str, int], name: str) -> None:
    found = describe(io.BytesIO(content), strict=True)
    if any(text_depth(text) > 50 for text in found.texts):
        raise OddPickleError("it names a type that is nested too deeply")
    if found.beyond is not None and found.beyond >= 0:
        raise OddPickleError("it refers to a text that it does not have")
    # The tensors of data.pkl are in data/, those of constants.pkl in constants/.
    _check_storages(found.storages, sizes, name, part.rpartition("/")[2].removesuffix(".pkl"))


def _check_storages(storages: Mapping[str, int], sizes: Mapping[str, int], name: str, folder: str = "data") -> None:
    for key, length in storages.items():
        there = sizes.get(f"{folder}/{key}")
        if there is None:
            raise ModelFileError(f"{name}: the archive lacks the content of tensor {key[:40]!r}; save the model again")
        if there < length:
            raise ModelFileError(
                f"{name}: the content of tensor {key[:40]!r} is damaged: {length:,} bytes are declared, {there:,} are"
                " there; copy or save it again"
            )


def _declared(content: bytes) -> int:
    """Bytes that the tensors in a description take at most, if none shared its content."""
    try:
        entries = json.loads(content)["config"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0  # the check for code says what is wrong with it
    return sum(16 * _elements(entry) for entry in entries)


def _elements(entry: Any) -> int:
    product = 1
    try:
        for size in entry["tensor_meta"]["sizes"]:
            product *= abs(int(size["as_int"]))
    except (TypeError, KeyError, ValueError):
        return 0
    return product


def _odd(name: str, part: str, error: ValueError) -> ModelFileError:
    where = f"the pickle {part[:80]!r} in it" if part else "its pickle"
    return ModelFileError(f"{name}: {where} is damaged or made to do harm ({error}); save the model again")

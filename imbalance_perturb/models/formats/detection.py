"""Tell a model file's format by its content, and read it without running code that it may hold."""

from __future__ import annotations

import logging
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from imbalance_perturb.errors import ModelFileError, UntrustedModelError, first_line
from imbalance_perturb.models.contents import check_checkpoint, check_program, check_script
from imbalance_perturb.models.formats.exported_program import check_export, check_torchscript, tensors_only
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.zip_archive import read_parts

TRUST_REMEDY = "if you trust where it comes from, pass --trust-model-file (trust_model_file=True)"
SAVE_REMEDY = "save it with torch.save(model.state_dict(), 'model.pth')"

#: What other programs' files begin with, and what they are.
_FOREIGN = (
    (b"\x89HDF", 0, "an HDF5 file (Keras?)"),
    (b"TFL3", 4, "a TensorFlow Lite file"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"\x1f\x8b", 0, "a gzip-compressed file; unpack it first"),
    (b"\x89PNG", 0, "a PNG image"),
    (b"\xff\xd8\xff", 0, "a JPEG image"),
)
_MAX_HEADER = 100_000_000  # the limit of the safetensors format itself
#: torch's loaders raise whatever a damaged file leads them to: struct.error, OverflowError, SyntaxError, ...
_LOAD_ERRORS = (Exception,)


def read_snapshot(path: Path) -> Snapshot:
    """The bytes of a model file, which everything after this looks at in place of the file.

    Raises:
        ModelFileError: if it cannot be read or is of no format that :func:`sniff` knows.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path}: this is a folder; give the model file in it")
        if not path.stat().st_size:
            raise ModelFileError(f"{path}: the model file is empty; copy or download it again")
        with path.open("rb") as file:
            sniff(file, path)  # first: an archive of images, given by mistake, may be larger than memory
            file.seek(0)
            return Snapshot(path, file.read())
    except FileNotFoundError:
        raise ModelFileError(f"{path}: there is no such model file; check the path") from None
    except OSError as error:
        raise ModelFileError(f"{path}: the model file cannot be read ({error.strerror or error})") from error
    except MemoryError:
        raise ModelFileError(f"{path}: the model file is larger than the memory that is free") from None


def sniff(file: BinaryIO, path: Path) -> str:
    """The format of a model file: ``checkpoint``, ``safetensors``, ``torchscript`` or ``export``.

    Args:
        file: at its beginning.
        path: of the file, for messages.

    Raises:
        ModelFileError: for anything else, saying what it is.
    """
    head = file.read(512)
    size = file.seek(0, 2)
    if head.startswith(b"PK"):
        return _sniff_zip(file, path)
    if len(head) >= 9 and head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length <= _MAX_HEADER:
            if 8 + length > size:
                raise ModelFileError(f"{path}: this safetensors file is cut off; copy or download it again")
            return "safetensors"
    if head.startswith(b"\x80") and len(head) > 1 and head[1] <= pickle.HIGHEST_PROTOCOL:
        return "checkpoint"
    for magic, offset, what in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise _not_a_model(path, what)
    if head.startswith(b"\x08") and (path.suffix == ".onnx" or b"pytorch" in head or b"onnx" in head):
        raise _not_a_model(path, "an ONNX file, whose runtimes give no gradient")
    raise _not_a_model(path, "no PyTorch model file")


def is_trusted(snapshot: Snapshot, trust: bool | str) -> bool:
    """Whether code of a model file may run; a SHA-256 trusts the file of that hash alone.

    Raises:
        UntrustedModelError: if it is another file.
    """
    if isinstance(trust, str) and trust.lower() != snapshot.sha256:
        raise UntrustedModelError(
            f"{snapshot.path}: this is not the file that was trusted: its SHA-256 is {snapshot.sha256}, that of the"
            f" trusted one {trust}; put that back, or, if you trust this one too, run imbperturb init again"
        )
    return bool(trust)


def read_checkpoint(snapshot: Snapshot, *, trust: bool) -> tuple[Any, str | None]:
    """What ``torch.save`` wrote, and a note where code had to be trusted to read it.

    Raises:
        UntrustedModelError: if it needs code and ``trust`` is not given.
        ModelFileError: if it is damaged or cannot be read.
    """
    path = snapshot.path
    check_checkpoint(snapshot.open(), str(path))
    try:
        with tensors_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files not written by torch
            return torch.load(snapshot.open(), map_location="cpu", weights_only=True), None
    except pickle.UnpicklingError as error:
        needed = _needed_globals(snapshot, error)
        if not needed:
            raise ModelFileError(
                f"{path}: this pickle was not written by torch.save, or it is damaged; {SAVE_REMEDY}"
            ) from error
        if not trust:
            raise UntrustedModelError(
                f"{path}: this pickle needs code to load ({_some(needed)}), which could do anything;"
                f" {SAVE_REMEDY}, or, {TRUST_REMEDY}"
            ) from error
    except _LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: this file is damaged or cut off ({first_line(error)}); copy or download it again"
        ) from error
    try:
        with importable_from_here(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes whose source has changed since they were saved
            content = torch.load(snapshot.open(), map_location="cpu", weights_only=False)
    except _LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: the code that this pickle needs cannot be found or fails ({first_line(error)});"
            " run from the folder that holds the model's own modules, or install the package they came from"
        ) from error
    return content, f"loaded with code of its own, as trusted: {_some(needed)}"


def read_safetensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        ModelFileError: if it is damaged.
    """
    from safetensors.torch import load

    try:
        return load(snapshot.content)
    except _LOAD_ERRORS as error:
        raise ModelFileError(
            f"{snapshot.path}: this safetensors file is damaged or cut off ({first_line(error)});"
            " copy or download it again"
        ) from error


def read_torchscript(snapshot: Snapshot, *, trust: bool) -> torch.jit.ScriptModule:
    """The TorchScript module, on the CPU.

    Raises:
        UntrustedModelError: if it uses more than tensor operators and ``trust`` is not given.
        ModelFileError: if it cannot be read.
    """
    path = snapshot.path
    check_script(snapshot)
    if not trust:
        check_torchscript(snapshot)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated, but people's files are in it
            module: torch.jit.ScriptModule = torch.jit.load(snapshot.open(), map_location="cpu")  # type: ignore[no-untyped-call]
            return module
    except _LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: this TorchScript file cannot be read by torch {torch.__version__} ({first_line(error)});"
            " trace or script the model again, or give its state_dict"
        ) from error


def read_export(snapshot: Snapshot, *, trust: bool) -> torch.export.ExportedProgram:
    """The exported program of a ``torch.export`` archive.

    Raises:
        UntrustedModelError: if it holds more than tensors and a graph, and ``trust`` is not given.
        ModelFileError: if it cannot be read.
    """
    path = snapshot.path
    check_program(snapshot)
    try:
        if trust:
            with importable_from_here():
                return _load_export(snapshot)
        check_export(snapshot)
        with tensors_only():
            return _load_export(snapshot)
    except pickle.UnpicklingError as error:
        raise UntrustedModelError(
            f"{path}: a part of this torch.export file is a pickle that needs code to load"
            f" ({_some(_named_globals(error))}); {TRUST_REMEDY}"
        ) from error
    except ModelFileError:
        raise
    except _LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: this torch.export file cannot be read by torch {torch.__version__} ({first_line(error)});"
            " export it again with this version, or give the model's state_dict"
        ) from error


@contextmanager
def importable_from_here() -> Iterator[None]:
    """Inside: modules in the current folder can be imported, where no installed package has their name.

    For code that the command line of this run, or the argument of this call, has granted; nothing else comes here.
    """
    here = str(Path.cwd())
    sys.path.append(here)  # last: a torch.py or numpy.py in it is not taken for the package
    try:
        yield
    finally:
        # From the end: the caller may have had the folder before, and what ran here may have taken ours out.
        for index in range(len(sys.path) - 1, -1, -1):
            if sys.path[index] == here:
                del sys.path[index]
                break


def _load_export(snapshot: Snapshot) -> torch.export.ExportedProgram:
    # torch logs the whole traceback of what it then also raises, or of a fallback that is fine.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return torch.export.load(snapshot.open())
    finally:
        logging.disable(before)


def _sniff_zip(file: BinaryIO, path: Path) -> str:
    names = [part.filename for part in read_parts(file, str(path))]
    parts = {name.split("/", 1)[-1] for name in names}
    if parts & {"archive_format", "models/model.json", "serialized_exported_program.json"}:
        return "export"
    if "data.pkl" in parts:
        return "torchscript" if "constants.pkl" in parts else "checkpoint"
    if any(name.endswith(".weights.h5") for name in names):
        raise _not_a_model(path, "a Keras file")
    if any(name.endswith(".npy") for name in names):
        raise _not_a_model(path, "a NumPy archive")
    raise _not_a_model(path, "a zip archive without a PyTorch model in it")


def _not_a_model(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: this is {what}; expected a PyTorch state_dict (.pth, .pt, .safetensors), TorchScript or"
        " torch.export (.pt2) file"
    )


def _needed_globals(snapshot: Snapshot, error: pickle.UnpicklingError) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(snapshot.open())) or _named_globals(error)
    except _LOAD_ERRORS:
        return _named_globals(error)  # the layout before torch 1.6, or a pickle too odd to be taken apart


def _named_globals(error: BaseException) -> list[str]:
    # torch wraps its unpickler's message and shortens it; the original is in the chain.
    text = f"{error} {error.__cause__} {error.__context__}"
    return sorted(set(re.findall(r"GLOBAL ([A-Za-z_][\w.]*\.\w+)", text)))


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "not named"

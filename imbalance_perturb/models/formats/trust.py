"""What may run when a model file is read, and from where it may be imported."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

from imbalance_perturb.errors import UntrustedModelError

TRUST_REMEDY = "if you trust where it comes from, pass --trust-model-file (trust_model_file=True)"

#: torch's loaders raise whatever a damaged file leads them to: struct.error, OverflowError, SyntaxError, ...
LOAD_ERRORS = (Exception,)

#: Operators of torch itself that read or write files.
FILE_OPERATORS = frozenset({"save", "from_file", "load_tensor"})


#: Paths that a training script kept beside its tensors. Read as what only names a file, they are harmless, and those of
#: another system can be made here, too.
PLAIN_PATHS: Mapping[str, type[PurePath]] = {
    f"{module}.{name}": PureWindowsPath if "Windows" in name else PurePosixPath
    for module in ("pathlib", "pathlib._local")  # so from Python 3.13 on
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
}

#: How the files of some libraries become ones that need no code of theirs.
_LIBRARIES = {
    "ultralytics": "export an Ultralytics model with model.export(format='torchscript')",
    "fastai": "of a fastai learner save torch.save(learn.model.state_dict(), 'model.pth')",
}


def library_remedy(names: Iterable[str], otherwise: str) -> str:
    """Say how a file that needs such code becomes one that needs none; ``otherwise`` where no library is known."""
    packages = {name.partition(".")[0] for name in names}
    return next((remedy for package, remedy in _LIBRARIES.items() if package in packages), otherwise)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        plain = None if name == type(Path()).__name__ else PLAIN_PATHS.get(f"{module}.{name}")
        return plain or super().find_class(module, name)


def _load(file: BinaryIO, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


#: In place of :mod:`pickle` for ``torch.load`` of trusted files: with it a path of Windows can be read elsewhere.
plain_path_pickle = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_load)


class Hashed(Protocol):
    """A model file, or several, read into memory."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was read, in hexadecimal."""


def is_trusted(snapshot: Hashed, trust: bool | str) -> bool:
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


def named_globals(error: BaseException) -> list[str]:
    """List the names of the code that torch's unpickler refused, from its error."""
    # torch wraps its unpickler's message and shortens it; the original is in the chain.
    text = f"{error} {error.__cause__} {error.__context__}"
    return sorted(set(re.findall(r"GLOBAL ([A-Za-z_][\w.]*\.\w+)", text)))


def some_names(names: list[str], most: int = 4) -> str:
    """Join names of code for a message, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "not named"


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside: every ``torch.load``, also those of torch's own loaders, refuses pickles that need code."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.get(name) for name in names}
    os.environ[names[0]] = "1"
    os.environ.pop(names[1], None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def untrusted(path: Path, reason: str) -> UntrustedModelError:
    """The error of a file that could run code of its own, for this ``reason``."""
    return UntrustedModelError(
        f"{path}: this file {reason}, so loading it could run code that it brings along;"
        " if you trust where it comes from, pass --trust-model-file (trust_model_file=True)"
    )

"""torchvision, imported without torch's compiler, which takes longer to import than the rest of both together."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch

#: The compiler, and the module of it from which torchvision takes a function when it is imported.
_COMPILER, _UTILS = "torch._dynamo", "torch._dynamo.utils"

#: That function, of no use before a network is compiled.
_LATER = "is_compile_supported"


def import_torchvision() -> Any:
    """Import torchvision with its networks and transforms; the compiler is imported if it is ever asked for.

    torchvision asks for it twice: for a function that its ``roi_align`` calls, and to keep the compiler out of one of
    its own functions.
    """
    apart = "torchvision" in sys.modules or _COMPILER in sys.modules
    with nullcontext() if apart else _without_compiler():
        importlib.import_module("torchvision.transforms.v2")
    return sys.modules["torchvision"]


class _Later(ModuleType):
    """Stands in for a module of the compiler while torchvision is imported; whatever else is asked of it is real."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks what kind of module it is
            raise AttributeError(name)
        if self.__name__ == _UTILS and name == _LATER:
            return _call_later
        return getattr(_import_compiler(self.__name__), name)


def _call_later(*arguments: Any) -> Any:
    return getattr(_import_compiler(_UTILS), _LATER)(*arguments)


def _import_compiler(name: str) -> ModuleType:
    _remove_stand_ins()
    return importlib.import_module(name)


def _remove_stand_ins() -> None:
    for name in (_UTILS, _COMPILER):
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]
    if isinstance(vars(torch).get("_dynamo"), _Later):
        del torch._dynamo


@contextmanager
def _without_compiler() -> Iterator[None]:
    disable: Any = torch.compiler.disable

    def leave(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        return leave if function is None else function

    stand_ins = {name: _Later(name) for name in (_COMPILER, _UTILS)}
    stand_ins[_COMPILER].__path__ = []
    sys.modules.update(stand_ins)
    setattr(torch.compiler, "disable", leave)  # noqa: B010 - mypy knows it as a function
    try:
        yield
    finally:
        setattr(torch.compiler, "disable", disable)  # noqa: B010
        _remove_stand_ins()

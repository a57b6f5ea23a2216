"""Build a network by the user's own function."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.choosing import Asked
from imbalance_perturb.models.architectures.filling import Built, last_rows, load_strictly, named_error
from imbalance_perturb.models.architectures.network_fitting import fill_network, fit_network
from imbalance_perturb.models.architectures.readings import Reading, clean, trunk
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.formats.trust import importable_from_here

#: So many other numbers of classes are tried where the first does not fit the tensors.
_MOST_TRIES = 3


def build_by_factory(checkpoint: Checkpoint, path: Path, factory: str, asked: Asked | None = None) -> Built:
    """Call ``package.module:function`` with the number of classes and load the checkpoint's tensors.

    The number is the caller's, else the rows of the layer that is taken for the last. Where the tensors do not fit
    but show another one, the function is called again with that.

    Raises:
        ArchitectureError: if there is no such function, it fails, or the tensors do not fit its network.
    """
    asked = asked or Asked()
    function = _import(factory)
    takes, misfit = _takes_classes(function), f"the tensors do not fit the network of --factory {factory}"
    plain = trunk(checkpoint, clean(checkpoint.tensors)[0])
    if not takes:
        num_classes, whence = asked.num_classes or 0, ", which takes no num_classes"
    elif asked.num_classes is None:
        num_classes, head = last_rows(replace(checkpoint, tensors=plain.tensors), path)
        whence = f" with num_classes={num_classes}, the rows of {head}, taken for the last layer"
    else:
        num_classes, whence = asked.num_classes, f" with num_classes={asked.num_classes}, as many as COUNTS has"
    network = _call(function, factory, num_classes if takes else None)

    def built(classes: int) -> Built:
        return Built(network, "factory", factory, classes, None, None, ())

    fits, nearest, computed = fit_network(network, checkpoint, built(num_classes))
    for other in _other_numbers(network, nearest, num_classes) if takes and not fits else ():
        again = _call(function, factory, other)
        fits, _, computed = fit_network(again, checkpoint, built(other)._replace(network=again))
        if fits:
            network, num_classes = again, other
            whence = f" with num_classes={other}, which the tensors fit"
            break
    if not fits:
        given = (nearest or plain).tensors
        load_strictly(network, given, path, misfit)
    told, rest = fill_network(network, fits, checkpoint, path, asked, misfit)
    notes = (*checkpoint.notes, *computed, *told, f"built by {factory}{whence}", *rest.notes)
    return Built(network.float().eval(), "factory", factory, num_classes, None, None, notes, rest.assumptions)


def _import(factory: str) -> Callable[..., Any]:
    module_name, _, function_name = factory.partition(":")
    if not module_name or not function_name:
        raise ArchitectureError(f"--factory {factory}: expected package.module:function")
    with importable_from_here():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ArchitectureError(
                f"--factory {factory}: module {error.name!r} is not found; it is looked for among the installed"
                " packages and then in the current folder"
            ) from error
        except Exception as error:
            raise ArchitectureError(
                f"--factory {factory}: importing {module_name} failed: {named_error(error)}"
            ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ArchitectureError(f"--factory {factory}: {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _takes_classes(function: Callable[..., Any]) -> bool:
    """Whether it is to be called with ``num_classes=``: its signature has that, or does not show that it has none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    if any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
        return True
    return any(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters)


def _call(function: Callable[..., Any], factory: str, num_classes: int | None) -> nn.Module:
    name = factory.partition(":")[2]
    with importable_from_here():
        try:
            network = function() if num_classes is None else function(num_classes=num_classes)
        except Exception as error:
            given = "" if num_classes is None else f"num_classes={num_classes}"
            raise ArchitectureError(f"--factory {factory}: {name}({given}) failed: {named_error(error)}") from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"--factory {factory}: it returned {type(network).__name__}; expected a torch.nn.Module"
        )
    return network


def _other_numbers(network: nn.Module, nearest: Reading | None, num_classes: int) -> list[int]:
    """What the file's tensors have where the network's have ``num_classes``, the most frequent first."""
    found: Counter[int] = Counter()
    for name, tensor in network.state_dict().items():
        theirs = nearest.tensors.get(name) if nearest is not None and isinstance(tensor, Tensor) else None
        if theirs is not None and theirs.ndim == tensor.ndim:
            pairs = zip(tensor.shape, theirs.shape, strict=True)
            found.update(other for own, other in pairs if own == num_classes and other != own)
    return [number for number, _ in found.most_common(_MOST_TRIES) if number > 0]

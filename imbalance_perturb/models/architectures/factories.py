"""Build a network by the user's own function."""

from __future__ import annotations

import importlib
from pathlib import Path

from torch import nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.filling import Built, last_rows, load_strictly, named_error
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.formats.trust import importable_from_here


def build_by_factory(checkpoint: Checkpoint, path: Path, factory: str, expected: int | None = None) -> Built:
    """Call ``package.module:function`` with the number of classes and load the checkpoint's tensors.

    Args:
        expected: C where the caller knows it; else it is read off the layer that is taken for the last.

    Raises:
        ArchitectureError: if there is no such function, it fails, or the tensors do not fit its network.
    """
    if expected is None:
        num_classes, head = last_rows(checkpoint, path)
        whence = f"the rows of {head}, taken for the last layer"
    else:
        num_classes, whence = expected, "as many as COUNTS has"
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
        try:
            network = function(num_classes=num_classes)
        except Exception as error:
            raise ArchitectureError(
                f"--factory {factory}: {function_name}(num_classes={num_classes}) failed: {named_error(error)}"
            ) from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"--factory {factory}: it returned {type(network).__name__}; expected a torch.nn.Module"
        )
    load_strictly(network, checkpoint.tensors, path, f"the tensors do not fit the network of --factory {factory}")
    notes = (
        *checkpoint.notes,
        f"built by {factory} with num_classes={num_classes}, {whence}",
    )
    return Built(network.float().eval(), "factory", factory, num_classes, None, None, notes)

"""Networks that come ready-made, with what their file tells of the inputs that they take."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelFileError, ModelOutputError, first_line
from imbalance_perturb.models.formats.exported_program import read_export
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.torchscript import read_torchscript


class Opaque(NamedTuple):
    """A network that came ready-made, and what its file tells of the inputs it takes."""

    network: nn.Module
    kind: str
    batch_range: tuple[int, int | None] = (1, None)
    shape: tuple[int | None, ...] = ()  # of one input; None where any will do
    notes: tuple[str, ...] = ()


def open_torchscript(snapshot: Snapshot, *, trust: bool) -> Opaque:
    """Read a TorchScript file, checked; errors as :func:`read_torchscript` has them."""
    module = read_torchscript(snapshot, trust=trust)
    return in_float32(Opaque(module, "torchscript", shape=(_first_channels(module), None, None)))


def open_export(snapshot: Snapshot, *, trust: bool) -> Opaque:
    """Read a ``torch.export`` file, checked; errors as :func:`read_export` has them.

    Raises:
        ModelOutputError: if it takes something else than one batch of images.
    """
    path, program = snapshot.path, read_export(snapshot, trust=trust)
    try:
        return _program(program, path)
    except ModelOutputError:
        raise
    except Exception as error:  # a graph that was read but does not hold together
        raise ModelFileError(
            f"{path}: the graph of this torch.export file is damaged ({first_line(error)}); export the model again"
        ) from error


def _program(program: torch.export.ExportedProgram, path: Path) -> Opaque:
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(name) for name in names if isinstance(name, str)]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim < 2:
        raise ModelOutputError(
            f"{path}: this exported program takes {len(names)} inputs; expected one tensor, a batch of images:"
            " export a module that wraps it so"
        )
    batch, *rest = inputs[0].shape
    # The guards in the file are source code that torch would execute; shapes are checked without them, too.
    program._guards_code = []
    try:
        module = program.module(check_guards=False)
    except TypeError:  # torch before 2.9
        module = program.module()
    shape = tuple(size if isinstance(size, int) else None for size in rest)
    return Opaque(module, "torch.export", _batch_range(program, batch), shape)


def _batch_range(program: torch.export.ExportedProgram, batch: int | torch.SymInt) -> tuple[int, int | None]:
    if isinstance(batch, int):
        return batch, batch
    expression = batch.node.expr
    if not expression.is_Symbol:  # such as 2*s0: always one of the sizes that it takes
        lowest = {symbol: limits.lower for symbol, limits in program.range_constraints.items()}
        size = int(expression.subs(lowest))
        return size, size
    limits = program.range_constraints.get(expression)
    if limits is None:
        return 1, None
    # 2^31 and more is how "no limit" is written, next to infinity.
    largest = int(limits.upper) if limits.upper.is_Integer and limits.upper < 2**31 else None
    return max(1, int(limits.lower)), largest


def _first_channels(module: nn.Module) -> int | None:
    # Only the first convolution of a network without groups tells; a depthwise one takes 1 channel of many.
    for name, parameter in module.named_parameters():
        if parameter.ndim == 4 and name.endswith("weight"):
            return parameter.shape[1] if parameter.shape[1] in (1, 3, 4) and parameter.shape[2] > 1 else None
    return None


def in_float32(found: Opaque) -> Opaque:
    """The same with float32 parameters, and a note where that was a conversion."""
    halves = {p.dtype for p in found.network.parameters() if p.dtype in (torch.float16, torch.bfloat16, torch.float64)}
    if not halves:
        return found
    note = f"parameters stored as {', '.join(sorted(map(str, halves)))} were converted to float32"
    return found._replace(network=found.network.float(), notes=(*found.notes, note))

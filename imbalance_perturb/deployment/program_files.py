"""The traced correction as the bytes of a ``torch.export`` program, and that program read again."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.errors import ModelFileError, first_line
from imbalance_perturb.models.corrected_file import CARD, CorrectedCard

#: Characters of a reason: what an exporter says may hold a whole graph.
_MOST_REASON = 300


def make_program(graph: fx.GraphModule, x: Tensor, *, any_size: bool) -> torch.export.ExportedProgram:
    """Export the traced graph for batches of any size, of images of any size where they may have one.

    Raises:
        ModelFileError: if it takes some sizes alone.
    """
    sizes: dict[int, object] = {0: torch.export.Dim("batch", min=1)}
    if any_size:
        sizes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        with quietly():
            program = torch.export.export(graph, (x,), dynamic_shapes=(sizes,))
    except Exception as error:  # whatever the exporter raises for a graph of a network's make
        raise ModelFileError(f"the network's graph cannot be exported for any batch size: {reason(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that it was made on
    return program


def program_bytes(program: torch.export.ExportedProgram, card: CorrectedCard) -> bytes:
    """The file of a program, with its card."""
    stream = io.BytesIO()
    with quietly():
        torch.export.save(program, stream, extra_files={f"{CARD}.json": json.dumps(card.to_dict())})
    return stream.getvalue()


def read_program(content: bytes) -> nn.Module:
    """Make the module of a file's bytes, as a user would."""
    with quietly():
        module: nn.Module = torch.export.load(io.BytesIO(content)).module()
    return module


def reason(error: BaseException) -> str:
    """Why torch's tracers and exporters gave up, on one line of bounded length."""
    return first_line(error)[:_MOST_REASON]


@contextmanager
def quietly() -> Iterator[None]:
    """Inside: no warnings and no log of torch's exporters, which speak of their own insides, and no notes on where.

    Those would be paths of the machine that it was made on, and taking them is most of an export's time.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    config: Any = torch.fx.config
    traces = getattr(config, "do_not_emit_stack_traces", None)  # not in every version
    config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if traces is not None:
            config.do_not_emit_stack_traces = traces

"""The exported program as the bytes of an ONNX model, and ONNX Runtime on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from imbalance_perturb.deployment.program_files import quietly, reason
from imbalance_perturb.errors import ModelFileError, OutputFileError
from imbalance_perturb.models.corrected_file import CARD, CorrectedCard

#: What the exporter and the proof need.
NEEDED = ("onnx", "onnxscript", "onnxruntime")

#: A protobuf file holds less than this.
_MOST_BYTES = 2**31 - 2**20


def check_packages() -> None:
    """Refuse to begin what would fail at its end.

    Raises:
        OutputFileError: naming what is not installed.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise OutputFileError(
            f"ONNX files need {', '.join(missing)}; pip install 'imbalance-perturb[export]', or write a .pt2"
        )


def onnx_bytes(program: torch.export.ExportedProgram, x: Tensor, card: CorrectedCard) -> tuple[bytes, bytes]:
    """Convert a program to ONNX: the file with its card, and for the proof one that also returns the gradients.

    Raises:
        ModelFileError: naming what ONNX has no operator for, or if the parameters do not fit into one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ModelFileError(
            f"the parameters take {size:,} bytes, and an ONNX file holds less than 2 GiB; write a .pt2"
        )
    try:
        with quietly():
            made = torch.onnx.export(
                program,
                (x,),
                dynamo=True,
                input_names=[card.input.name],
                output_names=list(card.outputs),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter raises for an operator that it does not know
        raise ModelFileError(f"the graph cannot be written as ONNX: {reason(error)}") from error
    assert made is not None, "an exporter that writes no file returns the model"
    made.model.metadata_props[CARD] = json.dumps(card.to_dict())
    for node in made.model.graph:
        node.metadata_props.clear()  # paths of the machine that it was made on
        node.doc_string = None
    proto = made.model_proto
    del made  # the parameters once less
    for value in (*proto.graph.input, *proto.graph.output):
        names = card.input.shape if value.name == card.input.name else ("batch", len(card.classes))
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if isinstance(name, str):
                dim.dim_param = name
    content = proto.SerializeToString()
    _add_gradients(proto)
    return content, proto.SerializeToString()


def _add_gradients(proto: Any) -> None:
    """Make a model return what each step takes the sign of, too."""
    import onnx

    gradients = [node.input[0] for node in proto.graph.node if node.op_type == "Sign"]
    for name in gradients:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def run_once(content: bytes, batches: Sequence[Tensor]) -> Callable[[Tensor], Sequence[Tensor]]:
    """Run an ONNX model on these batches, and make a function that knows what it returned for each of them.

    ONNX Runtime holds the parameters several times while a model is open: here it is closed again.
    """
    run = open_onnx(content)
    found = [run(batch) for batch in batches]
    return lambda images: next(known for batch, known in zip(batches, found, strict=True) if batch is images)


def open_onnx(content: bytes) -> Callable[[Tensor], Sequence[Tensor]]:
    """Make a function of a batch that runs an ONNX model on ONNX Runtime, on the CPU with torch's number of threads.

    Raises:
        ModelFileError: if ONNX Runtime cannot read it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base but this
        raise ModelFileError(f"ONNX Runtime cannot read the model: {reason(error)}") from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {name: images.numpy()})]

    return run

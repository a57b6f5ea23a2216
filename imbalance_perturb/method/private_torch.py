"""Torch's private names that this package calls, in one place: a torch to come may not have one of them.

What needs a name that is lost is left out, and its reason says which: a network is not rewritten, ``auto`` is fp32.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

#: Each name, and what is left out without it.
NAMES = {
    "torch.ops.mkldnn._convolution_pointwise": "convolutions packed for the CPU",
    "torch._C._nn.mkldnn_reorder_conv2d_weight": "convolutions packed for the CPU",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "bfloat16 inside convolutions",
    "torch.cpu._is_avx512_bf16_supported": "bf16 on CPUs with AVX-512",
    "torch.cpu._is_amx_tile_supported": "bf16 on CPUs with AMX",
    "torch.fx.experimental.optimization.fuse": "batch norm folded into convolutions",
    "torch._C.parse_schema": "networks of TorchScript files rewritten",
    "torch._C._jit_pass_dce": "networks of TorchScript files rewritten",
    "torch._ops.OpOverload": "networks of files rewritten, and export",
    "torch._C.PyTorchFileReader": "TorchScript as torch itself sees it, before it is loaded",
    "torch._weight_norm": "weight norm in checkpoints",
    "torch._ops.OperatorBase": "export",
    "torch._C.DispatchKey": "export",
    "torch._decomp.core_aten_decompositions": "export",
    "torch._subclasses.fake_tensor.FakeTensorMode": "export",
    "torch.fx.experimental.proxy_tensor.make_fx": "export",
    "torch.fx.experimental.symbolic_shapes.DimDynamic": "export",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv": "export",
    "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext": "export",
}


class LostName:
    """Stands for a name that this torch has not: whoever calls it is told so."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse.

        Raises:
            RuntimeError: naming what is lost, and the version.
        """
        raise RuntimeError(f"torch {torch.__version__} has no {self.name} ({NAMES[self.name]})")


def find(name: str) -> Any:
    """What a private name stands for, or a :class:`LostName`; the name is one of :data:`NAMES`."""
    assert name in NAMES, name
    first, *rest = name.split(".")
    found: Any = importlib.import_module(first)
    place = first
    try:
        for part in rest:
            place = f"{place}.{part}"
            found = getattr(found, part, None) or importlib.import_module(place)
    except (ImportError, AttributeError):
        return LostName(name)
    return found


def has(name: str) -> bool:
    """Whether this torch has a private name."""
    return not isinstance(find(name), LostName)

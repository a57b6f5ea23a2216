"""torchvision is imported without torch's compiler, and has it where it asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

QUICK = (
    "from imbalance_perturb.method.torchvision_import import import_torchvision as quick; quick(); import sys, torch"
)


@pytest.mark.parametrize(
    "then",
    [
        # Nothing of it is imported, and nothing that stands in for it is left.
        "import torchvision; torchvision.models.resnet18();"
        " assert not {m for m in sys.modules if m.startswith('torch._dynamo')}",
        "assert '_dynamo' not in vars(torch)",
        # What torchvision took from it works when it is called.
        "import torchvision.ops; x, box = torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])];"
        " assert torchvision.ops.roi_align(x, box, 2).eq(1).all();"
        " r = sys.modules['torchvision.ops.roi_align']; assert r.is_compile_supported('cpu') in (True, False);"
        " assert 'torch._dynamo.utils' in sys.modules",
        # The compiler works after it.
        "f = torch.compile(torch.nn.Linear(3, 3), backend='eager'); assert f(torch.ones(1, 3)).shape == (1, 3)",
        # torch.compiler.disable is torch's own again.
        "f = torch.compiler.disable(lambda x: x + 1); assert f(1) == 2; assert '_dynamo' in vars(torch)",
    ],
)
def test_in_a_fresh_process(then: str) -> None:
    """Each in a process of its own, since an import is for good."""
    found = subprocess.run([sys.executable, "-c", f"{QUICK}\n{then}"], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_what_it_does_not_stand_in_for_is_real() -> None:
    """A torchvision that asks for something else of the compiler gets it."""
    code = (
        "import torch, imbalance_perturb.method.torchvision_import as quick\n"
        "with quick._without_compiler():\n"
        "    from torch._dynamo.utils import counters\n"
        "    from torch._dynamo import config\n"
        "import torch._dynamo.utils\n"
        "assert counters is torch._dynamo.utils.counters and config is torch._dynamo.config\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr

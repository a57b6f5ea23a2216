"""Torch's private names stand in one module; a torch that has lost one is told from its name alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import imbalance_perturb
from imbalance_perturb.inference.acceleration import optimisation
from imbalance_perturb.inference.acceleration.optimisation import optimise
from imbalance_perturb.method import private_torch
from imbalance_perturb.method.private_torch import NAMES, LostName, find, has

PACKAGE = Path(str(imbalance_perturb.__file__)).parent

#: It stands in for torch's compiler while torchvision is imported, which is its whole subject.
APART = {"method/private_torch.py", "method/torchvision_import.py"}


@pytest.mark.parametrize("name", NAMES)
def test_this_torch_has_the_name(name: str) -> None:
    """Where this fails a version of torch has lost it: what NAMES says is left out, until another way is found."""
    assert has(name), f"torch {torch.__version__} has no {name}: left out now: {NAMES[name]}"
    found = find(name)
    assert getattr(found, "__name__", name).rpartition(".")[2] in (name.rpartition(".")[2], found.__class__.__name__)


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names of torch with an underscore, or of what it calls experimental, that a module uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id == "torch" and any(map(is_private, parts)):
                yield ".".join(["torch", *reversed(parts)])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if "experimental" in parts or any(map(is_private, parts)):
                yield ".".join(parts)


def test_no_other_module_has_one() -> None:
    """Whatever the package calls that torch may drop without a word is in the one list."""
    found = {
        path.relative_to(PACKAGE).as_posix(): sorted(set(private_names(ast.parse(path.read_text()))))
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names and path not in APART} == {}
    assert "torch._dynamo" in found["method/torchvision_import.py"]  # it would be seen


def test_a_lost_name_says_so_and_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch's fuse a network runs as the file has it, and the reason names what is lost."""
    monkeypatch.setitem(private_torch.NAMES, "torch.fx.experimental.optimization.gone", "nothing")
    lost = find("torch.fx.experimental.optimization.gone")
    assert isinstance(lost, LostName)
    assert not has("torch.fx.experimental.optimization.gone")
    with pytest.raises(
        RuntimeError, match=r"^torch .* has no torch\.fx\.experimental\.optimization\.gone \(nothing\)$"
    ):
        lost()
    monkeypatch.setattr(optimisation, "fuse", lost)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval().requires_grad_(False)
    _, done = optimise(network, torch.randn(2, 3, 8, 8))
    assert "not rewritten: torch" in done.path
    assert "has no torch.fx.experimental.optimization.gone" in done.path

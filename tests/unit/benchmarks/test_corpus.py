"""A slice of the corpus: what people build networks from loads in every format and answers as the network itself."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import SwinTransformer, VisionTransformer

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, as running it imports it."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("corpus")


class Pooled(nn.Module):
    """A convolution, something done to its output, and a head."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(3, 4, 3), between, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.conv(x)).mean((2, 3)))


class Interpolated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear").sin()


class Sampled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        theta = torch.eye(2, 3, device=x.device).unsqueeze(0).expand(x.shape[0], 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False).sin()


class Encoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "interpolate": lambda: Pooled(Interpolated()),
    "upsample": lambda: Pooled(nn.Sequential(nn.Upsample(scale_factor=2.0), nn.ReLU())),
    "grid_sample": lambda: Pooled(Sampled()),
    "encoder": lambda: Pooled(Encoded()),
    "resize": lambda: nn.Sequential(torchvision.transforms.Resize([16, 16], antialias=True), Pooled(nn.ReLU())),
    "vit": lambda: VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
    "swin": lambda: SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore")  # what torch says while it scripts and traces
def test_networks_load_in_each_format_and_answer_the_same(corpus: ModuleType, name: str) -> None:
    """Scripted, traced, frozen and exported with a batch of one, five images get the network's own logits."""
    torch.manual_seed(0)
    network = MAKERS[name]()
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    subject = corpus.Subject(network.eval(), 32, None)
    # Attention can only be traced without autograd, as torch's own operation that has no gradient.
    kinds = ("script", "freeze", "export", *(() if name in ("encoder", "vit") else ("trace",)))
    found = [corpus.examine(name, kind, subject) for kind in kinds]
    assert {entry["outcome"] for entry in found} == {"right"}, found


def test_the_command_goes_on_where_it_stood(corpus: ModuleType, tmp_path: Path) -> None:
    """One real architecture goes through all formats; what has a result is not examined again; the table counts it."""
    results = tmp_path / "corpus.jsonl"
    subject = "torchvision:squeezenet1_1"
    with warnings.catch_warnings():
        corpus.run_one(subject, ["pth", "export"], results)
    assert {entry["outcome"] for entry in corpus.entries(results)} == {"right"}
    with results.open("a") as file:
        file.write(json.dumps({"subject": subject, "format": "trace", "outcome": "refused", "why": "odd"}) + "\n")
    table = list(corpus.report(results))
    assert "| torchvision | pth | 1 | 1 | 1 | 1 |" in table
    assert "| torchvision | trace | 1 | 1 | 0 | 0 |" in table
    assert "- refused, trace: squeezenet1_1: odd" in table
    assert len(corpus.subjects()) == 120

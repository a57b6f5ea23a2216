"""Commands on a pretended CUDA device: the rows of the CPU, no tensor left behind, few waits, errors of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

from tests.conftest import ROOT

pytestmark = pytest.mark.pretended

#: By kind, by line of the package: how often.
Seen = Mapping[str, Mapping[str, int]]

#: What must not be seen, whatever the command.
NEVER = ("TENSORS ON DIFFERENT DEVICES", "with TF32 ALLOWED", "first convolution rounds", "different layouts")

#: Batches of 4 make groups of 16: two of them. Smaller images would have layers of one pixel, which any layout has.
IMAGES, GROUPS = 32, 2
OPTIONS = ("--resize", "64", "--crop", "64", "--batch-size", "4", "--workers", "1")


class Ended(NamedTuple):
    """What a command came to, and what was seen of the device."""

    code: int
    err: str
    seen: Seen

    def count(self, kind: str, where: str = "") -> int:
        """How often something of this kind was seen in lines of files whose name begins so."""
        lines = [(line, often) for name, seen in self.seen.items() if kind in name for line, often in seen.items()]
        return sum(often for line, often in lines if line.startswith(where))


@pytest.fixture(scope="module")
def tool(shared_dir: Path) -> Path:
    folder = shared_dir / "tools" / "pretend_cuda"
    if not (folder / "pretend_cuda.py").is_file():
        pytest.skip(f"needs {folder / 'pretend_cuda.py'}, which pretends to be a GPU")
    return folder


class Place(NamedTuple):
    """A folder with models, counts and images."""

    folder: Path
    tool: Path

    def run(self, *arguments: str, device: tuple[str, ...] = ()) -> Ended:
        """Run ``imbperturb`` on the pretended device, which has these options."""
        seen = self.folder / "seen.json"
        environment = {**os.environ, "PYTHONPATH": f"{self.tool}{os.pathsep}{ROOT}"}
        environment.pop("CUBLAS_WORKSPACE_CONFIG", None)
        driver = [sys.executable, str(Path(__file__).with_name("driver.py")), str(seen), *device, "--", *arguments]
        ended = subprocess.run(driver, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in ended.stderr, ended.stderr
        found = Ended(ended.returncode, ended.stderr, json.loads(seen.read_text()))
        for kind in NEVER:
            assert not found.count(kind), (kind, found.seen)
        return found

    def predict(self, model: str, *options: str, device: tuple[str, ...] = (), on: str = "cuda") -> Ended:
        """Predict the images there."""
        return self.run(
            "predict", model, "counts.json", "images", *OPTIONS, "--device", on, *options, "--no-resume", device=device
        )

    def labels(self, file: str = "predictions.csv") -> list[list[str]]:
        """Names and both labels of a predictions file."""
        return [line.split(",")[:2] + line.split(",")[3:4] for line in (self.folder / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tool: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("pretended")
    torch.manual_seed(0)
    torch.save(get_model("resnet18", weights=None, num_classes=4).state_dict(), folder / "model.pth")
    (folder / "counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 3}))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        pixels = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:02}.png")
    found = Place(folder, tool)
    assert found.predict("model.pth", "-o", "cpu.csv", on="cpu").code == 0
    return found


def test_the_rows_are_the_cpus_with_one_wait_for_a_group(place: Place) -> None:
    """In float32: labels in the same order, one copy there that waits for nothing, and one back, for each group."""
    ended = place.predict("model.pth")
    assert ended.code == 0, ended.err
    assert place.labels() == place.labels("cpu.csv")
    assert "on Pretended H100 (cuda), fp32" in ended.err
    assert ended.count("host waits", "inference/predictor.py") == GROUPS
    assert ended.count("host waits", "inference/input_stream.py") == 0
    assert ended.count("beside other work", "inference/input_stream.py") == GROUPS
    # Pixels are copied once before they go over: from where workers wrote them into pinned memory.
    assert ended.count("pinned", "inference/decoding/reused_memory.py") == GROUPS
    # Mean and std, p* and eps: once for the run.
    assert ended.count("copy to the GPU that the host waits for", "data/preprocessing.py") == 2
    assert ended.count("copy to the GPU that the host waits for", "method/classifier.py") == 2
    assert ended.count("synchronize") == 0


def test_in_low_precision_a_group_is_waited_for_twice(place: Place) -> None:
    """Once for its labels, once for those that are computed again; nothing else asks the device."""
    ended = place.predict("model.pth", "--precision", "fp16")
    assert ended.code == 0, ended.err
    assert "fp16" in ended.err
    assert GROUPS <= ended.count("host waits", "inference/predictor.py") <= 2 * GROUPS
    assert ended.count("host waits", "inference/input_stream.py") == 0


def test_the_second_of_two_gpus_has_both_halves(place: Place) -> None:
    """With the step at a hidden layer: no tensor is left on the CPU or the first GPU, and the rows are the CPU's."""
    options = ("--perturb-at", "layer3", "--eps", "0.05")
    assert place.predict("model.pth", *options, "-o", "hidden-cpu.csv", on="cpu").code == 0
    ended = place.predict("model.pth", *options, device=("--devices", "2"), on="cuda:1")
    assert ended.code == 0, ended.err
    assert "on Pretended H100 (cuda:1)" in ended.err
    assert place.labels() == place.labels("hidden-cpu.csv")


def test_memory_that_runs_out_halves_the_batches(place: Place) -> None:
    """The same rows, and the run file has the size that fitted."""
    ended = place.predict("model.pth", device=("--oom-above", "2", "--oom-kind", "cudnn"))
    assert ended.code == 0, ended.err
    assert place.labels() == place.labels("cpu.csv")
    assert json.loads((place.folder / "predictions.run.json").read_text())["execution"]["batch_ceiling"] == 2


def test_memory_that_suffices_for_nothing_is_one_line(place: Place) -> None:
    """Loading and trying need some as well."""
    ended = place.predict("model.pth", device=("--oom-above", "0"))
    assert ended.code == 1
    assert "error: the memory of cuda does not suffice for this model and two images: use --device cpu" in ended.err


def test_deterministic_runs_or_names_the_layer(place: Place) -> None:
    """cuBLAS is told before its first product; pooling that has no such algorithm is named before an image is read."""
    ended = place.predict("model.pth", "--deterministic")
    assert ended.code == 0, ended.err
    assert place.labels() == place.labels("cpu.csv")
    torch.manual_seed(0)
    torch.save(get_model("alexnet", weights=None, num_classes=4).state_dict(), place.folder / "alexnet.pth")
    ended = place.predict("alexnet.pth", "--arch", "alexnet", "--deterministic")
    assert ended.code == 2
    assert "has no such algorithm for adaptive_avg_pool2d_backward_cuda (layers: avgpool)" in ended.err


class _Tied(nn.Module):
    """Adds a tensor that its trace keeps where it was made."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x + torch.zeros(1, 3, 1, 1, device=torch.device("cpu")))
        return out


def test_a_file_tied_to_another_device_is_told_as_that(place: Place) -> None:
    """Not as images of a wrong size."""
    network = get_model("resnet18", weights=None, num_classes=4).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(_Tied(network), torch.randn(2, 3, 64, 64)), place.folder / "tied.pt")
    ended = place.predict("tied.pt")
    assert ended.code != 0
    assert "tied to a device other than cuda:0" in ended.err

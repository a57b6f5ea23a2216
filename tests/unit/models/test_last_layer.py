from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.classifier import LoadedClassifier, ModelInfo
from imbalance_perturb.models.last_layer import LastLayer, find_last_layer


class Net(nn.Module):
    """A head of any kind on pooled features; it also has a Linear of C rows that is no head."""

    def __init__(self, head: nn.Module, finish: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.decoy = nn.Linear(6, 5)
        self.back = nn.Linear(5, 6)
        self.head = head
        self.finish = finish

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.relu(self.stem(x)).mean(dim=(2, 3))
        return self.finish(self.head(pooled + self.back(torch.relu(self.decoy(pooled)))))


def loaded(network: nn.Module, outputs: str = "logits", classes: int = 5) -> LoadedClassifier:
    info = ModelInfo(
        path="m", sha256="", format="test", arch=None, num_classes=classes, in_channels=3, outputs=outputs,
        fixed_batch=None, fixed_size=None, parameters=0, notes=(),
    )  # fmt: skip
    return LoadedClassifier(network, info)


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def found(network: nn.Module, **more: object) -> LastLayer:
    layer = find_last_layer(loaded(network, **more), X)  # type: ignore[arg-type]
    assert isinstance(layer, LastLayer), layer
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_that_gives_the_logits_is_found(bias: bool) -> None:
    """The head's row norms and bias, not those of another Linear with as many rows."""
    network = Net(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5, bias=bias)))
    layer, head = found(network), network.head[3]
    assert layer.name == "head.3.weight"
    torch.testing.assert_close(layer.norms, head.weight.detach().double().norm(dim=1))
    torch.testing.assert_close(layer.bias, head.bias.detach().double() if bias else torch.zeros(5).double())


def test_a_convolution_as_the_last_layer_is_one() -> None:
    """A 1 x 1 convolution that is pooled into logits has rows like a Linear's; with a ReLU after it, it has not."""

    class Convolutional(nn.Module):
        def __init__(self, last: nn.Module) -> None:
            super().__init__()
            self.stem, self.head, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.head(self.stem(x))).mean(dim=(2, 3))

    network = Convolutional(nn.Identity())
    torch.testing.assert_close(found(network).norms, network.head.weight.detach().double().flatten(1).norm(dim=1))
    assert "no layer" in str(find_last_layer(loaded(Convolutional(nn.ReLU())), X))


def test_where_there_is_no_such_layer_the_reason_is_given() -> None:
    """Probabilities, normalised or scaled logits and rows of zeros: each is said, none is guessed."""
    assert "probabilities" in str(find_last_layer(loaded(Net(nn.Linear(6, 5)), outputs="probabilities"), X))
    bent = find_last_layer(loaded(Net(nn.Linear(6, 5), finish=lambda z: torch.log_softmax(z, 1))), X)
    assert bent == "no layer of the network gives the logits as a linear map, with one row of weights for each class"
    network = Net(nn.Linear(6, 5))
    with torch.no_grad():
        network.head.weight[2] = 0
    assert find_last_layer(loaded(network), X) == "the last layer head.weight has a row of zeros"
    assert "no parameters" in str(find_last_layer(loaded(nn.Flatten()), X))


def test_the_network_is_left_as_it_was() -> None:
    """After the search every parameter has its bits back."""
    network = Net(nn.Linear(6, 5))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", ["state_dict", "torchscript", "export"])
def test_it_is_found_in_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    """A state_dict, TorchScript and an exported program of one network give the same norms and bias."""
    network = get_model("shufflenet_v2_x0_5", weights=None, num_classes=5).eval()
    path, x = tmp_path / "model.pt", torch.randn(2, 3, 32, 32)
    if kind == "state_dict":
        torch.save(network.state_dict(), path)
    elif kind == "torchscript":
        torch.jit.trace(network, x).save(path)
    else:
        path = path.with_suffix(".pt2")
        torch.export.save(torch.export.export(network, (x,)), path)
    layer = find_last_layer(load_classifier(path, input_shape=(3, 32, 32)), x)
    assert isinstance(layer, LastLayer), layer
    torch.testing.assert_close(layer.norms, network.fc.weight.detach().double().norm(dim=1))
    torch.testing.assert_close(layer.bias, network.fc.bias.detach().double())

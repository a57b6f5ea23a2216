"""Networks cut in two: the same network, at the layer that was named, in every format; refused by name elsewhere."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.inference.hidden_stage.cutting import MOST_BEHIND, cut_network
from imbalance_perturb.models.outputs import LogitsOf


class Block(nn.Module):
    """A shortcut around two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x))) + x


class Network(nn.Module):
    """Two blocks, the number of images in a reshape and in arithmetic, and a second input that nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, stride=2), Block(), Block()
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        images = x.shape[0]
        twice = images * 2
        h = self.act(self.two(self.one(self.stem(x))))
        h = h if mask is None else h * mask
        return self.head(h.reshape(twice, 4, -1).mean(2).reshape(images, 8))


class WithOthers(nn.Module):
    """Returns more than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Network()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "out": self.inner(x)}


class Ragged(nn.Module):
    """Looks at its input's values, so that no graph can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Network()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if x.mean() > 0 else self.layers(-x)


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return frozen(Network())


@pytest.mark.parametrize("layer", ["stem", "one", "two", "act"])
def test_the_parts_are_the_whole_cut_at_the_layers_output(network: nn.Module, x: Tensor, layer: str) -> None:
    """The front computes what a hook sees at the layer, the back goes on from there, whatever the batch."""
    seen: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda *found: seen.append(found[2].clone()))
    expected = network(x)
    hook.remove()
    staged = cut_network(network, layer, x[:1])
    assert torch.equal(staged.front(x), seen[0])
    assert torch.equal(staged.back(seen[0]), expected)
    for images in (1, 2, 5):
        assert torch.equal(staged(x[:images]), network(x[:images]))
    assert sum(p.numel() for p in staged.parameters()) == sum(p.numel() for p in network.parameters())


def test_a_wrapped_networks_layers_have_the_names_of_its_own(x: Tensor) -> None:
    """Layers are called as in the state_dict of the file, also where logits are one output among several."""
    torch.manual_seed(0)
    network = frozen(LogitsOf(WithOthers(), ("out",)))
    staged = cut_network(network, "inner.one", x[:1])
    assert torch.equal(staged(x), network(x))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("one.first", "more than its output goes on behind that layer"),
        ("three", "this network has no such layer; it can be cut behind one, two"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(network: nn.Module, x: Tensor, layer: str, reason: str) -> None:
    """Inside a shortcut, and at a layer that is not there."""
    with pytest.raises(SettingsError, match=f"perturb_at is {layer}, but {reason}"):
        cut_network(network, layer, x[:1])


def test_a_network_without_a_graph_is_refused(x: Tensor) -> None:
    """With what the tracer says."""
    with pytest.raises(SettingsError, match=r"cannot be cut in two: .*control flow.*use perturb_at input"):
        cut_network(frozen(Ragged()), "auto", x[:1])


def test_a_trace_that_answers_otherwise_is_refused(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are run beside the whole before they are used."""
    from imbalance_perturb.inference.hidden_stage import cutting

    network = frozen(Network())
    graph = cutting.trace_layers(network)
    graph.get_submodule("network.head").bias = nn.Parameter(torch.ones(4), requires_grad=False)
    monkeypatch.setattr(cutting, "trace_layers", lambda _: graph)
    torch.manual_seed(3)
    with pytest.raises(SettingsError, match="answers otherwise"):
        cut_network(frozen(Network()), "one", x[:1])


def products(network: nn.Module, x: Tensor) -> dict[str, int]:
    """Multiplications of each convolution and linear layer, by its shapes."""
    found: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, out: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            found[name] = out[0].numel() * weight[0].numel()

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("name", "expected", "before"),
    [
        ("resnet18", "layer3", "layer3.0"),
        ("mobilenet_v2", "features.13", "features.12"),
        ("efficientnet_b0", "features.6.1", "features.6.0"),
    ],
)
def test_auto_is_the_first_block_with_little_behind(name: str, expected: str, before: str) -> None:
    """Of the products, counted here from the layers' shapes, at most 0.3 lie behind it, and more behind the last."""
    torch.manual_seed(0)
    network = frozen(torchvision.models.get_model(name, weights=None, num_classes=4))
    x = torch.randn(1, 3, 64, 64)
    staged = cut_network(network, "auto", x)
    assert staged.layer == expected
    cost = products(network, x)
    behind: dict[str, float] = {}
    for layer in (expected, before):
        last = max(index for index, key in enumerate(cost) if key == layer or key.startswith(f"{layer}."))
        behind[layer] = sum(list(cost.values())[last + 1 :]) / sum(cost.values())
    assert staged.behind == pytest.approx(behind[expected], rel=1e-3)
    assert behind[expected] <= MOST_BEHIND < behind[before]


def scripted(network: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(network), stream)
    stream.seek(0)
    return torch.jit.load(stream)  # type: ignore[no-any-return]


def traced(network: nn.Module) -> nn.Module:
    return torch.jit.trace(network, torch.randn(2, 3, 64, 64))  # type: ignore[no-any-return]


def exported(network: nn.Module) -> nn.Module:
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},)).module()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("form", [scripted, traced, exported])
def test_every_format_is_cut_at_the_same_layers(form: Callable[[nn.Module], nn.Module], name: str) -> None:
    """Names and numbers are those of the network that the file was made from."""
    torch.manual_seed(0)
    network = frozen(torchvision.models.get_model(name, weights=None, num_classes=4))
    x = torch.randn(3, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = form(network)
        ours, theirs = cut_network(network, "auto", x[:1]), cut_network(file, "auto", x[:1])
    assert (theirs.layer, theirs.behind) == (ours.layer, pytest.approx(ours.behind, rel=1e-3))
    torch.testing.assert_close(theirs.front(x), ours.front(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x), network(x), rtol=1e-4, atol=1e-4)

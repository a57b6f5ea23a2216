"""imbalance_perturb.models: replaced heads, whose order and activations a file shows in part or not at all."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models import LoadedClassifier, load_classifier
from imbalance_perturb.models.architectures.heads import Head, HeadHints, Refusal, rebuild_head

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


def with_head(head: nn.Module, name: str = "resnet18", place: str = "fc") -> nn.Module:
    """The network with this head, its norms not the identity."""
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    network.set_submodule(place, head)
    for key, tensor in head.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "var" in key else tensor.normal_()
    return network.eval()


def save(network: nn.Module, folder: Path, suffix: str = ".pth") -> Path:
    path = folder / f"model{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def same(loaded: LoadedClassifier, network: nn.Module) -> bool:
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        return torch.equal(loaded(x), network(x))


def named(*layers: tuple[str, nn.Module]) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


def test_names_sorted_by_safetensors_are_no_order(tmp_path: Path) -> None:
    """Three named layers of which two are alike: safetensors lists them sorted, which is not how they run."""
    hidden = [(name, nn.Linear(512, 512)) for name in ("hidden1", "dense2")]
    network = with_head(
        named(hidden[0], ("act1", nn.ReLU()), hidden[1], ("act2", nn.ReLU()), ("out", nn.Linear(512, 7)))
    )
    with pytest.raises(ArchitectureError, match=r"order neither names nor shapes tell.*--factory"):
        load_classifier(save(network, tmp_path, ".safetensors"), head_activation="relu")
    assert same(load_classifier(save(network, tmp_path), head_activation="relu"), network)


def test_a_checkpoint_that_was_sorted_is_no_order(tmp_path: Path) -> None:
    """A state_dict in which somebody sorted the names says as little as safetensors do."""
    network = with_head(
        named(("hidden1", nn.Linear(512, 512)), ("dense2", nn.Linear(512, 512)), ("out", nn.Linear(512, 7)))
    )
    torch.save(dict(sorted(network.state_dict().items())), tmp_path / "sorted.pth")
    with pytest.raises(ArchitectureError, match="order neither names nor shapes tell"):
        load_classifier(tmp_path / "sorted.pth", head_activation="none")


def test_shapes_that_leave_one_order_are_an_order(tmp_path: Path) -> None:
    """Layers of different widths can only follow one another in one way, whatever they are called."""
    network = with_head(
        named(
            ("z", nn.Linear(512, 32)),
            ("a1", nn.GELU()),
            ("m", nn.Linear(32, 16)),
            ("a2", nn.GELU()),
            ("a", nn.Linear(16, 7)),
        )
    )
    for suffix in (".pth", ".safetensors"):
        loaded = load_classifier(save(network, tmp_path, suffix), head_activation="gelu")
        assert same(loaded, network)
        assert not loaded.info.assumptions


@pytest.mark.parametrize(
    "head",
    [
        lambda: named(
            ("fc1", nn.Linear(512, 32)), ("bn1", nn.BatchNorm1d(32)), ("relu", nn.ReLU()), ("fc2", nn.Linear(32, 7))
        ),
        lambda: named(("reduce", nn.Linear(512, 32)), ("drop", nn.Dropout()), ("out", nn.Linear(32, 7))),
        lambda: named(("hidden", nn.Linear(512, 32)), ("act", nn.GELU()), ("out", nn.Linear(32, 7))),
        lambda: nn.Sequential(nn.Sequential(nn.Linear(512, 32), nn.Tanh()), nn.Linear(32, 7)),
        lambda: nn.Sequential(nn.Linear(512, 32), nn.Dropout(), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 7)),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_activation_that_the_file_does_not_show_is_refused(
    head: Callable[[], nn.Module], suffix: str, tmp_path: Path
) -> None:
    """Names, inner Sequentials and a choice of two places hide activations: nothing is put there unasked."""
    path = save(with_head(head()), tmp_path, suffix)
    with pytest.raises(ArchitectureError, match=r"does not show.*--head-activation.*") as caught:
        load_classifier(path)
    assert "--factory" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", _ACTIVATIONS)
@pytest.mark.parametrize("by_name", [True, False])
def test_the_activation_that_is_said_is_taken(name: str, by_name: bool, tmp_path: Path) -> None:
    """``head_activation`` stands where the layer without tensors was, by number and by name, with no word of doubt."""
    layers = (nn.Linear(512, 32), _ACTIVATIONS[name](), nn.Dropout(), nn.Linear(32, 7))
    head = named(*zip(("one", "act", "drop", "two"), layers, strict=True)) if by_name else nn.Sequential(*layers)
    network = with_head(head)
    loaded = load_classifier(save(network, tmp_path), head_activation=name)
    assert same(loaded, network)
    assert not loaded.info.assumptions
    assert not any("of no use" in note for note in loaded.info.notes)


def test_a_norm_between_names_leaves_two_places(tmp_path: Path) -> None:
    """Beside a norm between named layers an activation may stand on either side; that there is none can be said."""
    plain = with_head(named(("fc1", nn.Linear(512, 32)), ("bn1", nn.BatchNorm1d(32)), ("fc2", nn.Linear(32, 7))))
    path = save(plain, tmp_path)
    with pytest.raises(ArchitectureError, match=r"on which side of BatchNorm1d.*--factory"):
        load_classifier(path, head_activation="relu")
    assert same(load_classifier(path, head_activation="none"), plain)


def test_two_places_by_number_are_told_by_the_option(tmp_path: Path) -> None:
    """With a layer on both sides of a norm the refusal says which the option takes: the one after the Linear."""
    network = with_head(
        nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 7))
    )
    path = save(network, tmp_path)
    with pytest.raises(ArchitectureError, match=r"which side of BatchNorm1d.*takes it right after the Linear"):
        load_classifier(path)
    assert same(load_classifier(path, head_activation="relu"), network)


def test_a_number_that_is_missing_is_a_relu_with_a_warning(tmp_path: Path) -> None:
    """The common case is taken, and said where a user cannot miss it; saying it oneself ends the warning."""
    network = with_head(nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 7)))
    path = save(network, tmp_path)
    loaded = load_classifier(path)
    assert same(loaded, network)
    (assumption,) = loaded.info.assumptions
    assert "ReLU" in assumption
    assert "--head-activation" in assumption
    assert not load_classifier(path, head_activation="relu").info.assumptions


def test_what_numbers_show_needs_no_assumption(tmp_path: Path) -> None:
    """Without a missing number there is no activation, and with a PReLU or one Linear nothing is left open."""
    for head in (
        nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 7)),
        nn.Sequential(nn.Linear(512, 8), nn.PReLU(), nn.Dropout(), nn.Linear(8, 7)),
        nn.Sequential(nn.Dropout(), nn.Linear(512, 7)),
        nn.Linear(512, 7),
    ):
        network = with_head(head)
        loaded = load_classifier(save(network, tmp_path))
        assert same(loaded, network)
        assert not loaded.info.assumptions


def test_an_option_without_effect_is_said(tmp_path: Path) -> None:
    """``head_activation`` for a head that has no place for one, or for a network from elsewhere, is of no use."""
    head = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 7))
    loaded = load_classifier(save(with_head(head), tmp_path), head_activation="gelu")
    assert any("--head-activation is of no use here" in note for note in loaded.info.notes)
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 3))), tmp_path / "m.pt")  # type: ignore[no-untyped-call]
    loaded = load_classifier(tmp_path / "m.pt", head_activation="gelu", input_shape=(3, 2, 2))
    assert any("--head-activation is of no use here" in note for note in loaded.info.notes)


def test_a_head_without_bias_may_be_a_cosine_classifier(tmp_path: Path) -> None:
    """Such a head has the tensors of a Linear, so that it is one is said as an assumption."""
    loaded = load_classifier(save(with_head(nn.Linear(512, 7, bias=False)), tmp_path))
    assert any("cosine" in assumption for assumption in loaded.info.assumptions)


def test_the_architectures_own_activation_is_kept_only_in_its_place() -> None:
    """Hardswish stays where the last layer alone was replaced, and is asked for where the whole head was."""
    own = torchvision.models.mobilenet_v3_small(weights=None).classifier
    inner = {"0": (1024, 576), "3.1": (32, 1024), "3.3": (7, 32)}
    whole = {"0": (1024, 576), "3": (32, 1024), "6": (7, 32)}

    def rebuild(widths: dict[str, tuple[int, ...]], activation: str | None = None) -> Head | Refusal:
        shapes = {f"{name}.weight": shape for name, shape in widths.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in widths.items()}
        return rebuild_head(shapes, own, 576, "classifier", HeadHints(activation=activation))

    def kinds(head: Head | Refusal) -> list[str]:
        assert isinstance(head, Head), head
        return [
            type(module).__name__ for module in head.module.modules() if type(module) not in (nn.Sequential, nn.Dropout)
        ]

    assert kinds(rebuild(inner)) == ["Linear", "Hardswish", "Linear", "ReLU", "Linear"]
    refused = rebuild(whole)
    assert isinstance(refused, Refusal)
    assert "Hardswish or ReLU" in refused.reason
    assert kinds(rebuild(whole, "gelu")) == ["Linear", "GELU", "Linear", "GELU", "Linear"]


def test_a_head_of_endless_layers_or_orders_is_refused() -> None:
    """Numbers without end, nesting without end and alike layers in factorially many orders end in a reason, at once."""
    square = {f"layer{i}.{part}": shape for i in range(40) for part, shape in (("weight", (8, 8)), ("bias", (8,)))}
    long = {f"{i}.weight": (8, 8) for i in range(5000)}
    deep = {"a." * 2000 + "weight": (8, 8)}
    digits = {"9" * 5000 + ".weight": (8, 8)}
    for shapes, reason in (
        (square, "order"),
        (long, "layers"),
        (deep, "nested"),
        ({**digits, "1.weight": (8, 8)}, "order"),
    ):
        found = rebuild_head(shapes, nn.Linear(8, 3), 8, "fc")
        assert isinstance(found, Refusal)
        assert reason in found.reason


@st.composite
def heads(draw: st.DrawFn) -> tuple[nn.Module, str]:
    """A head of one to three Linears with names or numbers, norms and activations, and its activation's name."""
    activation = draw(st.sampled_from(sorted(_ACTIVATIONS)))
    layers: list[nn.Module] = []
    width = 512
    for _ in range(draw(st.integers(0, 2))):
        hidden = draw(st.sampled_from((8, 16, 512)))
        layers.append(nn.Linear(width, hidden))
        block: list[nn.Module] = [_ACTIVATIONS[activation]()] if activation != "none" or draw(st.booleans()) else []
        if draw(st.booleans()):
            block.insert(
                draw(st.integers(0, len(block))), draw(st.sampled_from((nn.BatchNorm1d, nn.LayerNorm)))(hidden)
            )
        if draw(st.booleans()):
            block.append(nn.Dropout())
        layers += block
        width = hidden
    layers.append(nn.Linear(width, 7))
    if draw(st.booleans()):
        return nn.Sequential(*layers), activation
    names = draw(st.permutations([f"{letter}{i}" for i, letter in enumerate("fcabdzhomy")]))
    return named(*zip(names, layers, strict=False)), activation


@settings(max_examples=30, deadline=None)
@given(heads())
def test_both_formats_give_the_networks_own_labels_or_a_refusal(drawn: tuple[nn.Module, str]) -> None:
    """With the activation said, the .pth and the .safetensors of any head either run as it did or are refused."""
    head, activation = drawn
    network = with_head(head)
    x = torch.randn(4, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected: Tensor = network(x)
        for suffix in (".pth", ".safetensors"):
            path = save(network, Path(folder), suffix)
            try:
                loaded = load_classifier(path, head_activation=activation)
            except ArchitectureError:
                continue
            assert torch.equal(loaded(x), expected), suffix


@pytest.mark.parametrize("classes", [3, 5])
def test_a_factory_is_given_the_classes_of_the_head_in_either_format(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted names do not end in the head: the number of classes is that of the layer which feeds no other.

    As many classes as colours are no input of the first convolution.
    """
    (tmp_path / "a_network_of_mine.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(__import__('collections').OrderedDict(\n"
        "        stem=nn.Conv2d(3, 8, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), hidden=nn.Linear(8, 6),\n"
        "        classify=nn.Linear(6, num_classes)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from importlib import import_module

    network: nn.Module = import_module("a_network_of_mine").build(num_classes=classes).eval()
    for suffix in (".pth", ".safetensors"):
        loaded = load_classifier(save(network, tmp_path, suffix), factory="a_network_of_mine:build")
        assert loaded.info.num_classes == classes
        assert same(loaded, network)


def test_timm_networks_take_their_channels_from_their_first_convolution(tmp_path: Path) -> None:
    """The first convolution by name is not the first of all in a safetensors file."""
    timm = pytest.importorskip("timm")
    network = timm.create_model("efficientnet_lite0", pretrained=False, num_classes=5).eval()
    for suffix in (".pth", ".safetensors"):
        loaded = load_classifier(save(network, tmp_path, suffix), arch="timm:efficientnet_lite0")
        assert loaded.info.in_channels == 3
        assert same(loaded, network)

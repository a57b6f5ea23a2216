"""imbalance_perturb.models: the architecture from tensor names and shapes, replaced heads, channels, image sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models import LoadedClassifier, load_classifier
from imbalance_perturb.models.architectures import recognition
from imbalance_perturb.models.architectures.recognition import Match, match_architecture, recognise
from imbalance_perturb.models.architectures.skeleton import build_skeleton, classification_names, is_counter, skeleton

Names = dict[str, tuple[int, ...]]


def shapes_of(network: nn.Module) -> Names:
    return {name: tuple(t.shape) for name, t in network.state_dict().items() if not is_counter(name)}


def network(name: str, **options: object) -> nn.Module:
    """A torchvision network in eval mode whose batch norms are not the identity."""
    built: nn.Module = torchvision.models.get_model(name, weights=None, **options).eval()
    for key, buffer in built.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    return built


def reload(built: nn.Module, tmp_path: Path, **arguments: object) -> LoadedClassifier:
    torch.save(built.state_dict(), tmp_path / "model.pth")
    return load_classifier(tmp_path / "model.pth", **arguments)  # type: ignore[arg-type]


def test_every_architecture_is_recognised() -> None:
    """Each of torchvision's classification networks, with another number of classes, is told by its tensors."""
    wrong = {}
    for name in classification_names():
        base = skeleton(name)
        head = {base.head + ".weight", base.head + ".bias"}
        found = recognise({key: (7, *shape[1:]) if key in head else shape for key, shape in base.shapes.items()})
        if not isinstance(found, Match) or (found.arch, found.num_classes, found.in_channels) != (name, 7, 3):
            wrong[name] = found
    assert len(classification_names()) >= 80
    assert not wrong


def test_no_two_architectures_tie() -> None:
    """No two networks share all names and shapes below the head, so the first that fits is the only one."""
    seen: dict[frozenset[tuple[str, tuple[int, ...]]], str] = {}
    for name in classification_names():
        base = skeleton(name)
        body = {
            key: shape[:1] + shape[2:] if key == f"{base.stem}.weight" else shape
            for key, shape in base.shapes.items()
            if not key.startswith(base.container + ".")
        }
        assert seen.setdefault(frozenset(body.items()), name) == name


def test_every_architecture_has_its_family() -> None:
    """Each of today's networks has the tensor that its family is told by; one of no family would only cost time."""
    for name in classification_names():
        family = recognition.family_key(name)
        assert family is not None
        assert family in skeleton(name).shapes


def test_recognising_a_common_network_is_quick() -> None:
    """ResNet-50 takes well below a second, of which most is building the networks before it in its family."""
    shapes = shapes_of(build_skeleton("resnet50", num_classes=7))
    skeleton.cache_clear()
    began = time.process_time()
    recognise(shapes)
    assert time.process_time() - began < 3  # about 0.3 s here; slow machines may take longer


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {}, 32),
        ("mobilenet_v2", {}, 32),
        ("mobilenet_v3_small", {}, 32),
        ("densenet121", {}, 32),
        ("efficientnet_b0", {}, 32),
        ("swin_t", {}, 32),
        ("swin_v2_t", {}, 64),
        ("vit_b_32", {"image_size": 64}, 64),
        ("regnet_x_400mf", {}, 32),
        ("shufflenet_v2_x0_5", {}, 32),
        ("squeezenet1_1", {}, 32),
        ("mnasnet0_5", {}, 32),
        ("convnext_tiny", {}, 32),
    ],
)
def test_loaded_logits_are_torchvisions(name: str, options: dict[str, object], size: int, tmp_path: Path) -> None:
    """A saved and recognised network gives bit for bit the logits of torchvision's own."""
    original = network(name, num_classes=7, **options)
    loaded = reload(original, tmp_path)
    assert loaded.info.arch == name
    assert loaded.info.num_classes == 7
    assert loaded.info.outputs == "logits"
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.train() is loaded
    assert not any(module.training for module in loaded.modules())


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    """Building networks to recognise one draws no numbers from the caller's generator."""
    original = network("swin_t", num_classes=3)
    before = torch.get_rng_state()
    reload(original, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_image_size_of_a_vit_comes_from_its_positions() -> None:
    """A ViT for 96-pixel images is recognised as such, and says so."""
    found = recognise(shapes_of(build_skeleton("vit_b_32", image_size=96, num_classes=4)))
    assert isinstance(found, Match)
    assert found.fixed_size == (96, 96)


def test_a_vit_with_a_representation_layer_is_recognised() -> None:
    """The pre-logits layer of the ViT paper keeps its Tanh instead of being taken for a replaced head."""
    found = recognise(shapes_of(build_skeleton("vit_b_32", num_classes=5, representation_size=64)))
    assert isinstance(found, Match)
    assert any(isinstance(module, nn.Tanh) for module in found.network.modules())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_heads_are_left_out(name: str, auxiliary: bool, tmp_path: Path) -> None:
    """GoogLeNet and Inception give their main head's logits, saved with or without auxiliary heads."""
    original = network(name, num_classes=5, aux_logits=auxiliary, init_weights=False)
    loaded = reload(original, tmp_path, arch=f"{name},transform_input=false")
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))
    assert any("auxiliary" in note for note in loaded.info.notes) == auxiliary


def test_an_option_that_tensors_cannot_show_is_asked_for(tmp_path: Path) -> None:
    """Whether the input is transformed changes predictions and is not in the file, so ``--arch`` has to say it."""
    original = network("googlenet", num_classes=5, aux_logits=False, init_weights=False, transform_input=True)
    for arch in (None, "googlenet"):
        with pytest.raises(ArchitectureError, match=r"--arch googlenet,transform_input=true .*=false"):
            reload(original, tmp_path, arch=arch)
    loaded = reload(original, tmp_path, arch="googlenet,transform_input=true")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))


def _set(built: nn.Module, name: str, module: nn.Module) -> nn.Module:
    built.set_submodule(name, module)
    return built.eval()


_HEADS: list[tuple[str, str, Callable[[], nn.Module]]] = [
    ("resnet18", "fc", lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 7))),
    (
        "resnet18",
        "fc",
        lambda: nn.Sequential(nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 7)),
    ),
    ("resnet18", "fc", lambda: nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 7))),
    (
        "resnet18",
        "fc",
        lambda: nn.Sequential(nn.BatchNorm1d(512), nn.Dropout(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 7)),
    ),
    ("resnet18", "fc", lambda: nn.Sequential(nn.Linear(512, 32), nn.Linear(32, 7, bias=False))),
    ("resnet18", "fc", lambda: nn.Sequential(nn.Linear(512, 32), nn.PReLU(), nn.Linear(32, 7))),
    ("resnet18", "fc", lambda: nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 7))),
    (
        "resnet18",
        "fc",
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 16)), nn.ReLU(), nn.Linear(16, 7)
        ),
    ),
    ("densenet121", "classifier", lambda: nn.Sequential(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 7))),
    ("mobilenet_v2", "classifier.1", lambda: nn.Sequential(nn.Linear(1280, 16), nn.ReLU(), nn.Linear(16, 7))),
    ("mobilenet_v2", "classifier", lambda: nn.Linear(1280, 7)),
    (
        "mobilenet_v2",
        "classifier",
        lambda: nn.Sequential(nn.Dropout(), nn.Linear(1280, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 7)),
    ),
    ("mobilenet_v3_small", "classifier.3", lambda: nn.Sequential(nn.Dropout(), nn.Linear(1024, 7))),
    ("convnext_tiny", "classifier.2", lambda: nn.Sequential(nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 7))),
    ("swin_t", "head", lambda: nn.Sequential(nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 7))),
    ("squeezenet1_1", "classifier.1", lambda: nn.Conv2d(512, 7, 1)),
]


@pytest.mark.parametrize(("name", "place", "head"), _HEADS)
def test_a_replaced_head_is_rebuilt(name: str, place: str, head: Callable[[], nn.Module], tmp_path: Path) -> None:
    """A head that was replaced by a Linear or a Sequential gives its own logits after loading."""
    original = _set(network(name), place, head())
    loaded = reload(original, tmp_path)
    assert loaded.info.num_classes == 7
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))


def test_a_norm_in_a_head_that_may_be_of_another_kind_is_said(tmp_path: Path) -> None:
    """LayerNorm and GroupNorm have the same tensors: the first is taken, and the last line names the way out."""
    loaded = reload(_set(network("resnet18"), "fc", nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 7))), tmp_path)
    assert "GroupNorm" in loaded.info.assumptions[0]


@pytest.mark.parametrize(
    ("name", "place", "head", "reason"),
    [
        ("mobilenet_v3_small", "classifier.0", nn.Linear(576, 1024, bias=False), "Hardswish or ReLU"),
        ("convnext_tiny", "classifier", nn.Sequential(nn.Flatten(), nn.Linear(768, 7)), "pooling or flattening"),
        ("resnet18", "fc", nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8)), "does not end in a Linear"),
        ("resnet18", "fc", nn.Sequential(nn.Conv1d(1, 8, 3), nn.Linear(512, 7)), "unknown kind"),
        ("resnet18", "fc", nn.Sequential(nn.Linear(64, 7)), "takes 64 features"),
        ("resnet18", "fc", nn.Identity(), "does not end in a Linear"),
    ],
)
def test_a_head_that_cannot_be_told_is_refused(
    name: str, place: str, head: nn.Module, reason: str, tmp_path: Path
) -> None:
    """Where tensors leave open how the head computes, nothing is guessed."""
    with pytest.raises(ArchitectureError, match=reason):
        reload(_set(network(name), place, head), tmp_path)


@pytest.mark.parametrize("channels", [1, 4])
def test_another_number_of_input_channels_is_taken_over(channels: int, tmp_path: Path) -> None:
    """A first convolution with another number of channels is rebuilt, and the number reported."""
    original = network("resnet18", num_classes=7)
    original.set_submodule("conv1", nn.Conv2d(channels, 64, 7, 2, 3, bias=False))
    loaded = reload(original, tmp_path)
    assert loaded.info.in_channels == channels
    x = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))


def test_counters_may_be_missing(tmp_path: Path) -> None:
    """Files from before batch norm counted its batches load."""
    original = network("resnet18", num_classes=7)
    torch.save({k: v for k, v in original.state_dict().items() if not is_counter(k)}, tmp_path / "old.pth")
    assert load_classifier(tmp_path / "old.pth").info.arch == "resnet18"


def test_an_unknown_network_gets_the_closest_and_the_differences(tmp_path: Path) -> None:
    """The error names the file, the closest architecture, its missing and unexpected tensors, and a remedy."""
    state = network("resnet18", num_classes=7).state_dict()
    del state["layer4.1.bn2.weight"]
    state["extra.weight"] = torch.zeros(3, 3)
    state["layer1.0.conv1.weight"] = torch.zeros(32, 64, 3, 3)
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(ArchitectureError) as caught:
        load_classifier(tmp_path / "own.pth")
    message = str(caught.value)
    for part in (
        "own.pth",
        "resnet18",
        "1 missing (layer4.1.bn2.weight)",
        "extra.weight",
        "[32, 64, 3, 3]",
        "--factory",
    ):
        assert part in message
    assert "\n" not in message


def test_a_wrong_arch_lists_the_differences(tmp_path: Path) -> None:
    """``--arch`` of another network ends in the same listing."""
    with pytest.raises(ArchitectureError, match=r"do not fit --arch resnet50.*\d+ missing"):
        reload(network("resnet18"), tmp_path, arch="resnet50")


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("resnet-18", "did you mean resnet18"),
        ("qqqqqq", "no classification network"),
        ("resnet18,image", "not key=value"),
        ("resnet18,num_classes=7", "leave out num_classes"),
        ("resnet18,colour=true", "cannot build it with colour=True"),
    ],
)
def test_a_malformed_arch_is_explained(arch: str, reason: str, tmp_path: Path) -> None:
    """A name or option that torchvision does not know gets a one-line reason."""
    with pytest.raises(ArchitectureError, match=reason) as caught:
        reload(network("resnet18", num_classes=7), tmp_path, arch=arch)
    assert "\n" not in str(caught.value)


def test_arch_given_equals_recognised(tmp_path: Path) -> None:
    """Naming the architecture changes nothing but the note."""
    original = network("resnet18", num_classes=7)
    x = torch.randn(2, 3, 32, 32)
    by_name: Tensor = reload(original, tmp_path, arch="resnet18")(x)
    assert torch.equal(by_name, reload(original, tmp_path)(x))


def test_old_tensor_names_of_torchvision_are_understood() -> None:
    """Downloads from before torchvision renamed DenseNet's and ViT's layers load under the new names."""
    from imbalance_perturb.models.architectures.recognition import canonical_names

    old = ["features.denseblock1.denselayer1.norm.1.weight", "encoder.layers.encoder_layer_0.mlp.linear_2.bias"]
    new = ["features.denseblock1.denselayer1.norm1.weight", "encoder.layers.encoder_layer_0.mlp.3.bias"]
    assert list(canonical_names(old).values()) == new
    assert list(canonical_names(new).values()) == new


def test_a_difference_counts_every_tensor() -> None:
    """Matching against one architecture tells how many tensors differ."""
    found = match_architecture("resnet18", {})
    assert not isinstance(found, Match)
    assert len(found.missing) == len(skeleton("resnet18").shapes) - 2 + 1

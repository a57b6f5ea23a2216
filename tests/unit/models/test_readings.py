"""imbalance_perturb.models: the layouts that training scripts leave a network's tensors in, and which are refused."""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imbalance_perturb.errors import ArchitectureError, ModelFileError, SettingsError, UntrustedModelError
from imbalance_perturb.models import LoadedClassifier, load_classifier
from imbalance_perturb.models.formats import plain_values
from imbalance_perturb.models.formats.checkpoint import read_checkpoint
from imbalance_perturb.models.formats.snapshot import read_snapshot

State = dict[str, Tensor]
C = 7


def network(name: str = "resnet18", seed: int = 0, classes: int = C) -> nn.Module:
    """A torchvision network in eval mode whose batch norms are not the identity."""
    torch.manual_seed(seed)
    built: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes).eval()
    for key, buffer in built.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    return built


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """Of few parameters, for what goes for every architecture."""
    return network("shufflenet_v2_x0_5")


@pytest.fixture(scope="module")
def other() -> nn.Module:
    """The same architecture with other parameters."""
    return network("shufflenet_v2_x0_5", seed=1)


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def within(module: str, wrapper: str, state: State) -> State:
    """With a wrapper around one module of the network."""
    return {name.replace(module, module + wrapper): tensor for name, tensor in state.items()}


def load(content: Any, folder: Path, **arguments: Any) -> LoadedClassifier:
    torch.save(content, folder / "model.pth")
    return load_classifier(folder / "model.pth", **arguments)


def same(loaded: LoadedClassifier, wanted: nn.Module) -> bool:
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        return torch.equal(loaded(x), wanted.eval()(x))


def said(loaded: LoadedClassifier) -> str:
    return " | ".join((*loaded.info.notes, *loaded.info.assumptions))


METRICS = {
    "train_acc.tp": torch.zeros(C, dtype=torch.long),
    "train_acc.fp": torch.zeros(C, dtype=torch.long),
    "val_loss_mean.mean_value": torch.zeros(()),
    "val_loss_mean.weight": torch.zeros(()),
    "metrics.MulticlassConfusionMatrix.confmat": torch.zeros(C, C, dtype=torch.long),
}

_LAYOUTS: dict[str, Callable[[State], Any]] = {
    "class weights": lambda s: {"state_dict": {**under("model.", s), "class_weights": torch.ones(C)}},
    "the loss": lambda s: {"state_dict": {**under("model.", s), "criterion.weight": torch.ones(C)}},
    "a loss with centres": lambda s: {**under("net.", s), "center_loss.centers": torch.ones(C, 1024)},
    "metrics": lambda s: {"state_dict": {**under("model.", s), **METRICS}},
    "no prefix but a stray tensor": lambda s: {**s, "class_weights": torch.ones(C)},
    "counts of operations": lambda s: {
        **s, "total_ops": torch.zeros(1), "conv1.0.total_ops": torch.zeros(1), "conv1.0.total_params": torch.zeros(1)
    },
    "resnet.": lambda s: under("resnet.", s),
    "encoder.": lambda s: under("encoder.", s),
    "base_model.": lambda s: under("base_model.", s),
    "my_classifier.inner.": lambda s: under("my_classifier.inner.", s),
    "Opacus": lambda s: under("_module.", s),
    "Fabric": lambda s: under("_forward_module.", s),
    "FSDP": lambda s: {"model": under("_fsdp_wrapped_module.", within("stage2.", "_fsdp_wrapped_module.", s))},
    "compiled in part": lambda s: within("stage2.", "_orig_mod.", s),
    "checkpointed in part": lambda s: within("stage3.", "_checkpoint_wrapped_module.", s),
    "compiled and distributed": lambda s: under("module._orig_mod.", s),
    "distributed twice": lambda s: under("module.module.", s),
    "parallel in part": lambda s: within("stage2.", "module.", s),
    "DeepSpeed": lambda s: {"module": s, "client_state": {"epoch": 3}, "optimizer": None, "ds_version": "0.15"},
    "nested twice": lambda s: {"state_dict": {"state_dict": s}},
    "a key of one's own": lambda s: {"best_model_state": s, "best_acc": 0.9},
    "with an optimiser": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(9, 9)}}}},
    "with a Namespace": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, model="shufflenet_v2_x0_5")},
    "with NumPy's numbers and paths": lambda s: {
        "model": s, "best": np.float64(0.9), "epoch": np.int64(3), "args": argparse.Namespace(out=Path("a") / "b")
    },
    "no counters": lambda s: {k: t for k, t in s.items() if "num_batches" not in k},
}  # fmt: skip


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_layouts_that_load(layout: str, small: nn.Module, tmp_path: Path) -> None:
    """Unlisted prefixes, wrappers in the middle of names and tensors beside the network are seen through."""
    loaded = load(_LAYOUTS[layout](small.state_dict()), tmp_path)
    assert loaded.info.arch == "shufflenet_v2_x0_5"
    assert same(loaded, small)
    assert not loaded.info.assumptions
    if layout in ("FSDP", "compiled in part", "compiled and distributed", "distributed twice", "Opacus"):
        assert "wrappers were removed from the tensors' names: " in said(loaded)


@pytest.mark.parametrize("arch", ["shufflenet_v2_x0_5", None])
def test_what_was_left_out_is_named(arch: str | None, small: nn.Module, tmp_path: Path) -> None:
    """Left-out tensors are counted and some of them named, also where the architecture was."""
    state = {"state_dict": {**under("model.", small.state_dict()), **METRICS, "class_weights": torch.ones(C)}}
    loaded = load(state, tmp_path, arch=arch)
    assert same(loaded, small)
    assert "left out 6 tensors: train_acc.tp, train_acc.fp" in said(loaded)
    assert "the prefix 'model.' was removed" in said(loaded)


def test_an_averaged_model_loads(small: nn.Module, tmp_path: Path) -> None:
    """torch's AveragedModel, alone in a file, is the network, and it is said that it is an average."""
    averaged = AveragedModel(small, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    loaded = load(averaged.state_dict(), tmp_path)
    assert same(loaded, small)
    assert "an average over training" in said(loaded)
    assert same(load(averaged.state_dict(), tmp_path, weights="ema"), small)


_TWO_SETS: dict[str, Callable[[State, State], Any]] = {
    "torchvision": lambda m, e: {"model": m, "model_ema": {"n_averaged": torch.tensor(3), **under("module.", e)}},
    "timm": lambda m, e: {"arch": "shufflenet_v2_x0_5", "state_dict": m, "state_dict_ema": e},
    "Lightning with an EMA module": lambda m, e: {
        "state_dict": {**under("model.", m), **under("ema_model.module.", e), "ema_model.n_averaged": torch.tensor(3)}
    },
    "student and teacher": lambda m, e: {"student": m, "teacher": e},
    "student and teacher in a module": lambda m, e: {"state_dict": {**under("student.", m), **under("teacher.", e)}},
    "Lightning's WeightAveraging": lambda m, e: {
        "state_dict": under("model.", e), "current_model_state": under("model.", m),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    },
    "a callback": lambda m, e: {"state_dict": under("model.", m), "callbacks": {"EMA": {"ema_state_dict": e}}},
    "ema_pytorch": lambda m, e: {
        **under("ema.online_model.", m), **under("ema.ema_model.", e), "ema.initted": torch.tensor(True)
    },
    "BYOL": lambda m, e: {**under("online_encoder.", m), **under("target_encoder.", e)},
}  # fmt: skip


@pytest.mark.parametrize("layout", _TWO_SETS)
def test_two_sets_of_weights_are_asked_about(layout: str, small: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    """Parameters and their average both there: refused naming --weights, which then takes one."""
    content = _TWO_SETS[layout](small.state_dict(), other.state_dict())
    with pytest.raises(ModelFileError, match=r"--weights ema takes '.*', --weights model '.*'") as caught:
        load(content, tmp_path)
    assert "\n" not in str(caught.value)
    assert same(load(content, tmp_path, weights="model"), small)
    loaded = load(content, tmp_path, weights="ema")
    assert same(loaded, other)
    assert "not used is" in said(loaded)


def test_the_same_weights_twice_are_one_network(small: nn.Module, tmp_path: Path) -> None:
    """Parameters and an average that is equal to them load, with a note."""
    loaded = load({"model": small.state_dict(), "model_ema": small.state_dict()}, tmp_path)
    assert same(loaded, small)
    assert "the same tensors stand twice in the file" in said(loaded)


def test_averages_without_names_are_said(small: nn.Module, tmp_path: Path) -> None:
    """torch_ema's list of averaged parameters cannot be used, which a note says."""
    loaded = load({"model": small.state_dict(), "ema": {"decay": 0.9, "shadow_params": [torch.ones(3)]}}, tmp_path)
    assert same(loaded, small)
    assert "under 'ema' have no names" in said(loaded)


def test_weights_that_are_not_there(small: nn.Module, tmp_path: Path) -> None:
    """--weights of a kind that the file does not have is refused, and so is another word."""
    with pytest.raises(ModelFileError, match="no averaged weights; it has 'model'"):
        load(under("model.", small.state_dict()), tmp_path, weights="ema")
    with pytest.raises(ModelFileError, match="no weights but averaged ones"):
        load({"ema": small.state_dict()}, tmp_path, weights="model")
    with pytest.raises(SettingsError, match="expected one of ema, model"):
        load_classifier(tmp_path / "model.pth", weights="best")


def test_two_networks_are_refused(small: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    """The best and the last state, or two members of an ensemble, are not chosen between; COUNTS may tell."""
    for content in (
        {"best_state": small.state_dict(), "last_state": other.state_dict()},
        {**under("model_a.", small.state_dict()), **under("model_b.", other.state_dict())},
    ):
        with pytest.raises(ArchitectureError, match=r"more than one network.*save the right one alone"):
            load(content, tmp_path)
    wide = network("shufflenet_v2_x0_5", classes=10)
    loaded = load({"a": wide.state_dict(), "b": small.state_dict()}, tmp_path, num_classes=C)
    assert same(loaded, small)
    assert "as COUNTS has; not used is 'a'" in said(loaded)


def _beside(state: State, body: str, head: str, name: str = "fc") -> State:
    """The network's body under one prefix and its head under another name."""
    return {
        (head + key.removeprefix(f"{name}.") if key.startswith(f"{name}.") else body + key): tensor
        for key, tensor in state.items()
    }


@pytest.mark.parametrize("head", ["fc.", "head.", "classifier.", "cls_head.fc.", "my_output.", "head.0."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_head_beside_its_body(head: str, suffix: str, small: nn.Module, tmp_path: Path) -> None:
    """backbone.* without a head, and the head outside of it under any name, are one network."""
    state = _beside(small.state_dict(), "backbone.", head)
    if suffix == ".safetensors":
        save_file(state, tmp_path / "m.safetensors")
        loaded = load_classifier(tmp_path / "m.safetensors")
    else:
        loaded = load({"state_dict": {**under("model.", state), "class_weights": torch.ones(C)}}, tmp_path)
    assert same(loaded, small)
    assert "beside the network" in said(loaded)


def test_body_and_head_in_two_tables(small: nn.Module, tmp_path: Path) -> None:
    """A body and a head that were saved as two state_dicts are put together."""
    state = small.state_dict()
    body = {k: t for k, t in state.items() if not k.startswith("fc.")}
    head = {k.removeprefix("fc."): t for k, t in state.items() if k.startswith("fc.")}
    assert same(load({"backbone": body, "head": head, "epoch": 1}, tmp_path), small)


@pytest.mark.parametrize(
    ("name", "place"), [("mobilenet_v3_small", "classifier.3"), ("efficientnet_b0", "classifier.1")]
)
def test_a_head_beside_part_of_another(name: str, place: str, tmp_path: Path) -> None:
    """Where only the last layer was replaced by Identity, the one outside takes its place."""
    built = network(name)
    assert same(load(_beside(built.state_dict(), "encoder.", "fc.", place), tmp_path), built)


def test_a_head_of_several_layers_beside_its_body(small: nn.Module, tmp_path: Path) -> None:
    """Layers that a wrapper calls one after another are a head whose activation the file does not show."""
    body = {k: t for k, t in small.state_dict().items() if not k.startswith("fc.")}
    state = under("net.", body) | {
        "fc1.weight": torch.randn(16, 1024), "fc1.bias": torch.randn(16),
        "fc2.weight": torch.randn(C, 16), "fc2.bias": torch.randn(C),
    }  # fmt: skip
    with pytest.raises(ArchitectureError, match="--head-activation"):
        load(state, tmp_path)
    loaded = load(state, tmp_path, head_activation="gelu")
    wanted = network("shufflenet_v2_x0_5")
    head = nn.Sequential(OrderedDict(fc1=nn.Linear(1024, 16), act=nn.GELU(), fc2=nn.Linear(16, C)))
    head.load_state_dict({name: state[name] for name in head.state_dict()})
    wanted.set_submodule("fc", head)
    assert same(loaded, wanted)


def test_layers_that_may_come_before_or_after_are_not_dropped(small: nn.Module, tmp_path: Path) -> None:
    """A whole network with a layer beside it that takes its output or the image is refused; a projection is said."""
    state = under("net.", small.state_dict())
    for more in ({"classifier.weight": torch.randn(3, C)}, {"stn.conv.weight": torch.randn(8, 3, 5, 5)}):
        with pytest.raises(ArchitectureError, match=r"may be a layer (after|before) it.*--factory"):
            load(state | more, tmp_path)
    decoder = {"decoder.0.weight": torch.randn(20, 30), "decoder.0.bias": torch.randn(20)}
    loaded = load(state | decoder, tmp_path)
    assert same(loaded, small)
    assert "decoder.0.weight" in loaded.info.assumptions[0]
    two_heads = state | {"projector.weight": torch.randn(128, 1024), "projector.bias": torch.randn(128)}
    with pytest.raises(ArchitectureError, match=r"more than one network.*COUNTS"):
        load(two_heads, tmp_path)
    assert same(load(two_heads, tmp_path, num_classes=C), small)


def test_a_layer_within_the_network_is_not_dropped(resnet: nn.Module, tmp_path: Path) -> None:
    """Squeeze-and-excitation inside a block makes another network of a ResNet."""
    more = {"model.layer1.0.se.fc.weight": torch.randn(4, 64), "class_weights": torch.ones(C)}
    with pytest.raises(ArchitectureError, match=r"the closest is resnet18 .*1 unexpected \(layer1.0.se.fc.weight\)"):
        load(under("model.", resnet.state_dict()) | more, tmp_path)


def test_children_in_a_sequential(resnet: nn.Module, tmp_path: Path) -> None:
    """nn.Sequential(*children[:-1]) with a Linear: flat, nested, or as the features of a module."""
    children = list(resnet.children())
    flat = nn.Sequential(*children[:-1], nn.Flatten(), children[-1]).eval()
    nested = nn.Sequential(nn.Sequential(*children[:-1]), nn.Flatten(), nn.Dropout(), children[-1]).eval()
    module = nn.Module()
    module.features, module.fc = nn.Sequential(*children[:-1]), children[-1]
    for built in (flat, nested, module):
        loaded = load(built.state_dict(), tmp_path)
        assert loaded.info.arch == "resnet18"
        assert same(loaded, resnet)
    efficientnet = network("efficientnet_b0")
    children = list(efficientnet.children())
    flat = nn.Sequential(*children[:-1], nn.Flatten(), nn.Dropout(), children[-1][1]).eval()
    assert same(load(flat.state_dict(), tmp_path), efficientnet)


def test_fastai_learners_say_what_to_do(resnet: nn.Module, tmp_path: Path) -> None:
    """fastai's head takes average and maximum; that is told, and no network is guessed."""
    head = nn.Sequential(
        nn.Identity(), nn.Flatten(), nn.BatchNorm1d(1024), nn.Dropout(), nn.Linear(1024, 512, bias=False), nn.ReLU(),
        nn.BatchNorm1d(512), nn.Dropout(), nn.Linear(512, C, bias=False),
    )  # fmt: skip
    learner = nn.Sequential(nn.Sequential(*list(resnet.children())[:-2]), head)
    with pytest.raises(ArchitectureError, match=r"fastai.*--factory"):
        load({"model": learner.state_dict(), "opt": {}}, tmp_path)


class Normalise(nn.Module):
    def __init__(self, shape: tuple[int, ...] = (3, 1, 1)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(shape))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.reshape(3, 1, 1)) / self.std.reshape(3, 1, 1)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_a_normalising_layer_in_front_is_part_of_the_network(
    shape: tuple[int, ...], small: nn.Module, tmp_path: Path
) -> None:
    """Its mean and std are applied, and the last line says how to give it pixels."""
    for built in (
        nn.Sequential(Normalise(shape), small),
        nn.Sequential(OrderedDict([("normalize", Normalise(shape)), ("model", small)])),
    ):
        loaded = load({"state_dict": built.state_dict()}, tmp_path)
        assert same(loaded, built)
        assert not same(loaded, small)
        assert "mean 0.4,0.5,0.6" in loaded.info.assumptions[0]
        assert "--std 1,1,1" in loaded.info.assumptions[0]
        assert loaded.info.arch == "shufflenet_v2_x0_5"


def test_mean_and_std_beside_the_network_are_said(small: nn.Module, tmp_path: Path) -> None:
    """Buffers of a Lightning module that no layer holds are left out, their values shown."""
    state = under("model.", small.state_dict()) | {"mean": torch.tensor([0.4, 0.5, 0.6]), "std": torch.ones(1, 3, 1, 1)}
    loaded = load({"state_dict": state}, tmp_path)
    assert same(loaded, small)
    assert "mean 0.4,0.5,0.6; std 1,1,1" in loaded.info.assumptions[0]


def _pruned(built: nn.Module) -> None:
    for _, module in list(built.named_modules()):
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.3)
    prune.random_unstructured(built.fc, "bias", 0.3)  # type: ignore[arg-type]


def _old_weight_norm(built: nn.Module) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built.fc = nn.utils.weight_norm(built.fc)
        built.conv1[0] = nn.utils.weight_norm(built.conv1[0], dim=1)  # type: ignore[index]


def _new_weight_norm(built: nn.Module) -> None:
    parametrizations.weight_norm(built.fc)
    parametrizations.weight_norm(built.conv1[0])  # type: ignore[index]


def _old_spectral_norm(built: nn.Module) -> None:
    built.fc = spectral_norm(built.fc)
    built.conv1[0] = spectral_norm(built.conv1[0])  # type: ignore[index]


def _new_spectral_norm(built: nn.Module) -> None:
    parametrizations.spectral_norm(built.fc)
    parametrizations.spectral_norm(built.conv1[0])  # type: ignore[index]


@pytest.mark.parametrize(
    "change", [_pruned, _old_weight_norm, _new_weight_norm, _old_spectral_norm, _new_spectral_norm]
)
def test_weights_in_parts_are_computed(change: Callable[[nn.Module], None], tmp_path: Path) -> None:
    """Pruning masks, weight norm and spectral norm, in both layouts of torch, give the network's own logits."""
    built = network("shufflenet_v2_x0_5")
    change(built)
    loaded = load(under("model.", built.eval().state_dict()), tmp_path)
    assert same(loaded, built)
    assert "computed from their parts" in said(loaded)


def test_weights_in_unknown_parts_are_refused(tmp_path: Path) -> None:
    """An orthogonal parametrisation is not computed: the message names torch's way to undo it."""
    built = network("shufflenet_v2_x0_5")
    parametrizations.orthogonal(built.fc)
    with pytest.raises(ArchitectureError, match="remove_parametrizations"):
        load(built.state_dict(), tmp_path)


def test_files_of_other_things_are_told(small: nn.Module, tmp_path: Path) -> None:
    """An optimiser's state, tensors without names, adapters, quantised and flattened tensors get a line each."""
    state = small.state_dict()
    lora = {
        "base_model.model.fc.lora_A.weight": torch.ones(4, 9),
        "base_model.model.fc.lora_B.weight": torch.ones(9, 4),
    }
    for content, reason in (
        ({"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": []}, "the state of an optimiser"),
        (list(state.values()), r"a list of \d+ tensors without names"),
        ({"parameters": list(state.values())}, r"tensors under 'parameters' have no names"),
        (lora, "adapters.*merge_and_unload"),
        ({**state, "fc.zero_point": torch.zeros(1), "fc.scale": torch.ones(1)}, "quantised"),
        ({"_fsdp_wrapped_module._flat_param": torch.ones(9, 9)}, "FULL_STATE_DICT"),
        ({**state, "fc.weight": torch.ones(0)}, "zero_to_fp32"),
    ):
        with pytest.raises(ModelFileError, match=reason) as caught:
            load(content, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "hint",
    [
        {"hyper_parameters": {"arch": "resnetblur18"}},
        {"args": argparse.Namespace(model="resnetblur18")},
        {"hyper_parameters": {"maxpool": False}},
        {"config": {"model": {"activation": "SiLU"}}},
        {"hparams": {"global_pool": "max"}},
        {"args": argparse.Namespace(aa_layer="blurpool")},
    ],
)
def test_a_hint_at_another_network_is_not_passed_over(hint: dict[str, Any], resnet: nn.Module, tmp_path: Path) -> None:
    """What the file says of layers without tensors is held against torchvision's; --arch settles it."""
    if "blur18" in str(hint):
        pytest.importorskip("timm")
    content = {"state_dict": resnet.state_dict(), **hint}
    with pytest.raises(ArchitectureError, match="--arch resnet18"):
        load(content, tmp_path)
    assert same(load(content, tmp_path, arch="resnet18"), resnet)


def test_hints_that_agree_are_taken(resnet: nn.Module, tmp_path: Path) -> None:
    """The same options with torchvision's values, and a tag of timm's, change nothing; what is unseen is said."""
    hints = {
        "arch": "resnet18.a1_in1k",
        "hyper_parameters": {"activation": "relu", "pool": "avg", "maxpool": True, "lr": 1},
    }
    loaded = load({"state_dict": resnet.state_dict(), **hints}, tmp_path)
    assert same(loaded, resnet)
    assert "activations, pooling" in said(loaded)
    assert not loaded.info.assumptions


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(8, num_classes)
        self.conv = nn.Conv2d(3, 8, 3, 2)
    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def build(num_classes):
    return Net(num_classes)

def fixed():
    return Net(5)

def wide(width=8):
    return Net(5)

def wanting(size):
    return Net(5)
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    (tmp_path / "readings_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "readings_factory", raising=False)
    torch.manual_seed(0)
    return {
        "head.weight": torch.randn(5, 8), "head.bias": torch.randn(5),
        "conv.weight": torch.randn(8, 3, 3, 3), "conv.bias": torch.randn(8),
    }  # fmt: skip


def load_by(function: str, content: Any, folder: Path, **arguments: Any) -> LoadedClassifier:
    return load(content, folder, factory=f"readings_factory:{function}", input_shape=(3, 16, 16), **arguments)


@pytest.mark.parametrize("num_classes", [None, 5, 3])
def test_the_tensors_say_how_many_classes_a_factory_makes(
    num_classes: int | None, factory: State, tmp_path: Path
) -> None:
    """A head defined before the body, or safetensors in sorted order: C is what the tensors fit, whatever was tried."""
    loaded = load_by("build", factory, tmp_path, num_classes=num_classes)
    assert loaded.info.num_classes == 5
    assert "num_classes=5" in said(loaded)
    save_file(factory, tmp_path / "m.safetensors")
    arguments = {"factory": "readings_factory:build", "input_shape": (3, 16, 16), "num_classes": num_classes}
    assert load_classifier(tmp_path / "m.safetensors", **arguments).info.num_classes == 5  # type: ignore[arg-type]


def test_factories_without_num_classes(factory: State, tmp_path: Path) -> None:
    """A function whose signature has no num_classes is called without; one that wants something else fails."""
    for function in ("fixed", "wide"):
        loaded = load_by(function, factory, tmp_path)
        assert loaded.info.num_classes == 5
        assert "takes no num_classes" in said(loaded)
    with pytest.raises(ArchitectureError, match="failed: TypeError"):
        load_by("wanting", factory, tmp_path)


def test_what_lies_beside_a_factory_s_network_is_said(factory: State, tmp_path: Path) -> None:
    """A mean and std that stand beside the network are left out with a warning that shows them, as by recognition."""
    beside = {"mean": torch.tensor([0.5, 0.4, 0.3]), "std": torch.tensor([0.2, 0.2, 0.2])}
    loaded = load_by("build", under("model.", factory) | beside, tmp_path)
    assert [text for text in loaded.info.assumptions if "left out 2 tensors beside the network: mean 0.5" in text]


def test_a_factory_is_given_the_reading_that_fits(factory: State, tmp_path: Path) -> None:
    """Prefixes, averages and tensors beside the network are seen through as they are in recognition."""
    other = {name: tensor + 1 for name, tensor in factory.items()}
    strays = {"class_weights": torch.ones(5), **METRICS}
    plain = load_by("build", factory, tmp_path)
    x = torch.randn(2, 3, 16, 16)
    for content in (
        under("a.b._orig_mod.", factory) | strays,
        {"model": factory | strays},
        {"x": under("net.", factory)},
    ):
        loaded = load_by("build", content, tmp_path, num_classes=5)
        assert torch.equal(loaded(x), plain(x))
    both = {"state_dict": under("net.", factory), "ema": other}
    with pytest.raises(ArchitectureError, match="--weights ema takes 'ema'"):
        load_by("build", both, tmp_path)
    assert torch.equal(load_by("build", both, tmp_path, weights="model")(x), plain(x))
    front = {"0.mean": torch.zeros(3), "0.std": torch.ones(3), **under("1.", factory)}
    with pytest.raises(ArchitectureError, match="normalises the input"):
        load_by("build", front, tmp_path)


def test_timm_is_given_the_reading_that_fits(tmp_path: Path) -> None:
    """--arch timm:NAME sees through prefixes, strays, averages, and a head beside the body."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    built = timm.create_model("test_resnet", num_classes=C).eval()
    state, other = built.state_dict(), {name: tensor + 1 for name, tensor in built.state_dict().items()}
    for content in (
        {"state_dict": {**under("model.", state), "class_weights": torch.ones(C), **METRICS}},
        {"n_averaged": torch.tensor(3), **under("module.", state)},
        {"state_dict": _beside(state, "backbone.", "head.")},
        {**state, "class_weights": torch.ones(C)},
    ):
        assert same(load(content, tmp_path, arch="timm:test_resnet"), built)
    both = {"state_dict": state, "state_dict_ema": other}
    with pytest.raises(ArchitectureError, match="--weights ema takes 'state_dict_ema'"):
        load(both, tmp_path, arch="timm:test_resnet")
    assert same(load(both, tmp_path, arch="timm:test_resnet", weights="model"), built)
    vit = timm.create_model("test_vit", num_classes=C).eval()
    loaded = load({**under("model.", vit.state_dict()), "class_weights": torch.ones(C)}, tmp_path, arch="timm:test_vit")
    x = torch.randn(1, 3, *(loaded.info.fixed_size or (160, 160)))
    with torch.no_grad():
        assert torch.equal(loaded(x), vit(x))


def test_a_module_is_chosen_by_weights(small: nn.Module, other: nn.Module, tmp_path: Path) -> None:
    """Two whole modules in a trusted file, as ultralytics saves them, are asked about; one is taken."""
    content = {"model": small, "ema": other, "epoch": 1}
    with pytest.raises(ModelFileError, match="--weights ema or model"):
        load(content, tmp_path, trust_model_file=True)
    loaded = load(content, tmp_path, trust_model_file=True, weights="ema")
    assert same(loaded, other)
    assert "of no use" not in said(loaded)
    assert same(load({"model": None, "ema": other}, tmp_path, trust_model_file=True), other)
    with pytest.raises(ModelFileError, match="one whole network"):
        load(other, tmp_path, trust_model_file=True, weights="ema")


def test_values_beside_the_tensors_are_read_as_what_they_say(tmp_path: Path) -> None:
    """NumPy's numbers, paths and options are made without NumPy's or pathlib's code; other classes still need trust."""
    content = {
        "a": np.float64(1.5), "b": np.float32(-2.5), "c": np.int64(-3), "d": np.bool_(True), "e": Path("x/y"),
        "f": argparse.Namespace(lr=0.1), "g": np.dtype(">i4").type(5),
    }  # fmt: skip
    torch.save(content, tmp_path / "values.pth")
    read, note = read_checkpoint(read_snapshot(tmp_path / "values.pth"), trust=False)
    assert note is None
    assert (read["a"], read["b"], read["c"], read["d"], read["e"]) == (1.5, -2.5, -3, True, PurePosixPath("x/y"))
    assert type(read["a"]) is float
    assert vars(read["f"]) == {"lr": 0.1}
    assert read["g"] == 5
    torch.save({**content, "h": Fraction(1, 2)}, tmp_path / "more.pth")
    with pytest.raises(UntrustedModelError, match=r"needs code to load \(fractions\.Fraction\)"):
        read_checkpoint(read_snapshot(tmp_path / "more.pth"), trust=False)


@pytest.mark.parametrize("content", [b"", b"1234567", "text", None, 7])
def test_numbers_that_numpy_did_not_write_are_none(content: object) -> None:
    """A number of the wrong length, or of a type that is no number, is no number."""
    assert plain_values._number(plain_values._NumberType("f8"), content) is None
    assert plain_values._number(plain_values._NumberType("O8"), b"12345678") is None
    assert plain_values._number("f8", b"12345678") is None
    assert plain_values._bytes("x", "zip") is None

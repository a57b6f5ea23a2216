"""imbalance_perturb.models: the formats and wrappers that people save classifiers in, and what models return."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_perturb.errors import (
    ArchitectureError,
    ModelFileError,
    ModelOutputError,
    SettingsError,
    UntrustedModelError,
)
from imbalance_perturb.models import load_classifier, probe_classifier
from imbalance_perturb.models.classifier import one_row_each
from imbalance_perturb.models.formats.checkpoint import read_safetensors
from imbalance_perturb.models.formats.snapshot import read_snapshot

SHAPE = (3, 16, 16)


class Small(nn.Module):
    """A little network of nobody's kind, whose output a function may change."""

    def __init__(self, num_classes: int = 5, last: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = nn.Linear(8, num_classes)
        self.last = last

    def forward(self, x: Tensor) -> Any:
        z = self.head(self.conv(x).relu().mean((2, 3)))
        return z if self.last is None else self.last(z)


class Ending(nn.Module):
    """A scriptable network with a named ending."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = nn.Linear(8, 5)
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.conv(x).relu().mean((2, 3)))
        if self.ending == "softmax":
            return z.softmax(1)
        if self.ending == "log_softmax":
            return z.log_softmax(1)
        if self.ending == "sigmoid":
            return z.sigmoid()
        return z


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    network: nn.Module = torchvision.models.resnet18(num_classes=5)
    return network.eval()


def same_logits(path: Path, network: nn.Module, shape: tuple[int, ...] = (3, 32, 32), **arguments: Any) -> bool:
    loaded = load_classifier(path, input_shape=shape, **arguments)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        return torch.equal(loaded(x), network(x))


_WRAPPED: list[Callable[[dict[str, Tensor]], Any]] = [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}},
    lambda s: {"model_state_dict": s, "loss": 0.3},
    lambda s: {"model": s, "model_ema": s, "args": {"lr": 0.1}},
    lambda s: {"net": s, "acc": 91.0},
    lambda s: {"weights_of_mine": s, "epoch": 3},
    lambda s: {"module." + k: v for k, v in s.items()},
    lambda s: {"state_dict": {"model._orig_mod." + k: v for k, v in s.items()}, "pytorch-lightning_version": "2.0"},
    lambda s: {"state_dict": {**{"model." + k: v for k, v in s.items()}, "criterion.weight": torch.ones(5)}},
    lambda s: {**s, "epoch": 3},
]


@pytest.mark.parametrize("wrap", _WRAPPED)
@pytest.mark.parametrize("modern", [True, False])
def test_wrapped_and_prefixed_state_dicts_load(
    wrap: Callable[[Any], Any], modern: bool, resnet: nn.Module, tmp_path: Path
) -> None:
    """Wrapper keys, prefixes and entries beside the tensors are seen through, in both layouts of torch.save."""
    path = tmp_path / "model.bin"  # the suffix says nothing
    torch.save(wrap(resnet.state_dict()), path, _use_new_zipfile_serialization=modern)
    assert same_logits(path, resnet)


def test_averaged_parameters_are_not_used_silently(resnet: nn.Module, tmp_path: Path) -> None:
    """A file with an exponential average beside the parameters says which were taken."""
    torch.save({"state_dict": resnet.state_dict(), "state_dict_ema": resnet.state_dict()}, tmp_path / "m.pth")
    notes = load_classifier(tmp_path / "m.pth").info.notes
    assert any("state_dict_ema" in note for note in notes)


@pytest.mark.parametrize("modern", [True, False])
def test_a_checkpoint_saved_on_a_gpu_opens_on_a_cpu(
    modern: bool, resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose tensors are marked as being on cuda:0 loads onto the CPU, with the same logits."""
    path = tmp_path / "gpu.pth"
    with monkeypatch.context() as saving:
        # What torch.save writes beside each storage when it lies on a GPU.
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(resnet.state_dict(), path, _use_new_zipfile_serialization=modern)
    assert b"cuda:0" in path.read_bytes()
    loaded = load_classifier(path)
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), resnet(x))


def test_safetensors_load(resnet: nn.Module, tmp_path: Path) -> None:
    """A safetensors file gives the same logits, whatever it is called."""
    save_file(resnet.state_dict(), tmp_path / "model.pth")
    assert same_logits(tmp_path / "model.pth", resnet)
    assert load_classifier(tmp_path / "model.pth").info.format == "safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_in_float32(dtype: torch.dtype, resnet: nn.Module, tmp_path: Path) -> None:
    """Half and double precision tensors become float32, with a note."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in resnet.state_dict().items()}
    torch.save(state, tmp_path / "m.pth")
    loaded = load_classifier(tmp_path / "m.pth")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert any("float32" in note for note in loaded.info.notes)


def test_checkpoint_that_names_its_network(resnet: nn.Module, tmp_path: Path) -> None:
    """A recorded name is checked: torchvision's is accepted, timm's variant with the same tensors is asked about."""
    pytest.importorskip("timm")
    torch.save({"arch": "resnet18", "state_dict": resnet.state_dict()}, tmp_path / "a.pth")
    assert load_classifier(tmp_path / "a.pth").info.arch == "resnet18"
    torch.save({"arch": "resnetblur18", "state_dict": resnet.state_dict()}, tmp_path / "b.pth")
    with pytest.raises(ArchitectureError, match="--arch timm:resnetblur18 or --arch resnet18"):
        load_classifier(tmp_path / "b.pth")
    assert load_classifier(tmp_path / "b.pth", arch="resnet18").info.num_classes == 5
    torch.save({"arch": "my-net", "state_dict": resnet.state_dict()}, tmp_path / "c.pth")
    assert any("my-net" in note for note in load_classifier(tmp_path / "c.pth").info.notes)


def test_timm_network_by_name(tmp_path: Path) -> None:
    """``--arch timm:NAME`` builds timm's network with the file's classes and channels; a plain try hints at it."""
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=4, in_chans=1).eval()
    torch.save({"arch": "resnet10t", "state_dict": network.state_dict()}, tmp_path / "m.pth")
    assert same_logits(tmp_path / "m.pth", network, (1, 32, 32), arch="timm:resnet10t")
    info = load_classifier(tmp_path / "m.pth", arch="timm:resnet10t").info
    assert (info.num_classes, info.in_channels, info.format) == (4, 1, "timm state_dict")
    with pytest.raises(ArchitectureError, match="try --arch timm:resnet10t"):
        load_classifier(tmp_path / "m.pth")
    with pytest.raises(ArchitectureError, match="did you mean"):
        load_classifier(tmp_path / "m.pth", arch="timm:resnet10")
    with pytest.raises(ArchitectureError, match="do not fit --arch timm:resnet26"):
        load_classifier(tmp_path / "m.pth", arch="timm:resnet26")


def test_timm_vit_reports_its_image_size(tmp_path: Path) -> None:
    """A timm ViT takes one image size, given as a builder option where it is not the default."""
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=32).eval()
    torch.save(network.state_dict(), tmp_path / "m.pth")
    loaded = load_classifier(tmp_path / "m.pth", arch="timm:vit_tiny_patch16_224,img_size=32")
    assert loaded.info.fixed_size == (32, 32)
    assert loaded.info.num_classes == 4


def test_missing_timm_is_said(resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm installed the error says how to install it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    torch.save(resnet.state_dict(), tmp_path / "m.pth")
    with pytest.raises(ArchitectureError, match=r"pip install 'imbalance-perturb\[timm\]'"):
        load_classifier(tmp_path / "m.pth", arch="timm:resnet18")


_FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = nn.Linear(8, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def build(num_classes):
    return Net(num_classes)

def nothing(num_classes):
    return None

def no_argument():
    return Net(3)

def broken(num_classes):
    raise ZeroDivisionError("no\\nluck")

def wider(num_classes):
    return nn.Sequential(nn.Linear(3, num_classes))

constant = 3
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_factory.py").write_text(_FACTORY)
    (tmp_path / "my_broken.py").write_text("import not_there_at_all")
    (tmp_path / "my_typo.py").write_text("def build(:")
    monkeypatch.chdir(tmp_path)
    for name in ("my_factory", "my_broken", "my_typo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    torch.save(Small(5).state_dict(), tmp_path / "m.pth")
    return tmp_path / "m.pth"


def test_factory_builds_any_network(factory: Path) -> None:
    """A function in the current directory is called with the number of classes and gets the file's tensors."""
    small = Small(5).eval()
    small.load_state_dict(torch.load(factory))
    path = list(sys.path)
    assert same_logits(factory, small, SHAPE, factory="my_factory:build")
    info = load_classifier(factory, factory="my_factory:build", input_shape=SHAPE).info
    assert (info.format, info.num_classes, info.outputs) == ("factory", 5, "logits")
    assert any("head.weight" in note for note in info.notes)
    assert sys.path == path


@pytest.mark.parametrize(
    ("factory_name", "reason"),
    [
        ("my_missing:build", "module 'my_missing' is not found"),
        ("my_broken:build", "module 'not_there_at_all' is not found"),
        ("my_typo:build", "importing my_typo failed: SyntaxError"),
        ("my_factory:missing", "no function 'missing'"),
        ("my_factory:constant", "no function 'constant'"),
        ("my_factory:nothing", "returned NoneType"),
        ("my_factory:no_argument", r"head.weight \[5, 8\] instead of \[3, 8\]"),
        ("my_factory:broken", "failed: ZeroDivisionError: no"),
        ("my_factory:wider", "2 missing"),
        ("my_factory", "expected package.module:function"),
    ],
)
def test_factory_errors_are_one_line(factory: Path, factory_name: str, reason: str) -> None:
    """Whatever goes wrong with the user's own function is said in one line."""
    with pytest.raises(ArchitectureError, match=reason) as caught:
        load_classifier(factory, factory=factory_name, input_shape=SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_torchscript_loads(how: str, tmp_path: Path) -> None:
    """Scripted, traced and frozen TorchScript give their logits."""
    network = Ending("none").eval()
    x = torch.randn(2, *SHAPE)
    module = torch.jit.trace(network, x) if how == "trace" else torch.jit.script(network)
    if how == "freeze":
        module = torch.jit.freeze(module)
    module.save(str(tmp_path / "m.pt"))
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    assert loaded.info.format == "torchscript"
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x))


def test_half_precision_torchscript_is_converted(tmp_path: Path) -> None:
    """TorchScript saved in half precision runs in float32."""
    torch.jit.script(Ending("none").eval().half()).save(str(tmp_path / "m.pt"))
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    assert loaded(torch.randn(2, *SHAPE)).dtype == torch.float32


def test_one_channel_torchscript_is_tried_on_one_channel(tmp_path: Path) -> None:
    """A network for grey images is looked at with one channel, whatever the caller's default says."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    torch.jit.trace(network, torch.randn(1, 1, 8, 8)).save(str(tmp_path / "m.pt"))
    assert load_classifier(tmp_path / "m.pt").info.in_channels == 1


def export(
    network: nn.Module, path: Path, images: int = 2, batch: object = None, shape: tuple[int, ...] = SHAPE
) -> None:
    shapes = ({0: batch},) if batch is not None else None
    torch.export.save(torch.export.export(network.eval(), (torch.randn(images, *shape),), dynamic_shapes=shapes), path)


@pytest.mark.parametrize(
    ("images", "limits", "fixed"), [(2, None, 2), (1, None, 1), (3, (1, 64), None), (3, (2, 3), None)]
)
def test_exported_programs_take_any_batch(
    images: int, limits: tuple[int, int] | None, fixed: int | None, tmp_path: Path
) -> None:
    """A batch beyond an exported program's own size is cut and padded, and stays differentiable."""
    network = Small(5)
    batch = torch.export.Dim("batch", min=limits[0], max=limits[1]) if limits else None
    export(network, tmp_path / "m.pt2", images, batch)
    loaded = load_classifier(tmp_path / "m.pt2", input_shape=(3, 224, 224))
    assert loaded.info.fixed_batch == fixed
    assert loaded.info.fixed_size == (16, 16)
    assert loaded.info.format == "torch.export"
    for n in (1, 2, 5, 7):
        x = torch.randn(n, *SHAPE, requires_grad=True)
        torch.testing.assert_close(loaded(x), network(x))
        (mine,) = torch.autograd.grad(loaded(x).sum(), x)
        (theirs,) = torch.autograd.grad(network(x).sum(), x)
        torch.testing.assert_close(mine, theirs)
    probe_classifier(loaded, SHAPE, num_classes=5)


def test_exported_torchvision_network_loads(resnet: nn.Module, tmp_path: Path) -> None:
    """A real exported network with a dynamic batch passes the checks of its archive and gives the same logits."""
    export(resnet, tmp_path / "m.pt2", 2, torch.export.Dim("batch"), (3, 32, 32))
    assert same_logits(tmp_path / "m.pt2", resnet)


def test_export_with_dynamic_sizes_and_conditions_loads(tmp_path: Path) -> None:
    """Symbolic expressions of image sizes in an honest file are not mistaken for code."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        network.eval(), (torch.randn(2, *SHAPE),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load_classifier(tmp_path / "m.pt2", input_shape=SHAPE)
    assert loaded.info.fixed_size is None
    assert loaded(torch.randn(1, 3, 24, 40)).shape == (1, 3)


def test_export_with_two_inputs_is_refused(tmp_path: Path) -> None:
    """A program that takes more than images cannot be used."""

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (torch.ones(2, 3), torch.ones(2, 3))), tmp_path / "m.pt2")
    with pytest.raises(ModelOutputError, match="takes 2 inputs"):
        load_classifier(tmp_path / "m.pt2")


def test_pickled_module_needs_trust(tmp_path: Path) -> None:
    """A whole pickled module is refused, naming the classes it needs, and loads when trusted, with a note."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for content in (network, {"model": network, "epoch": 2}, nn.DataParallel(network)):
        torch.save(content, tmp_path / "m.pt")
        with pytest.raises(UntrustedModelError, match=r"torch\.nn\.modules.*--trust-model-file"):
            load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
        loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE, trust_model_file=True)
        assert loaded.info.format == "pickled module"
        assert any("as trusted" in note for note in loaded.info.notes)
        x = torch.randn(2, *SHAPE)
        assert torch.equal(loaded(x), network(x))
        assert not any(module.training for module in loaded.modules())


def test_trust_is_not_used_where_it_is_not_needed(resnet: nn.Module, tmp_path: Path) -> None:
    """A plain state_dict loads without code even when the file is trusted, and the notes claim nothing else."""
    torch.save(resnet.state_dict(), tmp_path / "m.pth")
    assert not any("trusted" in n for n in load_classifier(tmp_path / "m.pth", trust_model_file=True).info.notes)


def test_softmax_outputs_become_logits(tmp_path: Path) -> None:
    """Probabilities are told by looking, and their logarithms give the same softmax at any temperature."""
    network = Ending("softmax").eval()
    torch.jit.script(network).save(str(tmp_path / "m.pt"))
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    assert loaded.info.outputs == "probabilities"
    x = torch.randn(4, *SHAPE)
    z = network.head(network.conv(x).relu().mean((2, 3)))
    for temperature in (1, 1000):
        torch.testing.assert_close((loaded(x) / temperature).softmax(1), (z / temperature).softmax(1))
    probe_classifier(loaded, SHAPE)
    as_logits = load_classifier(tmp_path / "m.pt", input_shape=SHAPE, outputs="logits")
    assert torch.equal(as_logits(x), network(x))


def test_probability_of_exactly_zero_stays_finite(tmp_path: Path) -> None:
    """A saturated softmax gives finite logits."""
    network = Small(3, lambda z: torch.eye(3)[torch.zeros(len(z), dtype=torch.long)] + 0 * z)
    export(network, tmp_path / "m.pt2")
    loaded = load_classifier(tmp_path / "m.pt2", input_shape=SHAPE)
    assert loaded.info.outputs == "probabilities"
    assert torch.isfinite(loaded(torch.randn(2, *SHAPE))).all()


def test_log_softmax_outputs_serve_as_they_are(tmp_path: Path) -> None:
    """Log-probabilities are logits already."""
    torch.jit.script(Ending("log_softmax").eval()).save(str(tmp_path / "m.pt"))
    assert load_classifier(tmp_path / "m.pt", input_shape=SHAPE).info.outputs == "logits"


def test_sigmoid_scores_are_refused(tmp_path: Path) -> None:
    """Independent scores are refused unless the user says that they are logits."""
    torch.jit.script(Ending("sigmoid").eval()).save(str(tmp_path / "m.pt"))
    with pytest.raises(ModelOutputError, match=r"sigmoid.*--outputs logits"):
        load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    assert load_classifier(tmp_path / "m.pt", input_shape=SHAPE, outputs="logits").info.outputs == "logits"


def test_a_head_of_zeros_is_not_taken_for_scores(tmp_path: Path) -> None:
    """A network that begins with a head of zeros (as ViT does) returns logits, if useless ones."""
    network = Ending("none").eval()
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    torch.jit.script(network).save(str(tmp_path / "m.pt"))
    assert load_classifier(tmp_path / "m.pt", input_shape=SHAPE).info.outputs == "logits"


def test_probabilities_claimed_of_logits_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    """``--outputs probabilities`` for a network that returns logits would take logarithms of negative numbers."""
    torch.save(resnet.state_dict(), tmp_path / "m.pth")
    with pytest.raises(ModelOutputError, match="use --outputs logits"):
        load_classifier(tmp_path / "m.pth", outputs="probabilities", input_shape=(3, 32, 32))


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    """An unknown kind of output, or two ways to name the network, are wrong usage."""
    with pytest.raises(SettingsError, match="outputs is 'scores'"):
        load_classifier(tmp_path / "m.pth", outputs="scores")
    with pytest.raises(SettingsError, match="both"):
        load_classifier(tmp_path / "m.pth", arch="resnet18", factory="a:b")


def test_arch_for_a_ready_network_is_noted(tmp_path: Path) -> None:
    """TorchScript brings its own network; a name given for it changes nothing and the user is told."""
    torch.jit.script(Ending("none").eval()).save(str(tmp_path / "m.pt"))
    notes = load_classifier(tmp_path / "m.pt", arch="resnet18", input_shape=SHAPE).info.notes
    assert any("of no use" in note for note in notes)


def test_a_failing_forward_is_explained(tmp_path: Path) -> None:
    """An input of the wrong shape gets the model's own reason and a remedy in one line."""
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 3))).save(str(tmp_path / "m.pt"))
    with pytest.raises(ModelOutputError, match=r"fails on images of shape \(3, 16, 16\).*--resize") as caught:
        load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    assert "\n" not in str(caught.value)


class HasLogits:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(2, 3),
        torch.ones(2, 3, 1, 1),
        (torch.ones(2, 3), torch.zeros(2, 3, 4, 4)),
        [torch.ones(2, 3)],
        {"logits": torch.ones(2, 3), "features": torch.zeros(2, 8)},
        {"out": torch.ones(2, 3), "aux": torch.zeros(2, 3)},
        {"anything": torch.ones(2, 3), "name": "x"},
        HasLogits(torch.ones(2, 3)),
    ],
)
def test_logits_are_found_in_what_models_return(output: object) -> None:
    """Tuples, dicts, objects and 1 × 1 maps are seen through."""
    assert torch.equal(one_row_each(output, 2), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (torch.ones(2, 1), "single logit"),
        (torch.ones(2), "single logit"),
        (torch.ones(2, 3, 4, 4), r"\(2, 3, 4, 4\)"),
        (torch.ones(3, 3), r"\(3, 3\) for 2 images"),
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, r"a dict with 'a' \(2, 3\), 'b' \(2, 3\)"),
        ((torch.ones(2, 3), torch.zeros(2, 3)), "nothing tells which"),
        ((1, 2), "a tuple without a tensor"),
        (None, "NoneType"),
        ("text", "str"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(output: object, reason: str) -> None:
    """Anything else is refused with what was found."""
    with pytest.raises(ModelOutputError, match=reason):
        one_row_each(output, 2)


def test_ambiguous_checkpoints_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    """Two networks in one file, and a file without any, name the keys found."""
    state = resnet.state_dict()
    for content, reason in (
        ({"first": state, "second": {**state, "fc.bias": torch.ones(5)}}, "'first' .* 'second'"),
        ({"epoch": 3, "lr": 0.1}, "'epoch', 'lr'"),
        ([torch.ones(3)], "a list"),
        (torch.ones(3, 3), r"a single tensor of shape \(3, 3\)"),
        ({}, "an empty dict"),
    ):
        torch.save(content, tmp_path / "m.pth")
        with pytest.raises(ModelFileError, match=reason):
            load_classifier(tmp_path / "m.pth")


@pytest.mark.skin7
def test_the_skin7_checkpoints_load(shared_dir: Path) -> None:
    """Both real checkpoints load, pass the probe and report what they are."""
    models = shared_dir / "models"
    resnet18 = load_classifier(models / "skin7_resnet18.pth", input_shape=(3, 64, 64))
    lite = load_classifier(models / "skin7_efficientnet_lite0.torchscript.pt", input_shape=(3, 112, 112))
    assert (resnet18.info.arch, resnet18.info.num_classes) == ("resnet18", 7)
    assert (lite.info.format, lite.info.num_classes, lite.info.in_channels) == ("torchscript", 7, 3)
    assert probe_classifier(resnet18, (3, 64, 64), num_classes=7).gradient_nonzero > 0.99
    assert probe_classifier(lite, (3, 112, 112), num_classes=7).gradient_nonzero > 0.99


def test_safetensors_have_one_order(tmp_path: Path) -> None:
    """A factory is given the same number of classes each time, where the order of the tensors decides it."""
    save_file({f"{layer:02}.weight": torch.zeros(3, 3) for layer in range(20)}, tmp_path / "m.safetensors")
    orders = {tuple(read_safetensors(read_snapshot(tmp_path / "m.safetensors"))) for _ in range(5)}
    assert orders == {tuple(f"{layer:02}.weight" for layer in range(20))}

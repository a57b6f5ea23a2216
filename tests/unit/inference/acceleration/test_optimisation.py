from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imbalance_perturb.inference.acceleration import convolution
from imbalance_perturb.inference.acceleration.convolution import Activation, FusedConvolution, available
from imbalance_perturb.inference.acceleration.optimisation import lower, optimise

#: A low-precision type whose fused operations this CPU may not have.
BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not available(torch.bfloat16), reason="oneDNN has no bfloat16 convolutions on this CPU"),
)


#: Pixels of the images of a transformer.
VIT_SIZE = 64


def trained_like(name: str) -> nn.Module:
    """A network whose batch norms are not the identity, frozen and in eval mode."""
    torch.manual_seed(0)
    # Few patches: its layers are what counts, and bfloat16 is emulated on many a CPU.
    options = {"image_size": VIT_SIZE} if name.startswith("vit") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    if name.startswith("vit"):
        nn.init.normal_(model.heads[0].weight, std=0.02)  # made with zeros: no logit would depend on the image
    return model.eval().requires_grad_(False)


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    """Gradient of a mix of logits at the input."""
    leaf = x.detach().clone().requires_grad_(True)
    logits = network(leaf.clone())
    v = torch.linspace(-1, 1, logits.shape[1]).expand_as(logits)
    return torch.autograd.grad(logits, leaf, v)[0]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("resnet18", "batch norm folded into 20 convolutions, 20 fused convolutions, channels-last"),
        ("mobilenet_v2", "batch norm folded into 52 convolutions, 52 fused convolutions, channels-last"),
        ("densenet121", "folded into 59 convolutions, 120 fused convolutions, 4 dense blocks, channels-last"),
        ("shufflenet_v2_x0_5", "56 fused convolutions, channels-last"),
        ("efficientnet_b0", "81 fused convolutions, channels-last"),
        ("squeezenet1_1", "25 fused convolutions, channels-last"),
        ("vit_b_32", "1 fused convolutions, channels-last"),
    ],
)
def test_the_optimised_network_computes_the_same(name: str, path: str) -> None:
    """Logits and the input's gradient move by rounding only, with or without autograd, at other sizes too."""
    model = trained_like(name)
    size = VIT_SIZE if name.startswith("vit") else 96
    x = torch.randn(4, 3, size, size)
    with torch.no_grad():
        expected = model(x)
    network, done = optimise(copy.deepcopy(model), x[:2])
    assert done.path.endswith(path)
    assert done.difference < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(network(x.clone().requires_grad_()), network(x))
    # A rectified unit whose input is a rounding error away from 0 changes the gradient of whatever lies before it.
    assert (gradient(network, x) - gradient(model, x)).norm() < 0.02 * gradient(model, x).norm()
    if size == 96:
        other = torch.randn(1, 3, 71, 113)
        with torch.no_grad():
            torch.testing.assert_close(network(other), model(other), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_rewritten_gradient_is_exact_to_rounding() -> None:
    """Without kinks (no activation at all) the rewritten network's gradient is autograd's to rounding."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 4, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().requires_grad_(False)
    x = torch.randn(3, 3, 33, 40)
    network, _ = optimise(copy.deepcopy(model), x)
    exact = gradient(copy.deepcopy(model).double(), x.double())
    torch.testing.assert_close(gradient(network, x).double(), exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_two_gradients_from_one_forward_pass_agree_with_one_each(name: str) -> None:
    """Buffers that are written in place don't spoil a second backward pass over the same forward pass."""
    network, _ = optimise(trained_like(name), torch.randn(2, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = network(x)
    once = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in (0, 1, 0)]
    torch.testing.assert_close(once[0], once[2], rtol=0, atol=0)
    alone = torch.autograd.grad(network(x)[:, 1].sum(), x)[0]
    torch.testing.assert_close(once[1], alone)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "vit_b_32"])
def test_the_low_precision_network_stands_beside_the_full_one(name: str) -> None:
    """bfloat16 gives float32 logits and gradients near the full network's, which stays exactly as it was."""
    model = trained_like(name)
    size = VIT_SIZE if name.startswith("vit") else 96
    x = torch.randn(4, 3, size, size)
    network, _ = optimise(model, x[:2])
    with torch.no_grad():
        before = network(x)
        low, done = lower(network, x[:2], torch.bfloat16)
        assert "bfloat16" in done.path
        found = low(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(network(x), before, rtol=0, atol=0)
    assert (found - before).abs().max() < 0.1 * before.abs().max()
    assert not torch.equal(found, before)
    a, b = (gradient(module, x).flatten().double() for module in (low, network))
    assert a @ b > 0.9 * a.norm() * b.norm()


def test_a_small_step_survives_low_precision() -> None:
    """x and x + 0.001 give different logits in bfloat16: the first layer still sees the step."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    network, _ = optimise(model.requires_grad_(False), torch.ones(2, 3, 8, 8))
    low, _ = lower(network, torch.ones(2, 3, 8, 8), torch.bfloat16)
    first = next(module for module in low.modules() if isinstance(module, FusedConvolution))
    with torch.no_grad():
        assert first.forward_dtype == torch.float32
        x = torch.rand(64, 3, 8, 8)
        moved, exact = low(x + 0.001) - low(x), network(x + 0.001) - network(x)
    # Rounding of what comes after hides it in one image, not in the mean of many.
    torch.testing.assert_close(moved.mean(0), exact.mean(0), rtol=0.5, atol=2e-4)
    assert bool(moved.any())


class Branching(nn.Module):
    """Its forward looks at values, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.fc(y.mean(dim=(2, 3)) if float(y.detach().sum()) > 0 else y.amax(dim=(2, 3)))


class SharedConvolution(nn.Module):
    """One convolution before two different batch norms: folding would have to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.first.weight, 3.0)
        nn.init.constant_(self.second.bias, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)))).mean(dim=(2, 3))


@pytest.mark.parametrize("model", [Branching(), SharedConvolution()], ids=["branching", "shared"])
def test_what_cannot_be_rewritten_runs_as_it_is(model: nn.Module) -> None:
    """A network that cannot be traced, or that folding would change, gives the same logits all the same."""
    model = model.eval().requires_grad_(False)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        network, _ = optimise(copy.deepcopy(model), x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


class Returning(nn.Module):
    """Writes into a tensor that it reads again afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y.relu_()
        return self.fc((y + z).mean(dim=(2, 3)))


def as_torchscript(model: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, x)


def as_exported(model: nn.Module, x: Tensor) -> nn.Module:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()


@pytest.mark.parametrize("as_file", [as_torchscript, as_exported])
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "vgg11_bn", "shufflenet_v2_x0_5"]
)
def test_files_that_bring_their_network_are_rewritten_too(
    name: str, as_file: Callable[[nn.Module, Tensor], nn.Module]
) -> None:
    """TorchScript and exported programs take the same path as a network built here, and answer the same."""
    model, x = trained_like(name), torch.randn(3, 3, 64, 64)
    file = as_file(model, x)
    network, done = optimise(file, x[:2])
    assert "fused convolutions" in done.path
    assert "batch norm folded" in done.path
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert (gradient(network, x) - gradient(model, x)).norm() < 0.02 * gradient(model, x).norm()


@pytest.mark.parametrize("as_file", [as_torchscript, as_exported])
def test_a_file_that_writes_in_place_answers_the_same(as_file: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    """A tensor that is written to and read again ends the attempt to convert, or is converted rightly."""
    model, x = Returning().eval().requires_grad_(False), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        network, _ = optimise(as_file(model, x), x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_control_flow_in_torchscript_runs_as_it_is() -> None:
    """A scripted branch on values has no place in a flat graph: both branches still answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(Scripted().eval().requires_grad_(False))
    x = torch.randn(2, 3, 8, 8)
    network, done = optimise(model, x)
    assert "fused" not in done.path
    with torch.no_grad():
        for batch in (x.abs(), -x.abs()):
            torch.testing.assert_close(network(batch), model(batch))


class Viewing(nn.Module):
    """Flattens by `view`, which a channels-last tensor refuses, to a size worked out from the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 14 * 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu_()
        return self.fc(y.view(x.size(0), -1))


def as_scripted(model: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


@pytest.mark.parametrize("as_file", [lambda model, x: model, as_torchscript, as_scripted, as_exported])
def test_views_are_no_obstacle(as_file: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    """A network that flattens by `view` is rewritten, and takes batches of any size as before."""
    model, x = Viewing().eval().requires_grad_(False), torch.randn(3, 3, 16, 16)
    network, done = optimise(as_file(copy.deepcopy(model), x), x[:2])
    assert "1 fused convolutions" in done.path
    with torch.no_grad():
        for batch in (x, x[:1], torch.randn(5, 3, 16, 16)):
            torch.testing.assert_close(network(batch), model(batch), rtol=1e-4, atol=1e-5)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean(dim=(2, 3))
        return y if bool(x.sum() > 0) else 2.0 * y


def test_other_outputs_are_left_alone() -> None:
    """A network that returns a dict is handed back as it is."""

    class Dict(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.mean(dim=(2, 3))}

    network = Dict().eval()
    assert optimise(network, torch.randn(2, 3, 8, 8))[0] is network


@pytest.mark.parametrize("dtype", [BFLOAT16])
def test_weights_that_onednn_cannot_pack_are_used_as_they_are(dtype: torch.dtype) -> None:
    """A geometry whose layout has no name (three channels depthwise, one pixel wide, bfloat16) still computes."""
    conv = nn.Conv2d(3, 3, 3, 2, 1, groups=3).requires_grad_(False)
    x = torch.randn(2, 3, 2, 1, requires_grad=True)
    fused = FusedConvolution(conv, sizes=(x.shape, conv(x).shape), dtype=dtype)
    found, expected = fused(x), conv(x)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    wanted = torch.autograd.grad(expected.sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(found.float().sum(), x)[0], wanted, rtol=0.05, atol=0.05)


def test_a_cpu_without_bfloat16_convolutions_runs_bfloat16_by_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN's bfloat16 operations would raise, torch's own compute the low-precision network."""
    monkeypatch.setattr(convolution, "_computes_bfloat16", lambda: False)
    x = torch.randn(4, 3, 64, 64)
    network, _ = optimise(trained_like("resnet18"), x[:2])
    low, done = lower(network, x[:2], torch.bfloat16)
    assert done.path == "bfloat16 by autocast"
    torch.testing.assert_close(low(x), network(x), rtol=0.1, atol=0.1)
    assert torch.isfinite(gradient(low, x)).all()


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_fused_convolution_is_convolution_shortcut_activation(dtype: torch.dtype, data: st.DataObject) -> None:
    """Forward and backward equal torch's own float64 operations, for any geometry, activation and shortcut."""
    draw = data.draw
    kernel, stride = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    depthwise = draw(st.booleans())
    channels = draw(st.sampled_from([1, 3, 4, 6, 16]))
    groups = channels if depthwise else draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    out = channels if depthwise else draw(st.sampled_from([2, 6, 8]))
    # A dilated kernel of 1 does not exist: with padding, torch's own conv2d ends the process on some of those.
    padding, dilation = draw(st.integers(0, kernel)), draw(st.sampled_from([1, 1, 2])) if kernel > 1 else 1
    reach = dilation * (kernel - 1) + 1
    height, width = (draw(st.integers(max(1, reach - 2 * padding), 24)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 99)))
    conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    conv.requires_grad_(False)
    activation = draw(st.sampled_from(list(Activation)))
    x = torch.randn(2, channels, height, width)
    plain = conv(x)
    shortcut = torch.randn_like(plain) if draw(st.booleans()) else None
    scale = torch.rand(channels) + 0.5 if draw(st.booleans()) else None
    fused = FusedConvolution(conv, activation, sizes=(x.shape, plain.shape), dtype=dtype, input_scale=scale)

    leaves = [leaf.clone().requires_grad_() for leaf in (x, shortcut) if leaf is not None]
    y = fused(*leaves)
    v = torch.randn_like(plain)
    found = torch.autograd.grad(y, leaves, v.to(dtype))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    z = conv.double()(exact[0]) + (exact[1] if len(exact) > 1 else 0.0)
    expected = {"none": lambda t: t, "relu": torch.relu, "hardtanh": nn.functional.relu6}[activation.value](z)
    wanted = list(torch.autograd.grad(expected, exact, v.double()))
    if scale is not None:
        wanted[0] = wanted[0] * scale.double().view(1, -1, 1, 1)
    assert y.dtype == dtype
    expected, z = expected.detach(), z.detach()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 0.1))
    # An output that rounding carries over a kink flips a whole gradient: such elements are rare, not wrong.
    kinks = (0.0, 6.0) if activation is Activation.RELU6 else (0.0,)
    clear = torch.stack([(z - kink).abs() for kink in kinks]).amin(0) > tolerance * float(z.abs().max() + 0.1)
    if activation is Activation.NONE or bool(clear.all()):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max() + 0.1))


def test_a_scripted_network_is_rewritten_as_its_own_layers() -> None:
    """What only raises an error for an input that does not fit is no control flow to give up on."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4).eval().requires_grad_(False)
    x = torch.randn(2, 3, 64, 64)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), stream)
        stream.seek(0)
        found, done = optimise(torch.jit.load(stream), x)
    assert done.path.startswith("batch norm folded into 20 convolutions")
    torch.testing.assert_close(found(x), network(x), rtol=1e-4, atol=1e-4)

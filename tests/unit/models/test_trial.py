"""imbalance_perturb.models.trial: why a network fails on a trial image, and what kind of numbers it returns."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelGradientError, ModelOutputError
from imbalance_perturb.models import load_classifier, probe_classifier
from tests.faults.test_model_files import rewrite

SHAPE = (3, 16, 16)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class Placed(Small):
    """Makes a tensor on its input's device, which a trace keeps as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)) + torch.zeros(x.shape[0], 4, device=x.device))


class Halved(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.half()).mean((2, 3)))


class Last(Small):
    """Wants (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.permute(0, 3, 1, 2)).mean((2, 3)))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class TwoInputs(Small):
    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3))) + age


def traced(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(network.eval(), torch.randn(1, *SHAPE)), buffer)
    return buffer.getvalue()


def scripted(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network.eval()), buffer)
    return buffer.getvalue()


def on_gpu(archive: bytes) -> bytes:
    """The file as if it had been made on a GPU."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'torch.device("cpu")', b'torch.device("cuda:0")'))
    assert len(buffer.getvalue()) != len(archive)
    return buffer.getvalue()


FAILING: dict[str, tuple[Callable[[], bytes], str]] = {
    "cuda": (lambda: on_gpu(traced(Placed())), "tied to a GPU: a device such as cuda:0 is a constant.*on the CPU"),
    "half, scripted": (lambda: scripted(Halved().half()), r"make it in float32: model\.float\(\)"),
    "half, traced": (lambda: traced(Halved().half()), r"make it in float32: model\.float\(\)"),
    "channels last": (lambda: scripted(Last()), r"channels last.*x\.permute\(0, 2, 3, 1\)"),
    "sequence": (lambda: scripted(Sequence()), "LSTM.*made for something other than a batch of images"),
    "tokens": (
        lambda: scripted(nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(4, 5))),
        "made for something other than a batch of images",
    ),
    "volume": (
        lambda: scripted(nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5))),
        "made for something other than a batch of images",
    ),
    "two inputs": (lambda: scripted(TwoInputs()), "wrap it so that it takes that alone"),
    "gray": (
        lambda: scripted(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))),
        "it takes images of 1 channels: --color gray",
    ),
    "size": (lambda: scripted(nn.Sequential(nn.Flatten(), nn.Linear(12, 5))), "give it the image size and channels"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_each_kind_of_failure_has_one_message(kind: str, tmp_path: Path) -> None:
    """What the reason is decides what is advised: the image size only where nothing else is known."""
    if kind == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    make, reason = FAILING[kind]
    (tmp_path / "m.pt").write_bytes(make())
    shape = (1, 16, 16) if kind == "tokens" else SHAPE
    if kind == "gray":  # its first layer tells, so that it is tried with one channel, and then shown colour
        loaded = load_classifier(tmp_path / "m.pt", input_shape=shape)
        with pytest.raises(ModelOutputError, match=reason):
            probe_classifier(loaded, SHAPE)
        return
    with pytest.raises(ModelOutputError, match=reason) as caught:
        load_classifier(tmp_path / "m.pt", input_shape=shape)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "m.pt"))
    assert "\n" not in message
    assert ("--resize" in message) == (kind == "size")


class OneImage(Small):
    """Flattens to a batch of one, as many a tutorial does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)).view(1, -1))


class OneRow(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x)[0].relu().mean((1, 2))).unsqueeze(0)


@pytest.mark.parametrize("make", [OneImage, OneRow])
def test_a_trace_of_one_image_takes_one_at_a_time(make: type[nn.Module], tmp_path: Path) -> None:
    """Where the batch of one is a constant of the trace, images go through alone, are right, and it is said."""
    network = make()
    (tmp_path / "m.pt").write_bytes(traced(network))
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    assert (loaded.info.fixed_batch, loaded.batch_range) == (1, (1, 1))
    assert any("a batch of 1 is a constant" in note for note in loaded.info.notes)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(loaded(x), torch.cat([network(image) for image in x.split(1)]))
    probe_classifier(loaded, SHAPE, num_classes=5)


def test_a_size_that_the_model_fixes_is_named(tmp_path: Path) -> None:
    """An exported program of another size says which options make its own."""
    torch.export.save(torch.export.export(Small().eval(), (torch.randn(2, *SHAPE),)), tmp_path / "m.pt2")
    loaded = load_classifier(tmp_path / "m.pt2")
    with pytest.raises(ModelOutputError, match=r"^the model fails .*16 x 16 alone: --resize 16,16 --crop none"):
        probe_classifier(loaded, (3, 32, 32))


def test_an_export_of_a_gpu_runs_without_one(tmp_path: Path) -> None:
    """Its tensors, and those that its graph makes, are on the CPU here, and its logits those of the network."""
    buffer, network, x = io.BytesIO(), Placed().eval(), torch.randn(1, *SHAPE)
    with pytest.MonkeyPatch.context() as saving:
        # What torch.save writes beside each storage when it lies on a GPU.
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.export.save(torch.export.export(network, (x,)), buffer)

    def change(name: str, content: bytes) -> bytes:
        cpu, gpu = b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}'
        return content.replace(cpu, gpu) if name.endswith(".json") else content

    path = rewrite(buffer.getvalue(), tmp_path / "m.pt2", change)
    assert b'"cuda", "index": 0' in path.read_bytes()
    loaded = load_classifier(path, input_shape=SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x))
    loaded.place_on(torch.device("meta"))
    assert loaded(x.to("meta")).device.type == "meta"


class Ending(Small):
    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.conv(x).relu().mean((2, 3)))
        if self.ending == "percent":
            return 100 * z.softmax(1)
        return z.log_softmax(1) if self.ending == "log" else z.sigmoid()


def test_percentages_are_taken_as_such_only_if_the_user_says_so(tmp_path: Path) -> None:
    """Rows that sum to 100 are neither logits nor probabilities of themselves; said to be, they are a softmax."""
    network = Ending("percent")
    (tmp_path / "m.pt").write_bytes(scripted(network))
    with pytest.raises(
        ModelOutputError, match=r"sum to 100, like percentages.*--outputs probabilities.*--outputs logi"
    ):
        load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE, outputs="probabilities")
    assert loaded.info.outputs == "probabilities"
    assert any("percentages" in note for note in loaded.info.notes)
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(loaded(x).softmax(1), network(x) / 100)
    as_logits = load_classifier(tmp_path / "m.pt", input_shape=SHAPE, outputs="logits")
    torch.testing.assert_close(as_logits(x), network(x))


def test_log_probabilities_are_logits_and_it_is_said(tmp_path: Path) -> None:
    """log_softmax differs from logits by a constant for each image, which no softmax sees."""
    (tmp_path / "m.pt").write_bytes(scripted(Ending("log")))
    info = load_classifier(tmp_path / "m.pt", input_shape=SHAPE).info
    assert info.outputs == "logits"
    assert any("log_softmax" in note for note in info.notes)


@pytest.mark.parametrize("network", [Small(), Ending("sigmoid")])
def test_a_single_output_is_no_classifier_of_two(network: nn.Module, tmp_path: Path) -> None:
    """One number for each image, a logit or a sigmoid of it, is explained as what it is."""
    network.head = nn.Linear(4, 1)
    (tmp_path / "m.pt").write_bytes(scripted(network))
    with pytest.raises(ModelOutputError, match="a binary classifier with a single logit"):
        load_classifier(tmp_path / "m.pt", input_shape=SHAPE)


@pytest.mark.filterwarnings("ignore")  # torch's own quantisation is deprecated
def test_a_quantised_network_is_told_as_such(tmp_path: Path) -> None:
    """Its numbers depend on the batch, too, but what is wrong is that it has no gradient."""
    quantised = torch.ao.quantization.quantize_dynamic(Small().eval(), {nn.Linear}, dtype=torch.qint8)
    (tmp_path / "m.pt").write_bytes(scripted(quantised))
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    with pytest.raises(ModelGradientError, match=r"without .* quantisation"):
        probe_classifier(loaded, SHAPE)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.conv, self.encoder, self.head = nn.Conv2d(3, 4, 4, 4), nn.TransformerEncoder(layer, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.conv(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.filterwarnings("ignore")  # the tracer, on asserts in attention
def test_attention_traced_for_inference_says_how_to_trace_it(fast: bool, tmp_path: Path) -> None:
    """Without autograd torch traces attention as an operation that has no gradient; what is advised helps."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            (tmp_path / "m.pt").write_bytes(traced(Attentive()))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    loaded = load_classifier(tmp_path / "m.pt", input_shape=SHAPE)
    if fast:
        with pytest.raises(ModelGradientError, match=r"set_fastpath_enabled\(False\)"):
            probe_classifier(loaded, SHAPE)
    else:
        assert probe_classifier(loaded, SHAPE, num_classes=5).gradient_nonzero > 0.9

"""imbalance_perturb.models.probe: a model that the method cannot use is found out before the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelGradientError, ModelOutputError
from imbalance_perturb.models import load_classifier, probe_classifier

SHAPE = (3, 12, 12)


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )


class Ending(nn.Module):
    """A network whose logits pass through a function."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = network()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.body(x)
        match self.kind:
            case "detached":
                return z.detach()
            case "constant":
                return z * 0 + 1
            case "nan":
                return z / 0
            case "hard":
                return nn.functional.one_hot(z.argmax(1), 4).float()
            case "round":
                return z.round()
            case "single":
                return z[:, :1]
            case "map":
                return z[:, :, None]
        return z


def test_a_sound_model_passes_and_is_measured() -> None:
    """The measured facts come back, and the module is left in the mode it was in."""
    model = network(nn.BatchNorm2d(8), nn.Dropout())
    assert model.training
    found = probe_classifier(model, SHAPE, num_classes=4)
    assert found.num_classes == 4
    assert 0.9 < found.gradient_nonzero <= 1
    assert found.repeat_difference <= found.batch_difference
    assert found.batch_difference < 1e-5
    assert found.seconds > 0
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_number_of_classes_must_be_that_of_the_counts() -> None:
    """Both numbers are named."""
    with pytest.raises(ModelOutputError, match="the model has 4 classes but COUNTS has 7"):
        probe_classifier(network(), SHAPE, num_classes=7)


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("detached", ModelGradientError, "does not require grad.*state_dict"),
        ("constant", ModelGradientError, "zero everywhere"),
        ("hard", ModelGradientError, "does not require grad"),
        ("round", ModelGradientError, "zero everywhere"),
        ("nan", ModelOutputError, "not finite"),
        ("single", ModelOutputError, "single output"),
        ("map", ModelOutputError, r"\(2, 4, 1\)"),
    ],
)
def test_unusable_outputs_are_found_out(kind: str, error: type[Exception], reason: str) -> None:
    """No gradient, a zero gradient, NaN and a wrong shape each get their own error."""
    with pytest.raises(error, match=reason) as caught:
        probe_classifier(Ending(kind), SHAPE)
    assert "\n" not in str(caught.value)


def test_a_wrong_input_is_explained() -> None:
    """Wrong channels give the model's own reason."""
    with pytest.raises(ModelOutputError, match=r"fails on images of shape \(1, 12, 12\).*--color"):
        probe_classifier(network(), (1, 12, 12))


@pytest.mark.parametrize("batch", [2, None])
def test_exported_dropout_is_found_out(batch: int | None, tmp_path: Path) -> None:
    """Dropout baked in in training mode makes the output random, whatever the batch size of the export."""
    path = _export(network(nn.Dropout(0.5)).train(), tmp_path, batch)
    with pytest.raises(ModelOutputError, match=r"when run again.*model.eval\(\)"):
        probe_classifier(load_classifier(path), SHAPE)


@pytest.mark.parametrize("batch", [2, None])
def test_exported_training_batch_norm_is_found_out(batch: int | None, tmp_path: Path) -> None:
    """Batch norm baked in in training mode mixes the images of a batch."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), _TrainingNorm(), nn.Linear(8, 4)
    )
    path = _export(model, tmp_path, batch)
    with pytest.raises(ModelOutputError, match=r"other images in its batch|fails on one alone"):
        probe_classifier(load_classifier(path), SHAPE)


class _TrainingNorm(nn.Module):
    """Batch norm over the batch itself, as an export in training mode bakes it in."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


def _export(model: nn.Module, folder: Path, batch: int | None) -> Path:
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.randn(2, *SHAPE),), dynamic_shapes=shapes), folder / "m.pt2")
    return folder / "m.pt2"


def test_torchscript_saved_in_training_mode_is_put_right(tmp_path: Path) -> None:
    """Scripted modules carry their mode along, which loading sets to eval; a traced mode is baked in and refused."""
    model = network(nn.Dropout(0.5)).train()
    torch.jit.script(model).save(str(tmp_path / "scripted.pt"))
    probe_classifier(load_classifier(tmp_path / "scripted.pt", input_shape=SHAPE), SHAPE)


def test_torchscript_without_gradient_is_found_out(tmp_path: Path) -> None:
    """TorchScript that detaches its input has no gradient to offer."""

    class Detaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.detach())

    torch.jit.trace(Detaching().eval(), torch.randn(1, *SHAPE)).save(str(tmp_path / "m.pt"))
    with pytest.raises(ModelGradientError, match="no gradient reaches the model's input"):
        probe_classifier(load_classifier(tmp_path / "m.pt", input_shape=SHAPE), SHAPE)

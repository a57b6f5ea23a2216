"""Checkpoints as training scripts leave them, through the commands: the predictions are the network's own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import get_model

from tests.functional.conftest import SMALL, Workplace


def lightning_checkpoint(network: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning's ModelCheckpoint writes of a module with a network, a loss, metrics and class weights."""
    return {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {
            "class_weights": torch.ones(4),
            **{f"model.{name}": tensor for name, tensor in network.items()},
            "criterion.weight": torch.ones(4),
            "train_acc.tp": torch.zeros(4, dtype=torch.long),
            "train_acc.fp": torch.zeros(4, dtype=torch.long),
            "val_loss.mean_value": torch.tensor(0.3),
            "val_loss.weight": torch.tensor(9.0),
        },
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.3), "monitor": "v"}
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(24, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "arch": "shufflenet_v2_x0_5", "num_classes": 4, "activation": "relu"},
    }


def answers(network: nn.Module, folder: Path) -> dict[str, tuple[str, float]]:
    """The network's own label and confidence for each image, with torchvision's transforms."""
    fit = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image, torch.no_grad():
            shares = network(fit(image)[None]).softmax(1)[0]
        found[path.relative_to(folder).as_posix()] = ("abcd"[int(shares.argmax())], float(shares.max()))
    return found


def test_a_lightning_checkpoint_predicts_with_no_option(workplace: Workplace, checkpoint: dict[str, Tensor]) -> None:
    """`predict` on a Lightning checkpoint gives the network's own labels, and says what it left out."""
    torch.save(lightning_checkpoint(checkpoint), "epoch=3-step=40.ckpt")
    finished = workplace.run("predict", "epoch=3-step=40.ckpt", "counts.json", "images", *SMALL)
    assert finished.code == 0, finished.err
    network = get_model("shufflenet_v2_x0_5", weights=None, num_classes=4).eval()
    network.load_state_dict(checkpoint)
    wanted = answers(network, Path("images"))
    with Path("predictions.csv").open(newline="") as stream:
        rows = {row["image"]: (row["base_pred"], float(row["base_confidence"])) for row in csv.DictReader(stream)}
    assert {name: pred for name, (pred, _) in rows.items()} == {name: pred for name, (pred, _) in wanted.items()}
    assert len({pred for pred, _ in rows.values()}) > 1
    for name, (_, confidence) in rows.items():
        assert confidence == pytest.approx(wanted[name][1], abs=1e-4)
    shown = workplace.run("inspect", "epoch=3-step=40.ckpt", "counts.json", *SMALL)
    assert "left out 6 tensors: class_weights" in " ".join((shown.out + shown.err).split())
    assert "left out 6 tensors" in Path("predictions.run.json").read_text()


def test_weights_are_chosen_by_option_and_recipe(workplace: Workplace, checkpoint: dict[str, Tensor]) -> None:
    """Two sets of weights are asked about; --weights serves `init` and `predict`, and another choice is another run."""
    averaged = {name: tensor + 1 if name == "fc.bias" else tensor for name, tensor in checkpoint.items()}
    averaged["fc.bias"] = checkpoint["fc.bias"] + torch.tensor([9.0, 0, 0, 0])
    torch.save({"model": checkpoint, "model_ema": averaged}, "two.pth")
    predict = ("predict", "two.pth", "counts.json", "images", *SMALL)
    message = workplace.fails(*predict)
    assert "--weights ema takes 'model_ema', --weights model 'model'" in message
    found = {}
    for weights in ("ema", "model"):
        assert workplace.run(*predict, "--weights", weights, "-o", f"{weights}.csv").code == 0
        found[weights] = Path(f"{weights}.csv").read_bytes()
        run = json.loads(Path(f"{weights}.run.json").read_text())
        assert run["settings"]["model"]["weights"] == weights
        assert workplace.run("verify", f"{weights}.run.json").code == 0
    assert found["ema"] != found["model"]
    assert workplace.run("init", "two.pth", "counts.json", *SMALL, "--weights", "ema").code == 0
    assert workplace.run("predict", "images").code == 0
    assert Path("predictions.csv").read_bytes() == found["ema"]
    assert "weights" in workplace.fails("predict", "images", "--weights", "model", "--resume")

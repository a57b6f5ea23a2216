"""One training, an epoch at a time: what is on disk after each is enough to go on, and to end with the same weights."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.transforms import v2

from examples.paper import networks
from examples.paper.datasets import DataSet, Table
from examples.paper.settings import Machine, Settings
from examples.paper.trainings import COSINE_HEADS, Training
from imbalance_perturb.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from imbalance_perturb.files.writing import open_whole, write_whole


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as the training sees them: resized, cropped and flipped by chance, normalised (3, size, size)."""

    def __init__(self, data: DataSet, table: Table, size: int, cache: bool) -> None:
        self.table = table
        self.cached: dict[int, Image.Image] | None = {} if cache else None
        resized = data.resized(size)
        self.square = data.square
        self.resize = v2.Resize(resized if data.square else (resized, resized))
        self.augment = v2.Compose(
            [
                v2.RandomCrop(size),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
            ]
        )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.cached.get(index) if self.cached is not None else None
        if picture is None:
            picture = self.read(self.table.images[index])
            if self.cached is not None:
                self.cached[index] = picture
        return self.augment(picture), int(self.table.labels[index])

    def read(self, path: Path) -> Image.Image:
        """The image before anything random is done to it."""
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        return self.resize(v2.functional.center_crop(rgb, [min(rgb.size)] * 2) if self.square else rgb)


def train(
    folder: Path,
    data: DataSet,
    table: Table,
    settings: Settings,
    machine: Machine,
    pretrained: str,
    report: Callable[[str], None],
) -> None:
    """Train until `folder`/model.safetensors is there; `folder`/state.pt and log.csv are of the last whole epoch.

    pretrained: where the first weights come from, as :func:`networks.build` takes it.
    """
    schedule = settings.schedule
    counts = torch.from_numpy(np.bincount(table.labels, minlength=len(data.classes)))
    training = Training(settings.training, counts)
    torch.manual_seed(schedule.seed)
    cosine = settings.training in COSINE_HEADS
    network = networks.build(settings.backbone, len(data.classes), cosine=cosine, pretrained=pretrained)
    network = network.to(machine.device, memory_format=machine.layout)
    frozen = networks.blocks(network)[: settings.freeze]
    for block in frozen:
        block.requires_grad_(False)
    optimiser = torch.optim.SGD(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        schedule.learning_rate,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
    )
    pictures = Pictures(data, table, settings.size, cache=not machine.workers)
    log: list[dict[str, float]] = []
    state_file = folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=machine.device, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        log = state["log"]
    for epoch in range(len(log), schedule.epochs):
        log.append(one_epoch(network, frozen, optimiser, pictures, training, settings, machine, epoch))
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "log": log}
        with open_whole(state_file, binary=True) as stream:
            torch.save(state, stream)
        write_log(folder / "log.csv", log)
        report("epoch {epoch:.0f} of {}: loss {loss:.3f}, {seconds:.0f} s".format(schedule.epochs, **log[-1]))
    tensors = {key: tensor.contiguous().cpu() for key, tensor in network.state_dict().items()}
    write_whole(folder / "model.safetensors", save(tensors))
    state_file.unlink()


def one_epoch(
    network: nn.Module,
    frozen: list[nn.Module],
    optimiser: torch.optim.Optimizer,
    pictures: Pictures,
    training: Training,
    settings: Settings,
    machine: Machine,
    epoch: int,
) -> dict[str, float]:
    """All chance of an epoch comes from the seed and its number: a training cut off ends as one that was not."""
    begun, schedule = time.perf_counter(), settings.schedule
    torch.manual_seed(1_000_003 * schedule.seed + epoch)
    late = schedule.late(epoch)
    order = training.order(pictures.table.labels, torch.Generator().manual_seed(schedule.seed * 1009 + epoch), late)
    # The last batch is left out where it has one image: batch norm cannot be trained on it.
    batches = [batch.tolist() for batch in order.split(schedule.batch_size) if len(batch) > 1]
    images_of = torch.utils.data.DataLoader(pictures, batch_sampler=batches, num_workers=machine.workers)
    network.train()
    for block in frozen:
        block.eval()
    total = seen = right = 0.0
    for step, (images, labels) in enumerate(images_of):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(epoch + (step + 0.5) / len(batches))
        images = images.to(machine.device, memory_format=machine.layout)
        labels = labels.to(machine.device)
        with torch.autocast(machine.device.split(":")[0], torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = network(images)
        loss = training.loss(logits, labels, late)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"epoch {epoch + 1}: the loss is {loss.item()}; try a lower --learning-rate")
        total, seen = total + loss.item() * len(labels), seen + len(labels)
        right += float((logits.argmax(1) == labels).sum())
    return {
        "epoch": epoch + 1.0,
        "learning_rate": optimiser.param_groups[0]["lr"],
        "late": float(late),
        "loss": total / seen,
        "accuracy": right / seen,
        "seconds": time.perf_counter() - begun,
    }


def write_log(path: Path, log: list[dict[str, float]]) -> None:
    with open_whole(path) as stream:
        writer = csv.DictWriter(stream, fieldnames=list(log[0]))
        writer.writeheader()
        writer.writerows(log)

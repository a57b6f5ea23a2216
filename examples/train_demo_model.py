"""Train the model that `imbperturb demo` brings along: a small network, trained plainly on long-tailed digits.

    python examples/train_demo_model.py demo_digits.safetensors

Nothing here knows of the imbalance: cross-entropy, SGD with momentum and weight decay, every image once an epoch, no
re-weighting, no re-sampling, no augmentation. It takes about a minute on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from imbalance_perturb.data.digits import DIGIT_NAMES, DigitSet, load_digit_splits

ARCH = "shufflenet_v2_x0_5"  # 0.35 million parameters: the smallest of torchvision's classifiers
SIZE = 64  # --resize 64: the network halves the sides five times
MEAN, STD = 0.5, 0.5  # --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5
BATCH_SIZE = 32
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


def to_input(digits: DigitSet) -> Tensor:
    """(N, 3, 64, 64) float32 network inputs, as `imbperturb predict` makes them from the PNG files."""
    resized = [
        Image.fromarray(image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in digits.images
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2)
    return (pixels.to(torch.float32) / 255 - MEAN) / STD


def train(epochs: int, seed: int = 0) -> nn.Module:
    """The network after that many passes over the 280 training images."""
    torch.manual_seed(seed)
    digits = load_digit_splits().train
    images, labels = to_input(digits), torch.from_numpy(digits.labels)
    model = get_model(ARCH, weights=None, num_classes=len(DIGIT_NAMES))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(labels):.4f}")
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demonstration's model on long-tailed digits.")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training images (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters and the order of images (0)")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    model = train(args.epochs, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.output)


if __name__ == "__main__":
    main()

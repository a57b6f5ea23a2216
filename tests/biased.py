"""A classifier with a known bias against a rare class, and images on which a known eps undoes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

#: The step that undoes the bias: the feature moves by twice as much.
RIGHT_EPS = 0.05

#: Options that leave pixels as they are.
PLAIN = ("--preset", "none", "--device", "cpu", "--workers", "0")


class Biased(nn.Module):
    """Two classes told apart by red minus green, ``rare`` only from 0.1 on although it starts at 0."""

    def forward(self, x: Tensor) -> Tensor:
        feature = (x[:, 0] - x[:, 1]).mean(dim=(1, 2))
        return torch.stack([0.05 - feature / 2, feature / 2 - 0.05], dim=1) * 40


def write_biased(folder: Path, images: int = 30) -> None:
    """Write ``model.pt``, ``counts.json`` and ``val/common``, ``val/rare`` with so many images each, into a folder.

    Of the rare images half lie where the model is wrong; of the common ones none lies where eps 0.05 would make
    it wrong, but most lie where eps 0.2 would.
    """
    torch.jit.script(Biased().eval()).save(str(folder / "model.pt"))
    (folder / "counts.json").write_text(json.dumps({"common": 900, "rare": 30}))
    half = images // 2
    features = {
        "common": np.linspace(-0.5, -0.15, images),
        "rare": np.concatenate([np.linspace(0.02, 0.08, half), np.linspace(0.15, 0.5, images - half)]),
    }
    for name, values in features.items():
        (folder / "val" / name).mkdir(parents=True)
        for index, value in enumerate(values):
            pixels = np.zeros((4, 4, 3))
            pixels[..., 0], pixels[..., 1] = 0.5 + value / 2, 0.5 - value / 2
            Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(folder / "val" / name / f"{index:02d}.png")

"""Folders as transformers and timm write them, of tiny networks, with images and counts beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

#: In the order of their indices.
CLASSES = ("nv", "mel", "bcc")


def write_images(folder: Path) -> list[Path]:
    """Write ``images/`` of several sizes, some with an odd number of pixels beside a crop, and ``counts.json``."""
    (folder / "images").mkdir()
    (folder / "counts.json").write_text(json.dumps(dict(zip(CLASSES, (600, 100, 20), strict=True))))
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(40, 53), (64, 47), (37, 37), (33, 60)]):
        pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))
        pixels.save(folder / "images" / f"{index}.png")
    return sorted((folder / "images").iterdir())


def stirred(network: nn.Module, side: int) -> nn.Module:
    """The network with parameters and statistics by which it tells images of ``side`` pixels apart, in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.randn(8, 3, side, side))
    return network.eval()


def transformers_network(kind: str) -> tuple[nn.Module, Any]:
    """A tiny classifier of transformers and its image processor."""
    transformers = pytest.importorskip("transformers")
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    match kind:
        case "vit":
            config = transformers.ViTConfig(intermediate_size=32, **small, **labels)
            network = transformers.ViTForImageClassification(config)
            processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
        case "resnet":
            sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, **labels))
            processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 28})
        case "convnext":
            sizes = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
            network = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes, **labels))
            processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.9)
        case "mobilevit":
            sizes = {"hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 16], "num_attention_heads": 2}
            config = transformers.MobileViTConfig(image_size=64, **sizes, **labels)
            network = transformers.MobileViTForImageClassification(config)
            processor = transformers.MobileViTImageProcessor(
                size={"shortest_edge": 70}, crop_size={"height": 64, "width": 64}
            )
    return stirred(network, 64 if kind == "mobilevit" else 32), processor


def write_transformers(folder: Path, kind: str = "vit", **more: Any) -> nn.Module:
    """Write what ``save_pretrained`` of network and image processor does; ``more`` goes to the network's."""
    network, processor = transformers_network(kind)
    network.save_pretrained(folder, **more)
    processor.save_pretrained(folder)
    return network


def write_timm(folder: Path, name: str = "test_resnet", labels: Any = CLASSES, **data: Any) -> nn.Module:
    """Write what timm's ``save_for_hf`` does; ``data`` is the preprocessing, such as ``crop_pct``."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    network = stirred(timm.create_model(name, num_classes=len(CLASSES)), 32)
    save_for_hf(network, folder, model_config={"label_names": labels}, safe_serialization=True)
    change_json(folder / "config.json", "pretrained_cfg", data)
    return network


def change_json(path: Path, table: str | None = None, entries: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Change entries of a JSON file, or of a table in it; ``None`` takes one out."""
    content = json.loads(path.read_text())
    inner = content if table is None else content[table]
    for key, value in {**(entries or {}), **more}.items():
        if value is None:
            inner.pop(key, None)
        else:
            inner[key] = value
    path.write_text(json.dumps(content))

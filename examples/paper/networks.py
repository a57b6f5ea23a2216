"""The three backbones of Section 3.1, pre-trained on ImageNet, with a head of as many classes as needed.

LDAM's head is a scaled cosine of features and class vectors (Cao et al. 2019, Section 3.2), which no torchvision
network has: `imbperturb predict --factory examples.paper.networks:cosine_mobilenet_v2` builds it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from examples.paper.trainings import LDAM_SCALE

# Where the head is, in each of them.
HEADS = {"resnet50": "fc", "mobilenet_v2": "classifier.1", "densenet169": "classifier"}
BACKBONES = tuple(HEADS)


class CosineLinear(nn.Module):
    """Cosine between features (N, D) and the vector of each class, times `scale` -> logits (N, C).

    The scale is the loss's: without it the softmax of the logits would be nearly uniform, no probability of anything.
    """

    def __init__(self, features: int, classes: int, scale: float = LDAM_SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return self.scale * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


def build(backbone: str, classes: int, cosine: bool = False, pretrained: str = "none") -> nn.Module:
    """The network; `pretrained`: 'imagenet' (torchvision downloads it), 'none', or a file with or without the head."""
    weights = "IMAGENET1K_V1" if pretrained == "imagenet" else None  # of the paper's time; V2 is of a longer training
    network = torchvision.models.get_model(backbone, weights=weights)
    name = HEADS[backbone]
    if pretrained not in ("imagenet", "none"):
        load_features(network, Path(pretrained), name)
    old = network.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new = CosineLinear(old.in_features, classes) if cosine else nn.Linear(old.in_features, classes)
    network.set_submodule(name, new)
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """The backbone's parts from the input on: MobileNetV2 has 19, DenseNet169 12, ResNet50 with its head 10."""
    return list(getattr(network, "features", network).children())


def load_features(network: nn.Module, path: Path, head: str) -> None:
    """Tensors of all layers but the head; one that is missing, or that no layer has, ends the run."""
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    found = network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(f"{head}.")}, strict=False)
    wrong = [key for key in found.missing_keys if not key.startswith(f"{head}.")] + found.unexpected_keys
    if wrong:
        raise SystemExit(f"{path}: not the features of this backbone: {wrong[0]} is missing or unknown")


def cosine_resnet50(num_classes: int) -> nn.Module:
    """ResNet50 with LDAM's head, for --factory."""
    return build("resnet50", num_classes, cosine=True)


def cosine_mobilenet_v2(num_classes: int) -> nn.Module:
    """MobileNetV2 with LDAM's head, for --factory."""
    return build("mobilenet_v2", num_classes, cosine=True)


def cosine_densenet169(num_classes: int) -> nn.Module:
    """DenseNet169 with LDAM's head, for --factory."""
    return build("densenet169", num_classes, cosine=True)

"""One face for every loaded network: a batch of inputs in, one row of logits for each out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.errors import ModelOutputError
from imbalance_perturb.models.corrected_file import CorrectedCard
from imbalance_perturb.models.outputs import find_logits, follow
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing

#: What a forward pass may raise for an input that does not fit: anything that somebody's code does.
FORWARD_ERRORS = (Exception,)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a loaded model.

    Attributes:
        path: the file.
        sha256: of the bytes that were loaded, in hexadecimal.
        format: what kind of file it is, in words.
        arch: the architecture's name, where it is known.
        num_classes: C.
        in_channels: channels of the input image, where known.
        outputs: what the network itself returns, ``logits`` or ``probabilities``.
        fixed_batch: the only batch size that the file's own graph takes; batches are cut and padded to it.
        fixed_size: the only (height, width) that it takes.
        parameters: number of parameters.
        notes: a sentence for everything that was made of the file, or taken for granted.
        assumptions: of these what another choice would change predictions by, and the option that says it.
        classes: the C class names in class-index order, where the file has them.
    """

    path: str
    sha256: str
    format: str
    arch: str | None
    num_classes: int
    in_channels: int | None
    outputs: str
    fixed_batch: int | None
    fixed_size: tuple[int, int] | None
    parameters: int
    notes: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


class LoadedClassifier(nn.Module):
    """A classifier from a file: called with (N, ...) inputs it returns (N, C) logits.

    Its parameters are frozen and it is in eval mode for good: ``train()`` has no effect, since exported programs
    refuse it and the method is defined for trained networks.

    Args:
        network: what the file holds.
        info: what is known of it; ``outputs`` decides whether a logarithm turns its output into logits.
        batch_range: smallest and largest batch that the network takes, ``None`` without a limit.
        preprocessing: what is said of how its images are prepared, where something is.
        card: of a file that ``export`` wrote, whose logits are corrected already.
    """

    def __init__(
        self,
        network: nn.Module,
        info: ModelInfo,
        *,
        batch_range: tuple[int, int | None] = (1, None),
        preprocessing: OwnPreprocessing | None = None,
        card: CorrectedCard | None = None,
    ) -> None:
        super().__init__()
        for module in network.modules():
            if getattr(module, "training", False):
                module.training = False  # set rather than by eval(), which exported programs refuse
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        self.network = network
        self.info = info
        self.batch_range = batch_range
        self.preprocessing = preprocessing
        self.card = card
        self.training = False

    def train(self, mode: bool = True) -> LoadedClassifier:
        """Without effect: a loaded classifier stays in eval mode."""
        return self

    def place_on(self, device: torch.device) -> None:
        """Move the parameters to a device, and have programs make there what they make by themselves."""
        self.to(device)
        for program in self.network.modules():
            if isinstance(program, fx.GraphModule):
                _make_on(program, device)

    def fit_batch(self, n: int) -> int:
        """The batch size nearest to n that the network itself takes at once, without this wrapper around it."""
        smallest, largest = self.batch_range
        return max(smallest, n if largest is None else min(n, largest))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) logits of (N, ...) inputs."""
        logits = in_batches(self.network, x, self.batch_range)
        if self.info.outputs == "probabilities":
            # log p = z - logsumexp(z): a constant per image, which no softmax, at any temperature, sees.
            logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        return logits


def _make_on(program: fx.GraphModule, device: torch.device) -> None:
    """Exchange the devices in a program, which are those of the machine that it was exported on."""

    def exchanged(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in program.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, exchanged)
        node.kwargs = fx.node.map_aggregate(node.kwargs, exchanged)
    program.recompile()


def in_batches(network: Callable[[Tensor], Any], x: Tensor, batch_range: tuple[int, int | None]) -> Tensor:
    """The network's rows for a batch of any size, where it takes between ``batch_range`` images at a time.

    The last batch is filled up with copies of its last image, whose rows are dropped.
    """
    smallest, largest = batch_range
    if len(x) >= smallest and (largest is None or len(x) <= largest):
        return one_row_each(network(x), len(x))
    rows = []
    for chunk in torch.split(x, largest or len(x)):
        short = max(0, smallest - len(chunk))
        filled = torch.cat([chunk, chunk[-1:].expand(short, *chunk.shape[1:])]) if short else chunk
        rows.append(one_row_each(network(filled), len(filled))[: len(chunk)])
    return torch.cat(rows)


def one_row_each(output: Any, images: int) -> Tensor:
    """The (N, C) tensor in what a network returned for N images.

    Raises:
        ModelOutputError: if there is none, saying what there is.
    """
    tensor = follow(output, find_logits(output, images).path)
    if tensor.ndim > 2 and all(size == 1 for size in tensor.shape[2:]):
        tensor = tensor.flatten(1)
    if tensor.shape[:1] == (images,) and (tensor.ndim == 1 or tensor.shape[1:] == (1,)):
        raise ModelOutputError(
            f"the model returned {tuple(tensor.shape)} for {images} images: one number for each, as a binary classifier"
            " with a single logit z does; give a model with a logit for each class (0 and z for its two classes)"
        )
    if tensor.ndim != 2 or tensor.shape[0] != images:
        raise ModelOutputError(
            f"the model returned a tensor of shape {tuple(tensor.shape)} for {images} images; expected (N, C) logits,"
            " one row for each image"
        )
    return tensor

"""One face for every loaded network: a batch of inputs in, one row of logits for each out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ModelOutputError, first_line

#: What a forward pass may raise for an input that does not fit.
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError)
#: How far a row of probabilities may be from summing to one: half-precision rounding of many classes.
SUM_TOLERANCE = 1e-2
_DICT_KEYS = ("logits", "out", "output", "preds")


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
    """

    def __init__(self, network: nn.Module, info: ModelInfo, *, batch_range: tuple[int, int | None] = (1, None)) -> None:
        super().__init__()
        for module in network.modules():
            if getattr(module, "training", False):
                module.training = False  # set rather than by eval(), which exported programs refuse
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        self.network = network
        self.info = info
        self.batch_range = batch_range
        self.training = False

    def train(self, mode: bool = True) -> LoadedClassifier:
        """Without effect: a loaded classifier stays in eval mode."""
        return self

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
    tensor, _ = select_output(output)
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


def select_output(output: Any) -> tuple[Tensor, str | None]:
    """The tensor of logits in a network's output, and a note where it was one of several parts.

    Raises:
        ModelOutputError: if none can be told.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, Mapping):
        tensors = [key for key, value in output.items() if isinstance(value, Tensor)]
        key = next((key for key in _DICT_KEYS if key in tensors), tensors[0] if len(tensors) == 1 else None)
        if key is not None:
            return output[key], f"the model returns a dict; its {key!r} is taken as the logits"
        found = f"a dict with {', '.join(map(repr, list(output)[:6])) or 'nothing in it'}"
    elif isinstance(getattr(output, "logits", None), Tensor):
        return output.logits, "the model returns an object; its .logits are taken"
    elif isinstance(output, Sequence) and not isinstance(output, str):
        tensor = next((item for item in output if isinstance(item, Tensor)), None)
        if tensor is not None:
            return tensor, f"the model returns {len(output)} values; the first tensor is taken as the logits"
        found = f"a {type(output).__name__} without a tensor in it"
    else:
        found = type(output).__name__
    raise ModelOutputError(f"the model returned {found}; expected a tensor of (N, C) logits: wrap it so that it does")


def look_at_output(
    network: nn.Module, shape: tuple[int, ...], outputs: str, batch_range: tuple[int, int | None], name: str
) -> tuple[str, int, tuple[str, ...]]:
    """Run the network on a few random images: what it returns (``logits`` or ``probabilities``), C, and notes about it.

    Args:
        shape: of one input.
        outputs: what the user says, or ``auto``.
        name: of the model, for messages.

    Raises:
        ModelOutputError: if it fails on the input, or returns something else.
    """
    # Bright and dark images far out of range, too: small logits of a network may lie in [0, 1] by chance.
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    x[2], x[3] = 30 * (x[2] + 1), 30 * (x[3] - 1)
    returned: list[Any] = []

    def remember(batch: Tensor) -> Any:
        returned.append(network(batch))
        return returned[-1]

    try:
        with torch.no_grad():
            rows = in_batches(remember, x, batch_range)
    except ModelOutputError as error:
        raise ModelOutputError(f"{name}: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except FORWARD_ERRORS as error:
        raise failing_forward(name, x, error) from error
    notes = [note for note in (select_output(returned[0])[1],) if note]
    within = bool(((rows >= 0) & (rows <= 1 + SUM_TOLERANCE)).all())
    sums = bool(((rows.float().sum(1) - 1).abs() <= SUM_TOLERANCE).all())
    if outputs == "probabilities" and not (within and sums):
        raise ModelOutputError(
            f"{name}: --outputs probabilities, but on a test input its values run from {rows.min():.3g} to"
            f" {rows.max():.3g} and its rows do not all sum to 1: use --outputs logits"
        )
    if outputs != "auto":
        return outputs, rows.shape[1], tuple(notes)
    if within and sums:
        notes.append("its output is probabilities (rows in [0, 1] that sum to 1); their logarithms serve as logits")
        return "probabilities", rows.shape[1], tuple(notes)
    if within and rows.any():  # a head of zeros, as some networks start with, gives no scores
        raise ModelOutputError(
            f"{name}: its rows are in [0, 1] but do not sum to 1, like sigmoid scores of independent labels, which"
            " this method does not cover; if they are logits after all, say --outputs logits"
        )
    return "logits", rows.shape[1], tuple(notes)


def failing_forward(name: str, x: Tensor, error: BaseException) -> ModelOutputError:
    """The error for a network that fails on an input of this shape."""
    return ModelOutputError(
        f"{name}: the model fails on images of shape {tuple(x.shape[1:])}: {first_line(error)}; give it the image size"
        " and channels it was trained with (--resize, --crop, --color)"
    )

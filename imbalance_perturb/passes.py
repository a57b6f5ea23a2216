"""A correction's passes over a batch, as many images at once as memory allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imbalance_perturb.errors import ModelGradientError
from imbalance_perturb.inference.batching import MULTIPLE, BatchLimit, filled
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.method.classifier import PerturbedClassifier


class Passes:
    """Runs networks on batches cut to size.

    Args:
        most: images that go through at once, halved where memory runs out; ``None`` takes batches as they come.
        alike: whether batches of a multiple of four are filled up to one, so that an image's last digits do not
            depend on its batch.
    """

    def __init__(self, most: int | None, *, alike: bool) -> None:
        self.limit = BatchLimit(most)
        self._alike = alike

    def by_parts(self, compute: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
        """What ``compute`` gives of a batch (N, ...): tensors of one row for each image."""

        def rows(part: slice) -> list[tuple[Tensor, ...]]:
            found = compute(filled(x[part], self._multiple))
            return list(zip(*(logits[: part.stop - part.start].unbind() for logits in found), strict=True))

        return tuple(torch.stack(logits) for logits in zip(*self.limit.run(rows, len(x)), strict=True))

    def predict_both(self, network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Base and corrected logits of a batch (N, ...).

        Raises:
            ModelGradientError: if there is no usable gradient for an image.
        """
        base, logits = self.by_parts(lambda part: _predict_both(network, part, stopwatch), x)
        return base, logits

    def attempt_both(self, network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        """Base and corrected logits of a batch (N, ...); NaN for images that have no usable gradient."""
        base, logits = self.by_parts(lambda part: self._attempt(network, part, stopwatch), x)
        return base, logits

    @property
    def _multiple(self) -> int:
        # A batch size that is none of its multiples was chosen for itself, 1 above all.
        return MULTIPLE if self._alike and (self.limit.most or MULTIPLE) % MULTIPLE == 0 else 1

    def _attempt(self, network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        try:
            return _predict_both(network, x, stopwatch)
        except ModelGradientError:
            found = [self._attempt_alone(network, image, stopwatch) for image in torch.split(x, 1)]
        return torch.cat([base for base, _ in found]), torch.cat([logits for _, logits in found])

    def _attempt_alone(
        self, network: PerturbedClassifier, image: Tensor, stopwatch: Stopwatch
    ) -> tuple[Tensor, Tensor]:
        try:
            base, logits = _predict_both(network, filled(image, self._multiple), stopwatch)
        except ModelGradientError:
            nothing = image.new_full((1, len(network.counts)), torch.nan)
            return nothing, nothing
        return base[:1], logits[:1]


def _predict_both(network: PerturbedClassifier, x: Tensor, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
    with stopwatch.timing("gradient pass", x.device):
        base, moved = network.perturb_input(x)
    with stopwatch.timing("final pass", x.device):
        return base, network.predict_perturbed(moved) if network.active else network.adjust(base)

"""The six trainings of Table 2: which images a batch is drawn from, and which loss it has.

CE cross-entropy. RS class-balanced re-sampling. RW re-weighting by inverse frequency. FL focal loss (Lin et al. 2017).
DRS deferred re-sampling, LDAM label-distribution-aware margins with deferred re-weighting (both Cao et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TRAININGS = ("ce", "rs", "rw", "fl", "drs", "ldam")
COSINE_HEADS = ("ldam",)
FOCAL_GAMMA = 2.0  # Lin et al. 2017, Section 4: the best of their values
MAX_MARGIN = 0.5  # Cao et al. 2019: the largest margin, that of the smallest class, C in their Eq. 13 set by it
LDAM_SCALE = 30.0  # their code's scale of the cosines
EFFECTIVE_BETA = 0.9999  # their weights of the deferred stage are those of Cui et al. 2019


@dataclass(frozen=True)
class Training:
    """One of the six, for a data set with these class counts (C,). `late`: the deferred stage has begun."""

    name: str
    counts: Tensor

    def __post_init__(self) -> None:
        if self.name not in TRAININGS:
            raise SystemExit(f"--training {self.name!r} is none of {', '.join(TRAININGS)}")

    def loss(self, logits: Tensor, labels: Tensor, late: bool) -> Tensor:
        """Mean loss of a batch: logits (N, C), labels (N,) -> a scalar."""
        logits = logits.float()
        counts = self.counts.to(logits.device)
        if self.name == "rw":
            return (inverse_frequency(counts)[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()
        if self.name == "fl":
            return focal_loss(logits, labels)
        if self.name == "ldam":
            return ldam_loss(logits, labels, counts, effective_number(counts) if late else None)
        return F.cross_entropy(logits, labels)

    def order(self, labels: np.ndarray, generator: torch.Generator, late: bool) -> Tensor:
        """(N,) the images of one epoch in their order: each once, or drawn so that all classes are as likely."""
        if self.name == "rs" or (self.name == "drs" and late):
            weights = 1 / self.counts.double()[torch.from_numpy(labels)]
            return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
        return torch.randperm(len(labels), generator=generator)


def inverse_frequency(counts: Tensor) -> Tensor:
    """(C,) weights N / (C n_c), whose mean over the training images is 1: the loss is the mean of the classes' own.

    Divided by the weights of the batch, as torch's `weight=` does, one rare image would be all that its batch says.
    """
    return counts.sum() / (len(counts) * counts.float())


def effective_number(counts: Tensor) -> Tensor:
    """(C,) weights (1 - beta) / (1 - beta^n_c), with mean 1 (Cui et al. 2019, Eq. 3)."""
    weights = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA ** counts.double())
    return (weights / weights.mean()).float()


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of the true class (Lin et al. 2017, Eq. 4, without alpha)."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return (-((1 - log_p.exp()) ** FOCAL_GAMMA) * log_p).mean()


def ldam_loss(logits: Tensor, labels: Tensor, counts: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy of scaled cosines (Cao et al. 2019, Eq. 13): logits (N, C) are `LDAM_SCALE` times cosines.

    From the true class's cosine a margin in proportion to n_c^(-1/4) is taken off, 0.5 for the smallest class.
    """
    margins = counts.float() ** -0.25
    margins = margins * (MAX_MARGIN / margins.max())
    reduced = logits - LDAM_SCALE * F.one_hot(labels, logits.shape[1]) * margins[labels][:, None]
    return F.cross_entropy(reduced, labels, weight=weights)

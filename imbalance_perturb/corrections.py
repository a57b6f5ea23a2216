"""Post-hoc corrections that act on logits alone."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalance_perturb.counts import ClassCounts


def log_prior(counts: ClassCounts) -> Tensor:
    """(C,) float64: log of the training share of each class, log(n_c / Σ n)."""
    values = torch.tensor(counts.counts, dtype=torch.float64)
    return torch.log(values / values.sum())


def adjust_logits(logits: Tensor, counts: ClassCounts, tau: float) -> Tensor:
    """z - tau * log π, post-hoc logit adjustment (Menon et al., ICLR 2021, Eq. 9).

    Args:
        logits: (N, C).
        counts: C training counts; π is each one's share.
        tau: strength; 0 leaves the logits as they are, 1 is the Bayes rule for balanced error.

    Returns:
        (N, C) of the dtype and device of ``logits``.
    """
    if tau == 0:
        return logits
    return logits - tau * log_prior(counts).to(logits)

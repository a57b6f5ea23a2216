"""Post-hoc corrections that act on logits alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.deployment_prior import effective_counts


def log_prior(counts: ClassCounts, prior: Tensor | None = None) -> Tensor:
    """Compute (C,) float64: log of the training share of each class, log(n_c / Σ n).

    With the shares ``prior`` (C,) of where the model is used, it is relative to those: log(n_c / prior_c), up to a
    constant.
    """
    values = torch.tensor(effective_counts(counts, prior), dtype=torch.float64)
    return torch.log(values / values.sum())


def adjust_logits(logits: Tensor, counts: ClassCounts, tau: float, prior: Tensor | None = None) -> Tensor:
    """Compute z - tau * log π, post-hoc logit adjustment (Menon et al., ICLR 2021, Eq. 9).

    Args:
        logits: (N, C).
        counts: C training counts; π is each one's share.
        tau: strength; 0 leaves the logits as they are, 1 is the Bayes rule for balanced error.
        prior: (C,) class shares to adjust to, above 0 and summing to 1, instead of equal ones: π is then relative to
            them, and 1 is the Bayes rule for the error there.

    Returns:
        (N, C) of the dtype and device of ``logits``.
    """
    if tau == 0:
        return logits
    return logits - tau * log_prior(counts, prior).to(logits)


def normalise_rows(logits: Tensor, norms: Tensor, bias: Tensor, tau: float) -> Tensor:
    """Divide the rows of the network's last layer by ||w_c||^tau, in its logits (Kang et al., ICLR 2020, Sec. 4).

    Dividing a row divides z_c - b_c by the same number, so neither the weights nor the features are needed. The
    norms are taken relative to their geometric mean: a factor common to all rows changes no prediction where there
    is no bias (the paper leaves it out), and where there is one it would change how much the bias counts.

    Args:
        logits: (N, C), what the layer gave.
        norms: (C,) Euclidean norms of its rows, above 0.
        bias: (C,), zeros where it has none.
        tau: strength; 0 leaves the logits as they are, 1 makes all rows equally long.

    Returns:
        (N, C) of the dtype and device of ``logits``.

    Raises:
        SettingsError: if a norm is not a number above 0.
    """
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise SettingsError(f"the norms of the last layer's rows are {norms.tolist()}; each must be above 0")
    if tau == 0:
        return logits
    lengths = norms.double().log()
    scale = torch.exp(-tau * (lengths - lengths.mean())).to(logits)
    offset = bias.to(logits)
    return (logits - offset) * scale + offset


def add_offsets(logits: Tensor, offsets: Sequence[float]) -> Tensor:
    """Add a number for each of C classes to logits (N, C).

    Raises:
        SettingsError: if there are not as many as classes.
    """
    if len(offsets) != logits.shape[1]:
        raise SettingsError(f"offsets has {len(offsets)} numbers for {logits.shape[1]} classes; give one for each")
    return logits + torch.tensor(offsets, dtype=torch.float64).to(logits)

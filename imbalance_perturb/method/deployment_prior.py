"""The class shares that a correction is for: equal ones, or those where the model is used.

A correction for shares w takes the model's posteriors from the training shares to w: it divides them by training share
over w. A correction for equal shares does that where the counts are n_c / (C w_c): these take the counts' place in
logit adjustment, in p* and in the strength of a step (``docs/theory.md``). Equal shares leave the counts as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.method.class_files import SUM_TOLERANCE, load_shares, parse_shares
from imbalance_perturb.method.counts import ClassCounts

#: The word for equal shares.
BALANCED = "balanced"


def read_prior(value: str | Mapping[str, Any], counts: ClassCounts) -> dict[str, float] | None:
    """Read the shares that a setting names, in class-index order and summing to 1; ``None`` for equal ones by the word.

    Args:
        value: ``balanced``, the path of a JSON file, or ``{class: share}`` (the forms of :func:`parse_shares`).
        counts: of the classes.

    Raises:
        SettingsError: if the file cannot be read, the classes are others, or a share is not above 0.
    """
    if value == BALANCED:
        return None
    try:
        shares = parse_shares(value, counts.names) if isinstance(value, Mapping) else None
    except SettingsError as error:
        raise SettingsError(f"prior: {error}") from None
    where = "prior" if shares is not None else str(value)
    shares = load_shares(str(value), counts.names) if shares is None else shares
    if not shares.all():
        name = counts.names[int(shares.argmin())]
        raise SettingsError(f"{where}: the share of {name!r} is 0; a correction is for shares above 0")
    return dict(zip(counts.names, shares.tolist(), strict=True))


def select_prior(value: str | Mapping[str, Any], counts: ClassCounts) -> Tensor | None:
    """The same as (C,) float64."""
    shares = read_prior(value, counts)
    return None if shares is None else torch.tensor(list(shares.values()), dtype=torch.float64)


def effective_counts(counts: ClassCounts, prior: Tensor | None) -> Sequence[float]:
    """C numbers n_c / (C w_c) for the shares w of ``prior`` (C,); the counts themselves where these are equal."""
    if prior is None or len(shares := prior.tolist()) == 0 or min(shares) == max(shares):
        return counts.counts
    return [count / (len(shares) * share) for count, share in zip(counts.counts, shares, strict=True)]


def check_prior(prior: Tensor, counts: ClassCounts) -> None:
    """Refuse a tensor that is no shares of these classes.

    Raises:
        SettingsError: unless it is (C,), finite, above 0 and sums to 1.
    """
    if prior.shape != (len(counts),):
        raise SettingsError(f"the prior has shape {tuple(prior.shape)}; expected ({len(counts)},)")
    if not (torch.isfinite(prior) & (prior > 0)).all() or abs(float(prior.sum()) - 1) > SUM_TOLERANCE:
        raise SettingsError(f"the prior is {prior.tolist()}; expected shares above 0 that sum to 1")

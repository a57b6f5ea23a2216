"""The class shares that a correction is for: equal ones, or those where the model is used.

A correction for shares w takes the model's posteriors from the training shares to w: it divides them by training share
over w. A correction for equal shares does that where the counts are n_c / (C w_c): these take the counts' place in
logit adjustment, in p* and in the strength of a step (``docs/theory.md``). Equal shares leave the counts as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imbalance_perturb.errors import SettingsError, first_few
from imbalance_perturb.files.strict_json import read_json
from imbalance_perturb.method.counts import ClassCounts

#: The word for equal shares.
BALANCED = "balanced"

#: How far shares may be from summing to one (rounded decimals) before they are refused.
SUM_TOLERANCE = 1e-3

_EXPECTED = '{"class": share, ...} with a share above 0 for each class, summing to 1'


def read_prior(value: str | Mapping[str, Any], counts: ClassCounts) -> dict[str, float] | None:
    """Read the shares that a setting names, in class-index order and summing to 1; ``None`` for equal ones by the word.

    Args:
        value: ``balanced``, the path of a JSON file, or ``{class: share}``; the file may have that as its ``shares``.
        counts: of the classes.

    Raises:
        SettingsError: if the file cannot be read, the classes are others, or a share is not above 0.
    """
    if value == BALANCED:
        return None
    if isinstance(value, Mapping):
        return _parse(value, counts)
    try:
        data = read_json(Path(value), _EXPECTED, SettingsError)
        shares = data.get("shares") if isinstance(data, dict) else None
        return _parse(shares if isinstance(shares, dict) else data, counts)
    except SettingsError as error:
        raise SettingsError(f"{value}: {error}") from None


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


def _parse(data: object, counts: ClassCounts) -> dict[str, float]:
    if not isinstance(data, Mapping):
        raise SettingsError(f"the prior is {type(data).__name__}; expected {_EXPECTED}")
    missing = [name for name in counts.names if name not in data]
    unknown = [str(name) for name in data if name not in counts.names]
    if missing or unknown:
        raise SettingsError(
            "the prior's classes are not those of the counts:"
            f" missing {first_few(missing) or 'none'}; unknown {first_few(unknown) or 'none'}"
        )
    for name, share in data.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise SettingsError(
                f"the prior's share of class {name!r} is {share!r}; expected a number above 0, at most 1"
            )
    total = math.fsum(data.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise SettingsError(f"the prior's shares sum to {total:g}; expected 1")
    return {name: data[name] / total for name in counts.names}

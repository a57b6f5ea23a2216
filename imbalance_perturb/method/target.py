"""The target distribution p*: what the perturbation pulls the softened output towards (Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor

from imbalance_perturb.errors import NothingToCorrectError, TargetError
from imbalance_perturb.files.strict_json import read_json
from imbalance_perturb.method.counts import ClassCounts, as_list
from imbalance_perturb.method.deployment_prior import effective_counts

#: β of the effective number of samples (Cui et al., CVPR 2019, Sec. 3); their value for the largest data sets.
EFFECTIVE_NUMBER_BETA = 0.9999

#: How far a distribution given by hand may be from summing to one (rounded decimals) before it is refused.
SUM_TOLERANCE = 1e-3

#: Numbers that differ by no larger share than rounding leaves are equal.
_EQUAL = 1e-9


def target_distribution(
    counts: ClassCounts, kind: str = "log", *, m: int | None = None, prior: Tensor | None = None
) -> Tensor:
    """Compute the target p*_c = g(n_c) / sum_k g(n_k) of Chen et al. 2021, Eq. (2).

    Args:
        counts: training images per class.
        kind: g. ``log``: log(M/n), the paper's; ``inverse``: 1/n; ``sqrt``: 1/sqrt(n);
            ``effective-number``: (1 - β)/(1 - β^n) with β = 0.9999 (Cui et al. 2019).
        m: M of ``log``, at least the largest count; by default the largest count, as in the paper's
            experiments, which gives the largest class a target of exactly 0.
        prior: (C,) class shares of where the model is used, above 0 and summing to 1: n is then n_c / (C prior_c). The
            paper has equal ones, which leave n as it is.

    Returns:
        (C,) float64 tensor on the CPU, non-negative, summing to 1.

    Raises:
        NothingToCorrectError: if all counts are equal, or ``prior`` is that of training, so that the target has no
            direction.
        TargetError: for an unknown ``kind`` or an ``m`` below the largest count.
    """
    numbers = effective_counts(counts, prior)
    if numbers is not counts.counts and max(numbers) <= min(numbers) * (1 + _EQUAL):
        raise NothingToCorrectError("the prior is the class mix of training, so there is nothing to correct")
    if numbers is counts.counts and counts.balanced:
        raise NothingToCorrectError(
            f"all {len(counts)} classes have the same count ({counts.counts[0]}): training was balanced, so there"
            " is nothing to correct (give a target distribution of your own to push towards one anyway)"
        )
    return _normalised(_inverse_frequency(numbers, kind, m))


def _inverse_frequency(counts: Sequence[float], kind: str, m: int | None) -> list[float]:
    largest = max(counts)
    if m is not None and kind != "log":
        raise TargetError(f"M belongs to the log target; the {kind} target has none: leave it out")
    if m is not None and m < largest:
        raise TargetError(
            f"M is {m}, below the largest class count {largest:.10g}: log(M/n) would be negative;"
            f" use M >= {largest:.10g}"
        )
    # Ratios of integers are rounded once, so counts scaled by any factor give the same bits.
    match kind:
        case "log":
            return [math.log((m or largest) / n) for n in counts]
        case "inverse":
            return [largest / n for n in counts]
        case "sqrt":
            return [math.sqrt(largest / n) for n in counts]
        case "effective-number":
            # expm1/log1p: 1 - β^n loses its digits for small n when written plainly.
            return [-1.0 / math.expm1(n * math.log1p(EFFECTIVE_NUMBER_BETA - 1.0)) for n in counts]
    raise TargetError(f"target {kind!r} is not known; use log, inverse, sqrt, effective-number or a JSON file")


def parse_target(data: object, counts: ClassCounts) -> Tensor:
    """Parse a target distribution given outright: C numbers in class-index order, or ``{name: number}``.

    Raises:
        TargetError: if it does not fit the classes, is negative or does not sum to 1.
        NothingToCorrectError: if it is uniform.
    """
    if isinstance(data, Mapping):
        missing = [name for name in counts.names if name not in data]
        unknown = [name for name in data if name not in counts.names]
        if missing or unknown:
            raise TargetError(
                "the target's classes are not those of the counts:"
                f" missing {', '.join(missing) or 'none'}; unknown {', '.join(map(str, unknown)) or 'none'}"
            )
        data = [data[name] for name in counts.names]
    data = as_list(data)
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise TargetError(f"found {type(data).__name__}; expected a list of {len(counts)} numbers or {{name: number}}")
    if len(data) != len(counts):
        raise TargetError(f"{len(data)} numbers for {len(counts)} classes; give one for each class")
    for name, value in zip(counts.names, data, strict=True):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise TargetError(f"the target of class {name!r} is {value!r}; expected a number from 0 to 1")
    total = math.fsum(data)
    if abs(total - 1) > SUM_TOLERANCE:
        raise TargetError(f"the target sums to {total:g}; a distribution sums to 1")
    if len(set(data)) == 1:
        raise NothingToCorrectError("the target is uniform: it pushes towards no class; give one that differs from 1/C")
    return _normalised([float(value) for value in data])


def load_target(path: str | Path, counts: ClassCounts) -> Tensor:
    """Load a target distribution from a JSON file (the forms of :func:`parse_target`).

    Raises:
        TargetError, NothingToCorrectError: naming the file and what is wrong with it.
    """
    path = Path(path)
    expected = f"a list of {len(counts)} numbers or {{name: number}} that sum to 1"
    try:
        return parse_target(read_json(path, expected, TargetError), counts)
    except (TargetError, NothingToCorrectError) as error:
        raise type(error)(f"{path}: {error}") from None


def _normalised(values: list[float]) -> Tensor:
    total = math.fsum(values)
    return torch.tensor([value / total for value in values], dtype=torch.float64)

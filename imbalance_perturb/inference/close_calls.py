"""Which labels are close calls: the margins of logits, against how far another computation could move them.

A cheaper computation (lower precision, no correction) gives the label of the full one wherever the margin of its
logits exceeds what separates the two. That is measured on images for which both are known, where it counts: on the
half of them that is decided by the narrower margins, since differences grow with the logits, and a wide margin has
nothing to fear.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.predictions.run_state import SAFETY, Bounds

#: Classes behind the first that say how the correction moves logits; of a thousand classes the rest says nothing.
NEAREST = 8


def margins(logits: Tensor) -> Tensor:
    """Compute (N,) by how much the highest of (N, C) logits exceeds the second, at least 0; NaN where a logit is."""
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def close_bound(logits: Tensor, reference: Tensor) -> float:
    """Measure the margin of ``logits`` up to which their label may differ from that of the ``reference``.

    :data:`SAFETY` times the typical error of the difference between the two top classes and two standard errors of
    that: where images are few, or few of them have most of the error, the bound is wider, and no label pays for that.
    The largest error would do as well, but depends more on which images were drawn.

    Args:
        logits: (N, C), finite, as the cheaper computation has them.
        reference: (N, C), finite, of the same images.

    Returns:
        At least 0, in units of a logit.
    """
    return SAFETY * sum(_typical(_errors(logits, reference)))


def uncertain_share(logits: Tensor, reference: Tensor) -> float:
    """Of :func:`close_bound`, the share in [0, 1] by which it is wider for the standard errors."""
    size, wider = _typical(_errors(logits, reference))
    return wider / (size + wider) if size else 0.0


def _errors(logits: Tensor, reference: Tensor) -> Tensor:
    """Errors of the difference between the two top classes, on the half of the images with the narrower margins."""
    first = logits.topk(2, dim=1).indices
    found, true = logits.gather(1, first), reference.gather(1, first)
    errors = (found[:, 0] - found[:, 1]) - (true[:, 0] - true[:, 1])
    return errors[_narrow_half(margins(logits))]


class Reach(NamedTuple):
    """How far the correction moves a class towards or past the one in front.

    The lead of the first class t over class k shrinks by ``slope`` * (p*_k - p*_t) on average, since the correction
    raises the classes that p* favours, and by ``spread`` more or less than that typically.
    """

    slope: float
    spread: float

    def may_change(self, logits: Tensor, target: Tensor) -> Tensor:
        """Whether (N,) the correction may change the label of (N, C) logits; ``target`` is p* (C,)."""
        lead, favour, rival = _pairs(logits, target)
        return ((lead <= self.slope * favour + SAFETY * self.spread) & rival).any(dim=1)


def are_doubtful(bounds: Bounds, base: Tensor, logits: Tensor) -> Tensor:
    """Whether (N,) low precision cannot be trusted with the labels of (N, C) base and corrected logits."""
    doubtful = ~(torch.isfinite(base).all(1) & torch.isfinite(logits).all(1))
    if bounds.base is not None and bounds.corrected is not None:
        doubtful |= (margins(base) <= bounds.base) | (margins(logits) <= bounds.corrected)
    return doubtful


def fit_reach(logits: Tensor, corrected: Tensor, target: Tensor) -> Reach:
    """Fit how far the correction reaches to images whose corrected logits are known.

    Args:
        logits: (N, C), finite, without the correction.
        corrected: (N, C), finite, with it.
        target: (C,) p*.
    """
    narrow = _narrow_half(margins(logits))
    logits, corrected = logits[narrow], corrected[narrow]
    lead, favour, rival = _pairs(logits, target)
    first = logits.argmax(dim=1, keepdim=True)
    lost = lead - (corrected.gather(1, first) - corrected)
    nearest = lead.masked_fill(~rival, torch.inf).topk(min(NEAREST, logits.shape[1] - 1), dim=1, largest=False).indices
    lost, favour = lost.gather(1, nearest), favour.gather(1, nearest)
    # Least squares through the origin: where p* favours neither class, the correction has no reason to move them.
    slope = float((favour * lost).sum() / favour.square().sum().clamp_min(torch.finfo(favour.dtype).tiny))
    return Reach(slope, _typical((lost - slope * favour).flatten())[0])


def _pairs(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare each class k to an image's first, t: (N, C) lead of t over k, p*_k - p*_t, and whether k is not t."""
    first = logits.argmax(dim=1, keepdim=True)
    p = target.to(logits)
    rival = torch.ones_like(logits, dtype=torch.bool).scatter(1, first, False)
    return logits.gather(1, first) - logits, p[None] - p[first], rival


def _narrow_half(margin: Tensor) -> Tensor:
    return margin.argsort(stable=True)[: -(-len(margin) // 2)]


def _typical(values: Tensor) -> tuple[float, float]:
    """Root mean square of (n,) values, n at least 2, and two of its standard errors (by the delta method)."""
    squares = values.double().square()
    size = float(squares.mean().sqrt())
    return size, float(squares.std()) / len(squares) ** 0.5 / size if size else 0.0

"""What the shortcuts of a run may be trusted with, measured on images of it for which both computations are known.

The same images say how often labels agree: each part of them is decided by what the others measure, as the images of
the run are by what all of them do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.inference.close_calls import Reach, are_doubtful, close_bound, fit_reach, uncertain_share
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.predictions.run_state import Bounds, Tally

#: Fewest images that bounds can be measured on.
FEWEST_CALIBRATED = 16

#: Images that are enough to fit how far the correction reaches, whatever the run.
_FOR_REACH = 64

#: Share of close calls from which a shortcut is given up: it would cost as much as it saves, and a few images do not
#: describe well by how much logits move where that is much beside the margins.
WORTHWHILE = 0.4

#: Parts of the images, each of which is decided by bounds from the others.
_PARTS = 8


class Sampled(NamedTuple):
    """Images (N, ...) to calibrate on, and the names of those that are images of the run, ``None`` for others."""

    x: Tensor
    names: Sequence[str | None]


class BothWays(NamedTuple):
    """Logits (n, C) of images, plain and corrected: of the full computation, and in the precision of the run."""

    full_base: Tensor
    full: Tensor
    base: Tensor
    logits: Tensor

    def some(self, chosen: Tensor) -> BothWays:
        """Those of the images that are true in (n,), or have these indices."""
        return BothWays(*(logits[chosen] for logits in self))

    @property
    def finite(self) -> Tensor:
        """Whether (n,) the precision of the run has numbers for an image."""
        return torch.isfinite(self.base).all(1) & torch.isfinite(self.logits).all(1)

    @classmethod
    def joined(cls, parts: Sequence[BothWays]) -> BothWays:
        """Put images together; there is at least one part."""
        return cls(*(torch.cat(logits) for logits in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Shortcuts:
    """What a run leaves out.

    Attributes:
        reference: the correction in full.
        precision: ``fp32``, ``bf16`` and ``fp16`` throughout, or ``auto``, whose close calls are computed in full.
        close_calls_only: whether only images are corrected whose label that may change.
    """

    reference: PerturbedClassifier
    precision: str
    close_calls_only: bool

    @property
    def low(self) -> bool:
        """Whether logits come from a network in low precision."""
        return self.precision != "fp32"

    def doubtful(self, bounds: Bounds, base: Tensor, logits: Tensor) -> Tensor:
        """Whether (n,) only the full computation can decide the labels of (n, C) logits."""
        return are_doubtful(bounds, base, logits) if self.low else torch.zeros(len(base), dtype=torch.bool)

    def may_change(self, bounds: Bounds, logits: Tensor) -> Tensor:
        """Whether (n,) the correction may change the label of (n, C) adjusted plain logits."""
        assert bounds.reach is not None, "close calls are only told after calibration"
        return Reach(*bounds.reach).may_change(logits, self.reference.target)

    def are_full(self, corrected: Tensor) -> Tensor:
        """Whether (n,) logits are those of the full computation, without being recomputed."""
        if self.low:
            return torch.zeros_like(corrected)
        return corrected if self.reference.active else torch.ones_like(corrected)

    def measure(self, found: BothWays) -> Bounds:
        """Measure the bounds, on images that have numbers."""
        bounds = Bounds()
        if self.precision == "auto":
            bounds.base = close_bound(found.base, found.full_base)
            bounds.corrected = close_bound(found.logits, found.full)
        if self.close_calls_only:
            bounds.reach = fit_reach(self.reference.adjust(found.base), found.full, self.reference.target)
        return bounds

    def settled(self, found: BothWays, ahead: int, more: int) -> bool:
        """Whether bounds from these images will do.

        That is, whether ``more`` images cost more to compute in full than they save: the uncertainty of the bounds,
        for which they are wider and more of the ``ahead`` images of the run are close calls, shrinks with the root of
        the number of images.
        """
        found = found.some(found.finite)
        known = len(found.full)
        if self.close_calls_only or known < FEWEST_CALIBRATED:
            return self.close_calls_only and known >= _FOR_REACH
        # Of a few images none may be a close call where one in a hundred is.
        doubtful = self.doubtful(self.measure(found), found.base, found.logits)
        share = (int(doubtful.sum()) + 0.5) / (known + 1)
        if abs(share - WORTHWHILE) < 2 * math.sqrt(share * (1 - share) / known):
            return False  # whether it is worth while may depend on which images were drawn
        if share > WORTHWHILE:
            return True
        pairs = ((found.base, found.full_base), (found.logits, found.full))
        saved = share * max(uncertain_share(*pair) for pair in pairs) * (1 - math.sqrt(known / (known + more)))
        return saved * ahead <= more

    def compare(self, found: BothWays) -> tuple[Tensor, Tensor]:
        """Compare the labels of images with those of the full computation, where the shortcuts are taken.

        Returns:
            (n,) whether a shortcut is taken, and (n, 2) whether the plain and the corrected label are the same.
        """
        part_of = torch.arange(len(found.full)) % _PARTS
        taken, same = torch.zeros(len(part_of), dtype=torch.bool), torch.zeros(len(part_of), 2, dtype=torch.bool)
        for part in range(_PARTS):
            held, bounds = part_of == part, self.measure(found.some((part_of != part) & found.finite))
            full_base, full, base, logits = found.some(held)
            corrected = torch.ones(len(full), dtype=torch.bool)
            if self.close_calls_only:
                adjusted = self.reference.adjust(base)
                corrected = self.may_change(bounds, adjusted)
                logits = torch.where(corrected[:, None], logits, adjusted)
            taken[held] = ~self.doubtful(bounds, base, logits) & ~self.are_full(corrected)
            same[held] = torch.stack([base.argmax(1) == full_base.argmax(1), logits.argmax(1) == full.argmax(1)], dim=1)
        return taken, same


def settle(found: BothWays, own: Tensor, shortcuts: Shortcuts) -> tuple[Shortcuts, Bounds, Tally]:
    """Measure which shortcuts are worth taking, and their bounds.

    Args:
        found: images, in an order that tells nothing of them, for which the full computation has numbers.
        own: (n,) which of them are images of the run, and not of another part of its list.
        shortcuts: that are asked for.

    Returns:
        the shortcuts without those that are given up; the bounds, with the reasons; and how labels of the run agreed.
    """
    usable = int(found.finite.sum())
    few = f"only {usable} images could be calibrated on" if usable < FEWEST_CALIBRATED else ""
    bounds, notes = Bounds() if few else shortcuts.measure(found.some(found.finite)), []
    if shortcuts.precision == "auto":
        share = 1.0 if few else _mean(shortcuts.doubtful(bounds, found.base, found.logits))
        if share > WORTHWHILE:
            notes.append(f"{few or f'{share:.0%} of the images would be close calls'}: all in fp32")
            shortcuts = replace(shortcuts, precision="fp32")
            found = found._replace(base=found.full_base, logits=found.full)
            bounds = Bounds() if few else shortcuts.measure(found)
    if shortcuts.close_calls_only:
        adjusted = shortcuts.reference.adjust(found.base[found.finite])
        share = 1.0 if few else _mean(shortcuts.may_change(bounds, adjusted))
        if share > WORTHWHILE:
            notes.append(f"{few or f'the correction might change {share:.0%} of the labels'}: all corrected")
            shortcuts = replace(shortcuts, close_calls_only=False)
    tally = Tally()
    if shortcuts.low or shortcuts.close_calls_only:
        taken, same = shortcuts.compare(found)
        same = same[taken & own]
        tally = Tally(sampled=len(same), base_agreed=int(same[:, 0].sum()), agreed=int(same.all(1).sum()))
    bounds.calibrated_on, bounds.notes = usable, notes
    return shortcuts, bounds, tally


def _mean(flags: Tensor) -> float:
    return float(flags.float().mean())

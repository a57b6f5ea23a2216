"""How often low precision and close calls replaced the full computation in a run, and how often labels agreed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from imbalance_perturb.files.typed_json import Count
from imbalance_perturb.predictions.run_state import SAFETY, PredictorState

#: Share of labels that may differ from the full computation's before a run warns.
TOLERATED = 0.001

#: One-sided confidence of statements about all images made from the sampled ones.
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts of a run's images, and the bounds that decided on them.

    Attributes:
        precision: ``fp32``, ``auto``, ``bf16`` or ``fp16``, as it was run in the end.
        low_dtype: the low-precision format that was in use, such as ``bf16``.
        close_calls_only: whether only close calls were corrected, in the end.
        notes: why precision or close_calls_only were given up, where they were.
        calibrated_on: images that the bounds were measured on.
        safety: how many times the typical difference the bounds are.
        base_bound: margin of base logits up to which low precision was not trusted.
        bound: the same of corrected logits.
        reach_slope: how far the correction moves logits on average, for each unit of p* between two classes.
        reach_spread: by how much more or less than that, typically.
        images: all images that were predicted.
        recomputed: of them, by the full computation after all.
        corrected: of them, with the correction (rather than by the plain model, whose label would not change).
        sampled: images whose labels come from a shortcut and were compared with those of the full computation.
        base_agreed: of the sampled, with the same base label.
        agreed: of the sampled, with the same base and corrected labels.
    """

    #: What is written with it, too.
    derived: ClassVar = ("share_recomputed", "share_corrected", "sampled_agreement", "disagreement_at_most")

    precision: str
    low_dtype: str | None
    close_calls_only: bool
    notes: tuple[str, ...]
    calibrated_on: Count
    safety: float
    base_bound: float | None
    bound: float | None
    reach_slope: float | None
    reach_spread: float | None
    images: Count
    recomputed: Count
    corrected: Count
    sampled: Count
    base_agreed: Count
    agreed: Count

    @property
    def share_recomputed(self) -> float:
        """Of all images, in [0, 1]."""
        return self.recomputed / self.images if self.images else 0.0

    @property
    def share_corrected(self) -> float:
        """Of all images, in [0, 1]."""
        return self.corrected / self.images if self.images else 0.0

    @property
    def sampled_agreement(self) -> float | None:
        """Share of the sampled images whose labels are those of the full computation."""
        return self.agreed / self.sampled if self.sampled else None

    @property
    def disagreement_at_most(self) -> float | None:
        """Largest share of differing labels that the sample leaves room for (Clopper-Pearson, 95%, one-sided)."""
        differ = self.sampled - self.agreed
        if not self.sampled or differ == self.sampled:
            return 1.0 if self.sampled else None
        from scipy.special import betaincinv

        # Recomputed images are right by construction; the sample speaks for the others.
        return float(betaincinv(differ + 1, self.agreed, LEVEL)) * (1 - self.share_recomputed)

    @property
    def warning(self) -> str | None:
        """One line where more sampled labels differ than chance would let them at a tolerable share."""
        differ = self.sampled - self.agreed
        if differ == 0:
            return None
        from scipy.special import bdtrc

        if float(bdtrc(differ - 1, self.sampled, TOLERATED)) >= 1 - LEVEL:
            return None
        remedy = "--precision fp32" if self.low_dtype else "--no-close-calls-only"
        if self.low_dtype and self.close_calls_only:
            remedy += " and --no-close-calls-only"
        return (
            f"the labels of {differ} of {self.sampled} sampled images differ from those of the full computation;"
            f" use {remedy} for its labels"
        )

    def describe(self) -> str:
        """Describe the agreement in one line."""
        parts = [self.low_dtype or "fp32"]
        if self.low_dtype and (self.precision == "auto" or self.recomputed):
            parts.append(f"{self.share_recomputed:.1%} close calls recomputed in fp32")
        if self.close_calls_only:
            parts.append(f"{self.share_corrected:.1%} of the images corrected, the others clear")
        if self.sampled:
            parts.append(f"{self.agreed:,} of {self.sampled:,} sampled labels agree")
        return ", ".join(parts) + "".join(f"; {note}" for note in self.notes)

    @classmethod
    def of_state(cls, state: PredictorState, precision: str, low_name: str | None) -> Agreement:
        """Summarise where a predictor stands that began in ``precision``, with ``low_name`` its low one."""
        bounds, tally = state.bounds, state.tally
        return cls(
            precision=precision if state.low else "fp32",
            low_dtype=low_name if state.low else None,
            close_calls_only=state.close_calls_only,
            notes=tuple(bounds.notes),
            calibrated_on=bounds.calibrated_on,
            safety=SAFETY,
            base_bound=bounds.base,
            bound=bounds.corrected,
            reach_slope=None if bounds.reach is None else bounds.reach[0],
            reach_spread=None if bounds.reach is None else bounds.reach[1],
            **vars(tally),
        )

    @classmethod
    def summed(cls, parts: Sequence[Agreement]) -> Agreement:
        """Sum up the parts of one run; bounds are those of the first part that has images."""
        first = next((part for part in parts if part.images), parts[0])
        tallies = ("images", "recomputed", "corrected", "sampled", "base_agreed", "agreed")
        sums = {name: sum(getattr(part, name) for part in parts) for name in tallies}
        return replace(first, notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)), **sums)

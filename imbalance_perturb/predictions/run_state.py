"""Where a run stands: what one that is resumed or verified takes up, as its marks and its run file have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imbalance_perturb.files.typed_json import Count, write_typed
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.rows import PredictionRow

#: Bounds are this many times the typical (root mean square) difference and two standard errors of it. On Skin7 that
#: left 1 label in 9,000 of bf16 different from fp32's at eps 0.005 in runs of 320 images, 1 in 30,000 in runs of 4,000,
#: and a fifth of that at 0.001 (``benchmarks/rounding.py``).
SAFETY = 3.0

#: Errors that a summary holds.
_FIRST_ERRORS = 5


@dataclass
class Bounds:
    """What was measured before the run on images of it; margins are in units of a logit.

    Attributes:
        calibrated_on: number of images it was measured on.
        base: margin of base logits up to which low precision is not trusted.
        corrected: the same of corrected logits.
        reach: how far the correction moves logits: its slope (logits for a unit of p*) and spread (logits).
        notes: why precision or close calls were given up, where they were.
    """

    calibrated_on: Count = 0
    base: float | None = None
    corrected: float | None = None
    reach: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """How often shortcuts stood in for the full computation.

    Attributes:
        images: all images that were predicted.
        recomputed: of them, by the full computation after all.
        corrected: of them, with the correction.
        sampled: images that ran through the full computation, too, to compare the labels.
        base_agreed: of the sampled, with the same base label.
        agreed: of the sampled, with the same base and corrected labels.
    """

    images: Count = 0
    recomputed: Count = 0
    corrected: Count = 0
    sampled: Count = 0
    base_agreed: Count = 0
    agreed: Count = 0


@dataclass(frozen=True, kw_only=True)
class PredictorState:
    """Where a predictor stood, which a run that is resumed or verified takes up.

    Attributes:
        low: whether low precision was in use.
        close_calls_only: whether only close calls were corrected.
        bounds: what was measured before the run.
        tally: how often shortcuts stood in for the full computation.
        most_at_once: largest batch that memory had room for, null where nothing was tried.
    """

    low: bool
    close_calls_only: bool
    bounds: Bounds
    tally: Tally
    most_at_once: Count | None


@dataclass
class Standing:
    """Where a run stands: what is counted of its rows, and the seconds of earlier parts of it."""

    done: Count = 0
    failed: Count = 0
    changed: Count = 0
    earlier_seconds: float = 0.0
    first_errors: list[tuple[str, str]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of its rows."""
        return self.done + self.failed

    def add(self, count: int, changed: int, broken: Sequence[PredictionRow]) -> None:
        """Count so many rows, of which some are ``changed`` and some ``broken``."""
        self.done += count - len(broken)
        self.failed += len(broken)
        self.changed += changed
        few = broken[: _FIRST_ERRORS - len(self.first_errors)]
        self.first_errors += [(row.image, row.error or "") for row in few]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All that a run which is resumed needs, as a mark of the progress file has it."""

    standing: Standing
    seconds: Mapping[str, float]
    predictor: PredictorState
    deep: DeepImages

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = write_typed(self, {})
        return found

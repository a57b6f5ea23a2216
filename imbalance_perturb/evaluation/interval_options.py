"""How sure figures are to be told: the level of intervals, and of what they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.evaluation.intervals import DEFAULT_RESAMPLES, check_level


@dataclass(frozen=True, kw_only=True)
class IntervalOptions:
    """How intervals and tests are made: the same options and images give the same figures, to the last digit."""

    level: float = 0.95
    seed: int = 0
    resamples: int = DEFAULT_RESAMPLES

    def __post_init__(self) -> None:
        take_numbers(self)
        check_level(self.level)
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}; expected a whole number, at least 0")
        if self.resamples < 100:
            raise SettingsError(f"resamples is {self.resamples}; expected at least 100")

    def random(self) -> np.random.Generator:
        """A fresh source of draws, so that a figure does not depend on which others were computed before it."""
        return np.random.default_rng(self.seed)

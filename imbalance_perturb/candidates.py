"""The methods that `compare` lines up, and what each makes of the logits that one sweep left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imbalance_perturb.corrections import adjust_logits, estimate_prior, normalise_rows, shift_prior
from imbalance_perturb.counts import ClassCounts
from imbalance_perturb.models.last_layer import LastLayer
from imbalance_perturb.perturbation import Measure
from imbalance_perturb.sweep import MINUS_EPS, PERTURB, RANDOM_SIGN, Sweep, Variant

NONE, ADJUST, BOTH, NORMALISE, PRIOR_SHIFT = "none", "la", "perturb+la", "tau-norm", "em"

#: All methods, in the order of the table.
METHODS = (NONE, PERTURB, ADJUST, BOTH, NORMALISE, PRIOR_SHIFT, RANDOM_SIGN, MINUS_EPS)

#: What a real effect must beat; they move the input by the eps that was chosen for `perturb`.
CONTROLS = (RANDOM_SIGN, MINUS_EPS)


class Candidate(NamedTuple):
    """The free parameters of a method; 0 where it has none of the kind."""

    eps: float = 0.0
    tau: float = 0.0


def list_candidates(method: str, eps_grid: Sequence[float], tau_grid: Sequence[float]) -> list[Candidate]:
    """What is tried for a method, the plain model first where the grids hold 0."""
    epsilons = eps_grid if method in (PERTURB, BOTH) else (0.0,)
    taus = tau_grid if method in (ADJUST, BOTH, NORMALISE) else (0.0,)
    return [Candidate(eps, tau) for eps, tau in product(epsilons, taus)]


def count_passes(method: str, candidate: Candidate) -> int:
    """What an image costs, in forward passes.

    A backward pass that is asked for the input's gradient alone repeats each layer's product once, as the forward
    pass does, and so counts 1; the customary 2 includes the gradients of the parameters, which nobody needs here.
    A perturbed prediction is forward, backward, forward: 3. Arithmetic on logits, and tossing coins, counts nothing.
    """
    return 3 if method in (PERTURB, BOTH, MINUS_EPS) and candidate.eps > 0 else 1


@dataclass(frozen=True)
class CachedLogits:
    """A sweep over N images, and what else the methods need: no model runs from here on."""

    sweep: Sweep
    measure: Measure
    counts: ClassCounts
    last_layer: LastLayer | str

    def correct(self, method: str, candidate: Candidate) -> Tensor:
        """(N, C) logits of a method with these parameters.

        Raises:
            KeyError: if the sweep has not run this eps in this direction.
        """
        base = self.sweep.base
        match method:
            case "perturb" | "random-sign" | "minus-eps":
                return self._moved(candidate.eps, method)
            case "la":
                return adjust_logits(base, self.counts, candidate.tau)
            case "perturb+la":
                return adjust_logits(self._moved(candidate.eps, PERTURB), self.counts, candidate.tau)
            case "tau-norm":
                assert not isinstance(self.last_layer, str), "the method is left out where there is no last layer"
                return normalise_rows(base, self.last_layer.norms, self.last_layer.bias, candidate.tau)
            case "em":
                return shift_prior(base, self.counts, estimate_prior(base, self.counts))
        return base

    def predict(self, method: str, candidates: Sequence[Candidate]) -> NDArray[np.int64]:
        """(N, K) predicted class indices, one column for each candidate."""
        columns = [self.correct(method, candidate).argmax(dim=1).numpy() for candidate in candidates]
        return np.stack(columns, axis=1)

    def _moved(self, eps: float, direction: str) -> Tensor:
        return self.sweep.base if eps == 0 else self.sweep.logits[Variant(self.measure, eps, direction)]

"""The methods of `compare`: the candidates to try for each, and their logits, computed from those of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.evaluation.intervals import check_level
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.logit_corrections import add_offsets, adjust_logits, normalise_rows
from imbalance_perturb.method.perturbation import LossSpec
from imbalance_perturb.models.last_layer import LastLayer
from imbalance_perturb.selection.rule import SelectionRule
from imbalance_perturb.selection.sweep import MINUS_EPS, PERTURB, RANDOM_SIGN, Sweep, Variant

NONE, ADJUST, BOTH, NORMALISE, OFFSETS = "none", "la", "perturb+la", "tau-norm", "offsets"
#: The step at a hidden layer, of the pipeline's choice.
HIDDEN = "perturb-at"
EFFECTIVE_PRIOR = "p2p"

#: All methods, in the order of the table.
METHODS = (NONE, PERTURB, HIDDEN, ADJUST, BOTH, NORMALISE, OFFSETS, EFFECTIVE_PRIOR, RANDOM_SIGN, MINUS_EPS)

#: What a real effect must beat; they move the input by the eps that was chosen for `perturb`.
CONTROLS = (RANDOM_SIGN, MINUS_EPS)

#: Strengths of logit adjustment and of tau-normalisation: 1 is the full correction of either. Where accuracy may hardly
#: fall, the small ones decide.
TAU_GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)

#: The free parameters that each method has.
PARAMETERS: dict[str, tuple[str, ...]] = {
    NONE: (),
    PERTURB: ("eps",),
    HIDDEN: ("eps",),
    ADJUST: ("tau",),
    BOTH: ("eps", "tau"),
    NORMALISE: ("tau",),
    OFFSETS: ("offsets",),
    EFFECTIVE_PRIOR: ("tau", "offsets"),
    RANDOM_SIGN: ("eps",),
    MINUS_EPS: ("eps",),
}


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """What is compared and how parameters are chosen.

    Args:
        methods: of :data:`METHODS`; `none` is always there.
        eps_grid: steps at the input to try; 0 is added, except to a single value, which is then used as it is.
            ``None``: those of `tune-eps`, of the same strengths on every network; so they always are at a hidden layer.
        tau_grid: strengths of logit adjustment (by counts or effective prior) and tau-normalisation to try, likewise.
        rule: how to choose among them; its test is of steps alone, which cost two passes more.
        level: of all intervals.
        group: column of the labels' tables that says which images are alike, as those of one lesion: such a group stays
            in one fold, and intervals and tests are by group. ``None``: images are taken as independent.

    Raises:
        SettingsError: if a method is not known or a value out of range.
    """

    methods: tuple[str, ...] = METHODS
    eps_grid: tuple[float, ...] | None = None
    tau_grid: tuple[float, ...] = TAU_GRID
    rule: SelectionRule = field(default_factory=SelectionRule)
    level: float = 0.95
    group: str | None = None

    def __post_init__(self) -> None:
        take_numbers(self)
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise SettingsError(f"methods has {', '.join(unknown)}; expected some of {', '.join(METHODS)}")
        object.__setattr__(self, "methods", tuple(m for m in METHODS if m == NONE or m in self.methods))
        for name in ("eps_grid", "tau_grid"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values or not all(np.isfinite(value) and value >= 0 for value in values):
                option = name.replace("_", "-")
                raise SettingsError(f"{option} is {', '.join(map(str, values))}; expected numbers, at least 0")
            distinct = set(values)
            object.__setattr__(self, name, tuple(sorted(distinct if len(distinct) == 1 else distinct | {0.0})))
        check_level(self.level)

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps to try, once it is settled what they are on this network."""
        assert self.eps_grid is not None
        return self.eps_grid


class Candidate(NamedTuple):
    """The free parameters of a method; 0 where it has none of the kind, no offsets where it has none."""

    eps: float = 0.0
    tau: float = 0.0
    offsets: tuple[float, ...] = ()


def list_candidates(method: str, eps_grid: Sequence[float], tau_grid: Sequence[float]) -> list[Candidate]:
    """What is tried for a method, the plain model first where the grids hold 0."""
    epsilons = eps_grid if "eps" in PARAMETERS[method] else (0.0,)
    taus = tau_grid if "tau" in PARAMETERS[method] else (0.0,)
    return [Candidate(eps, tau) for eps, tau in product(epsilons, taus)]


def count_passes(method: str, candidate: Candidate, behind: float = 1.0) -> float:
    """What an image costs, in forward passes, of which ``behind`` lies behind the hidden layer.

    A backward pass that is asked for the input's gradient alone repeats each layer's product once, as the forward
    pass does, and so counts 1; the customary 2 includes the gradients of the parameters, which nobody needs here.
    A perturbed prediction is forward, backward, forward: 3; at a hidden layer the latter two are of what lies behind.
    Arithmetic on logits, and tossing coins, counts nothing.
    That is a count of products: real kernels can be slower backwards, which the measured images per second show.
    """
    if method == HIDDEN and candidate.eps > 0:
        return round(1 + 2 * behind, 2)
    return 3 if method in (PERTURB, BOTH, MINUS_EPS) and candidate.eps > 0 else 1


@dataclass(frozen=True)
class CachedLogits:
    """A sweep over N images, and what else the methods need: no model runs from here on.

    ``groups`` (N,) are numbers of the images' groups, where images are not independent.
    """

    sweep: Sweep
    loss_spec: LossSpec
    counts: ClassCounts
    last_layer: LastLayer | str
    groups: NDArray[np.int64] | None = None

    def correct(self, method: str, candidate: Candidate) -> Tensor:
        """(N, C) logits of a method with these parameters.

        Raises:
            KeyError: if the sweep has not run this eps in this direction.
        """
        base = self.sweep.base
        match method:
            case "perturb" | "random-sign" | "minus-eps":
                return self._moved(candidate.eps, method)
            case "perturb-at":
                return self._moved(candidate.eps, PERTURB, hidden=True)
            case "la":
                return adjust_logits(base, self.counts, candidate.tau)
            case "perturb+la":
                return adjust_logits(self._moved(candidate.eps, PERTURB), self.counts, candidate.tau)
            case "tau-norm":
                assert not isinstance(self.last_layer, str), "the method is left out where there is no last layer"
                return normalise_rows(base, self.last_layer.norms, self.last_layer.bias, candidate.tau)
            case "offsets" | "p2p":
                return add_offsets(base, candidate.offsets) if candidate.offsets else base
        return base

    def predict(self, method: str, candidates: Sequence[Candidate]) -> NDArray[np.int64]:
        """(N, K) predicted class indices, one column for each candidate."""
        columns = [self.correct(method, candidate).argmax(dim=1).numpy() for candidate in candidates]
        return np.stack(columns, axis=1)

    def _moved(self, eps: float, direction: str, *, hidden: bool = False) -> Tensor:
        return self.sweep.base if eps == 0 else self.sweep.logits[Variant(self.loss_spec, eps, direction, hidden)]

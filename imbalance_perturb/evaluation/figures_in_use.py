"""Add to an evaluation what use asks for: which recalls fall, predictive values, calibration, expected costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.errors import first_few
from imbalance_perturb.evaluation.calibration import calibrate, mix_note
from imbalance_perturb.evaluation.costs import expected_costs
from imbalance_perturb.evaluation.predictive_values import predictive_values, stated_shares
from imbalance_perturb.evaluation.significance import adjust_by_holm
from imbalance_perturb.method.class_files import parse_costs, parse_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imbalance_perturb.evaluation.evidence import Evidence, Kind
    from imbalance_perturb.evaluation.groups import Groups
    from imbalance_perturb.evaluation.interval_options import IntervalOptions
    from imbalance_perturb.evaluation.metrics import JointCounts
    from imbalance_perturb.evaluation.results import Difference, Evaluation, Scores

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Given:
    """What was given beside N predictions over C classes, each optional.

    ``base_probs`` and ``probs`` (N, C); ``shares`` (C,); ``costs`` (C, C).
    """

    base_probs: Floats | None
    probs: Floats | None
    shares: Floats | None
    costs: Floats | None

    @classmethod
    def check(
        cls,
        base_probs: ArrayLike | None,
        probs: ArrayLike | None,
        prevalence: ArrayLike | None,
        costs: ArrayLike | None,
        names: Sequence[str],
    ) -> Given:
        """Check the shares and the costs against the classes.

        Raises:
            SettingsError: if they do not fit.
        """
        return cls(
            None if base_probs is None else np.asarray(base_probs, dtype=np.float64),
            None if probs is None else np.asarray(probs, dtype=np.float64),
            None if prevalence is None else parse_shares(np.asarray(prevalence), names),
            None if costs is None else parse_costs(np.asarray(costs), names),
        )


def add_figures_in_use(
    evaluation: Evaluation,
    joint: JointCounts,
    columns: Sequence[ArrayLike],
    given: Given,
    evidence: Evidence,
    groups: Groups | None,
    options: IntervalOptions,
) -> Evaluation:
    """The evaluation with adjusted p-values, predictive values and, where they can be had, calibration and costs.

    ``columns`` are labels, base and perturbed predictions of N images, as class indices.
    """
    truth, base_preds, preds = (np.asarray(column, dtype=np.int64) for column in columns)
    shares, left_out = stated_shares(joint.base.sum(axis=1), given.shares)

    def complete(kind: Kind, preds: NDArray[np.int64], probs: Floats | None) -> Scores:
        scores: Scores = getattr(evaluation, kind)
        matrix = joint.base if kind == "base" else joint.perturbed
        values = predictive_values(matrix, shares, options, evidence.design_effects(kind))
        per_class = (replace(entry, values=each) for entry, each in zip(scores.per_class, values, strict=True))
        return replace(
            scores,
            per_class=tuple(per_class),
            calibration=None if probs is None else calibrate(truth, preds, probs),
        )

    return replace(
        evaluation,
        base=complete("base", base_preds, given.base_probs),
        perturbed=complete("perturbed", preds, given.probs),
        holm_p_values=_adjust(evaluation.gains),
        shares=tuple(shares.tolist()),
        shares_given=given.shares is not None,
        costs=None if given.costs is None else expected_costs(joint, given.costs, shares, options, evidence.drawer()),
        notes=(*evaluation.notes, *_notes(evaluation, truth, left_out, given, groups)),
    )


def _adjust(gains: Sequence[Difference | None]) -> tuple[float | None, ...]:
    known = {c: gain.p_value for c, gain in enumerate(gains) if gain is not None and gain.p_value is not None}
    adjusted = dict(zip(known, adjust_by_holm(list(known.values())).tolist(), strict=True))
    return tuple(adjusted.get(c) for c in range(len(gains)))


def _notes(
    evaluation: Evaluation, labels: NDArray[np.int64], left_out: Floats, given: Given, groups: Groups | None
) -> Iterator[str]:
    absent = [name for name, share in zip(evaluation.classes, left_out, strict=True) if share > 0]
    if absent:
        yield (
            f"the prevalence gives {left_out.sum():.3g} to classes without labelled images ({first_few(absent, 10)}):"
            " PPV, NPV and costs are at the shares of the others, taken to sum to 1"
        )
    if given.base_probs is not None and given.probs is not None:
        ids = None if groups is None else groups.ids
        said = mix_note(labels, given.base_probs, given.probs, evaluation.classes, evaluation.confidence_level, ids)
        if said is not None:
            yield said

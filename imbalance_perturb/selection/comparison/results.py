"""The results of a comparison of methods as plain values: written to JSON, shown in tables, drawn in reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from imbalance_perturb.config.settings import INPUT, DebiasSettings
from imbalance_perturb.config.settings import METHODS as APPLICABLE
from imbalance_perturb.evaluation.results import Difference, Grouping, Scores, interval_key

#: Methods whose predictions another one makes in `predict`: it has no labelled images, and a setting for the layer.
APPLIED_AS = {"p2p": "offsets", "perturb-at": "perturb"}


@dataclass(frozen=True)
class MethodResult:
    """One method: its parameters, its figures, and what it costs. Before it is scored it has no figures.

    ``parameters`` were chosen on all validation images; ``agreement`` says in how many of how many splits the same
    were chosen without a part of them (``None`` where there was nothing to choose). ``scores`` are of images that
    had no part in the choice, ``differences`` are this method minus `none` on the same images. ``passes`` counts
    forward passes an image, a backward pass to the input as one. ``unavailable`` says why a method could not be
    used; it then has no scores. ``layer`` is that of a step that is not taken at the input.
    """

    method: str
    control: bool = False
    parameters: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    agreement: tuple[int, int] | None = None
    passes: float = 1
    images_per_second: float | None = None
    scores: Scores | None = None
    differences: Mapping[str, Difference] = field(default_factory=dict)
    changed: int = 0
    unavailable: str | None = None
    layer: str | None = None

    @property
    def applicable(self) -> bool:
        """Whether `predict` has the method: it looks at one image at a time, and takes no control for a correction."""
        return APPLIED_AS.get(self.method, self.method) in APPLICABLE

    @property
    def setting(self) -> str:
        """The parameters as text, such as ``eps 0.005, tau 0.75``."""
        numbers = [f"{name} {value:g}" for name, value in self.parameters.items() if not isinstance(value, tuple)]
        where = [] if self.layer is None else [f"layer {self.layer}"]
        return ", ".join([*where, *numbers]) or ("fitted" if self.parameters else "")

    def to_dict(self, interval_key: str) -> dict[str, Any]:
        """The result as JSON has it."""
        data: dict[str, Any] = {
            "control": self.control,
            "available": self.unavailable is None,
            "parameters": dict(self.parameters),
            "perturb_at": self.layer,
            "same_choice_in_splits": None if self.agreement is None else list(self.agreement),
            "forward_equivalents": self.passes,
            "images_per_second": self.images_per_second,
        }
        if self.scores is None:
            return {**data, "reason": self.unavailable}
        differences = {name: difference.to_dict(interval_key) for name, difference in self.differences.items()}
        scores = self.scores.to_dict(interval_key)
        return {**data, "changed": self.changed, **scores, "difference": differences}


@dataclass(frozen=True)
class Advice:
    """The method to use, and one plain sentence saying why; ``metric`` is what decided."""

    method: str
    metric: str
    sentence: str


def applied_debias(result: MethodResult, debias: DebiasSettings) -> DebiasSettings:
    """The settings with which `predict` makes a method's predictions; T, loss, target and units stay as they are."""
    found: dict[str, Any] = dict(result.parameters)
    if result.method in ("perturb", "perturb-at") and debias.tau:
        found["tau"] = 0.0
    if result.layer is not None:
        found |= {"clip": False, "eps_space": "input"}  # there are no pixels
    found["perturb_at"] = result.layer or INPUT
    method = APPLIED_AS.get(result.method, result.method)
    if method == "offsets":
        found.pop("tau", None)  # it is in the offsets
    return replace(debias, method=method, **found)


@dataclass(frozen=True)
class Comparison:
    """Methods on the same ``n`` images.

    ``scored_on`` is ``test`` or ``validation``; in the latter case each image is predicted with parameters that were
    chosen without it. ``tuned_on`` is the number of images that parameters were chosen on.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    smallest_class: str
    objective: str
    scored_on: str
    tuned_on: int
    n: int
    results: tuple[MethodResult, ...]
    advice: Advice
    failed: tuple[str, ...]
    confidence_level: float
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    group: Grouping | None = None

    @property
    def advised(self) -> MethodResult:
        """The result of the method that is advised."""
        return next(result for result in self.results if result.method == self.advice.method)

    @property
    def headline(self) -> str:
        """What was scored and chosen on what, in one sentence."""
        if self.scored_on == "test":
            return f"{self.n:,} test images; parameters chosen on {self.tuned_on:,} validation images."
        return (
            f"{self.n:,} validation images, each predicted with parameters chosen without it (nested"
            " cross-validation); the parameters shown are chosen on all of them."
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON has it; ``ci95`` is named after the level."""
        key = interval_key(self.confidence_level)
        return {
            "n": self.n,
            "scored_on": self.scored_on,
            "tuned_on": self.tuned_on,
            "objective": self.objective,
            "classes": list(self.classes),
            "counts": list(self.counts),
            "smallest_class": self.smallest_class,
            "methods": {result.method: result.to_dict(key) for result in self.results},
            "advice": {
                "method": self.advice.method,
                "metric": self.advice.metric,
                "sentence": self.advice.sentence,
            },
            "failed": {"total": len(self.failed), "images": list(self.failed)},
            "notes": list(self.notes),
            "confidence_level": self.confidence_level,
            "group": None if self.group is None else self.group.to_dict(),
            **self.source,
        }

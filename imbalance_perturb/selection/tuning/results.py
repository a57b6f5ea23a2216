"""The results of a tuning as plain values: written to JSON, shown in tables, drawn in reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from imbalance_perturb.config.settings import INPUT
from imbalance_perturb.evaluation.results import Grouping, Interval, interval_key
from imbalance_perturb.selection.cross_validation import Figures
from imbalance_perturb.selection.rule import SelectionRule

#: The figures of a sweep in the order in which people read them; name -> heading.
FIGURES = {
    "mcr": "MCR",
    "scr": "SCR",
    "worst_class_recall": "worst",
    "gmean": "gmean",
    "accuracy": "accuracy",
}

#: The same where errors have costs: the expected cost of a prediction in the place of the geometric mean.
_COST_FIGURES = {name: title for name, title in FIGURES.items() if name != "gmean"} | {"cost": "cost"}


@dataclass(frozen=True)
class TriedCorrection:
    """One correction tried on all N images. eps 0, the model as it is, has no loss and no temperature.

    ``brier``: class-balanced (by costs: cost-weighted) Brier score with a fitted temperature, in [0, 2]; ``changed``:
    share of the predictions that differ from those with eps 0; ``gain``: in the objective over eps 0 (of costs: what is
    saved), ``gain_error`` its standard error (``None``: not known) and ``p_value`` that of the test whether there is
    more than chance gives among so many corrections tried; ``allowed``: accuracy and mean class recall (mean cost) are
    kept, as far as the rule asks.
    """

    eps: float
    temperature: float | None
    loss: str | None
    figures: Figures
    brier: float
    changed: float
    gain: float
    gain_error: float | None
    p_value: float
    allowed: bool

    @property
    def loss_spec(self) -> tuple[str | None, float | None]:
        """Loss and temperature."""
        return self.loss, self.temperature

    def to_dict(self) -> dict[str, Any]:
        """One row of the sweep as JSON has it."""
        data = asdict(self)
        figures: dict[str, Any] = data.pop("figures")
        return {key: data.pop(key) for key in ("eps", "temperature", "loss")} | figures | data


@dataclass(frozen=True)
class HeldOutFigure:
    """One figure on images that had no part in the choice: without correction, with the tuned one, and the gain."""

    base: float | None
    tuned: float | None
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Tuning:
    """A choice of eps, what it rests on, and its figures on images that had no part in it.

    ``tried[0]`` is eps 0; ``chosen`` indexes ``tried``. ``splits``: for each correction, in how many splits of the
    images it was chosen without the held-out part. ``held_out`` has the keys of ``figures``. ``support``: images of
    each class. ``failed``: reason by name of the images that could not be used. ``summary`` says the choice in words,
    ``notes`` what a reader must know beside it. ``perturb_at``: the layer behind which the steps are, or ``input``.
    """

    tried: tuple[TriedCorrection, ...]
    chosen: int
    splits: tuple[int, ...]
    held_out: Mapping[str, HeldOutFigure]
    rule: SelectionRule
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    support: tuple[int, ...]
    smallest_class: str
    n: int
    failed: Mapping[str, str]
    unused_labels: int
    passes: Mapping[str, int]
    seconds: Mapping[str, float]
    confidence_level: float
    summary: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    group: Grouping | None = None
    perturb_at: str = INPUT

    @property
    def choice(self) -> TriedCorrection:
        """The correction to use on new images."""
        return self.tried[self.chosen]

    @property
    def figures(self) -> dict[str, str]:
        """Those of the sweep, name -> heading."""
        return FIGURES if self.rule.costs is None else _COST_FIGURES

    @property
    def total_splits(self) -> int:
        """Number of splits in which the choice was made again."""
        return sum(self.splits)

    @property
    def loss_specs(self) -> list[tuple[str | None, float | None]]:
        """The losses and temperatures tried, in order."""
        return list(dict.fromkeys(correction.loss_spec for correction in self.tried if correction.eps > 0))

    def to_dict(self) -> dict[str, Any]:
        """The tuning as JSON has it; ``ci95`` is named after the level."""
        key = interval_key(self.confidence_level)
        choice = self.choice
        return {
            "choice": {
                "eps": choice.eps,
                "temperature": choice.temperature,
                "loss": choice.loss,
                "chosen_in_splits": self.splits[self.chosen],
                "splits": self.total_splits,
            },
            "summary": list(self.summary),
            "notes": list(self.notes),
            "held_out": {
                name: {
                    "base": held_out.base,
                    "tuned": held_out.tuned,
                    "difference": held_out.difference,
                    key: None if held_out.interval is None else held_out.interval.to_list(),
                }
                for name, held_out in self.held_out.items()
            },
            "spread": [
                {"eps": a.eps, "temperature": a.temperature, "loss": a.loss, "splits": count}
                for a, count in zip(self.tried, self.splits, strict=True)
                if count
            ],
            "sweep": [correction.to_dict() for correction in self.tried],
            "rule": asdict(self.rule),
            "n": self.n,
            "classes": [
                {"name": name, "count": count, "images": support}
                for name, count, support in zip(self.classes, self.counts, self.support, strict=True)
            ],
            "smallest_class": self.smallest_class,
            "failed": dict(self.failed),
            "unused_labels": self.unused_labels,
            "passes": dict(self.passes),
            "seconds": dict(self.seconds),
            "group": None if self.group is None else self.group.to_dict(),
            **self.source,
        }

"""The results of an evaluation as plain values: written to JSON, shown in tables, drawn in reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imbalance_perturb.evaluation.calibration import Calibration
    from imbalance_perturb.evaluation.costs import ExpectedCosts
    from imbalance_perturb.evaluation.predictive_values import PredictiveValues

#: The figures that sum up one kind of prediction, in the order in which people read them; name -> spelled out.
METRICS = {
    "mcr": "MCR (mean class recall)",
    "scr": "SCR (recall of the smallest class)",
    "worst_class_recall": "worst class recall",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auc": "AUC (one against the rest)",
}


#: Most classes whose confusion matrix is written in full: it grows with their square, and is empty for the most part.
MOST_MATRIX_CLASSES = 300


@dataclass(frozen=True)
class Grouping:
    """The groups that intervals and tests take as independent: by which column, how many, images in the largest."""

    column: str
    groups: int
    largest: int

    def to_dict(self) -> dict[str, Any]:
        """The grouping as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def to_list(self) -> list[float]:
        """Both ends, as JSON has them."""
        return [self.low, self.high]


@dataclass(frozen=True)
class ClassScores:
    """One class under one kind of prediction.

    ``count`` is its number of training images, ``support`` its labelled images here. ``recall`` is ``None``
    without labelled images; ``precision`` and ``f1`` are 0 where the class was never predicted, as scikit-learn
    has it with ``zero_division=0``, and ``None`` where it neither has labelled images nor was predicted. ``values``
    takes the class against the rest.
    """

    name: str
    count: int
    support: int
    predicted: int
    recall: float | None
    recall_interval: Interval | None
    precision: float | None
    f1: float | None
    values: PredictiveValues | None = None


@dataclass(frozen=True)
class Scores:
    """One kind of prediction (base or perturbed) over all images; figures in [0, 1].

    ``scr`` is ``None`` where the class with the fewest training images has no labelled image, ``auc`` where
    there are no probabilities. ``confusion_cells`` are (true class, predicted class, images) by class index, of those
    that occur, in that order.
    """

    mcr: float
    scr: float | None
    worst_class_recall: float
    worst_class: str
    accuracy: float
    macro_f1: float
    auc: float | None
    per_class: tuple[ClassScores, ...]
    confusion_cells: tuple[tuple[int, int, int], ...]
    intervals: Mapping[str, Interval]
    calibration: Calibration | None = None

    @property
    def confusion_matrix(self) -> tuple[tuple[int, ...], ...] | None:
        """True classes as rows, predicted ones as columns; ``None`` above :data:`MOST_MATRIX_CLASSES` classes."""
        size = len(self.per_class)
        if size > MOST_MATRIX_CLASSES:
            return None
        rows = [[0] * size for _ in range(size)]
        for true, predicted, images in self.confusion_cells:
            rows[true][predicted] = images
        return tuple(map(tuple, rows))

    def to_dict(self, interval_key: str) -> dict[str, Any]:
        """The scores as JSON has them; ``interval_key`` names the entry with the intervals."""
        data: dict[str, Any] = {name: getattr(self, name) for name in METRICS}
        data["worst_class"] = self.worst_class
        data[interval_key] = {name: interval.to_list() for name, interval in self.intervals.items()}
        data["per_class"] = {
            entry.name: {
                "recall": entry.recall,
                "precision": entry.precision,
                "f1": entry.f1,
                "support": entry.support,
                "predicted": entry.predicted,
                f"recall_{interval_key}": _list(entry.recall_interval),
                **({} if entry.values is None else entry.values.to_dict(interval_key)),
            }
            for entry in self.per_class
        }
        matrix = self.confusion_matrix
        data["confusion_matrix"] = None if matrix is None else [list(row) for row in matrix]
        if matrix is None:
            data["confusion_cells"] = [list(cell) for cell in self.confusion_cells]
        names = [entry.name for entry in self.per_class]
        data["calibration"] = None if self.calibration is None else self.calibration.to_dict(names)
        return data


@dataclass(frozen=True)
class Difference:
    """Perturbed minus base on the same images; ``test`` names where ``p_value`` comes from."""

    value: float
    interval: Interval | None
    p_value: float | None
    test: str | None

    @property
    def direction(self) -> int:
        """1 for a gain and -1 for a loss that is more than noise; 0 where the interval holds 0, or there is none."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return 0
        return 1 if self.value > 0 else -1

    def to_dict(self, interval_key: str) -> dict[str, Any]:
        """The difference as JSON has it; ``interval_key`` names the entry with the interval."""
        return {
            "value": self.value,
            interval_key: _list(self.interval),
            "p_value": self.p_value,
            "test": self.test,
        }


@dataclass(frozen=True)
class Changes:
    """The images whose predicted class the correction changed, by what became of them."""

    gained: int
    lost: int
    still_wrong: int

    @property
    def total(self) -> int:
        """All changed images."""
        return self.gained + self.lost + self.still_wrong


@dataclass(frozen=True)
class Evaluation:
    """Base and perturbed predictions of the same ``n`` labelled images, compared.

    ``failed`` are images with a label whose row has an error: they have no prediction and are in no figure.
    ``gains`` are the differences in recall, one for each class, ``holm_p_values`` their p-values adjusted for the
    number of classes. ``shares`` are those of the classes at which PPV, NPV and ``costs`` are stated: the labels', or
    ``shares_given``. ``unlabelled`` counts images that have a prediction
    and no label, ``unused_labels`` labels of images that were not predicted, ``notes`` says in words what a reader must
    know, ``run`` is what the run file says. ``group`` says which groups of images intervals and tests take as
    independent; ``None``: the images.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    smallest_class: str
    n: int
    base: Scores
    perturbed: Scores
    differences: Mapping[str, Difference]
    gains: tuple[Difference | None, ...]
    changes: Changes
    classes_without_labels: tuple[str, ...]
    failed: tuple[str, ...]
    unlabelled: int
    unused_labels: int
    confidence_level: float
    seed: int
    resamples: int
    notes: tuple[str, ...] = ()
    holm_p_values: tuple[float | None, ...] = ()
    shares: tuple[float, ...] = ()
    shares_given: bool = False
    costs: ExpectedCosts | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    group: Grouping | None = None

    @property
    def metrics(self) -> list[str]:
        """Those of :data:`METRICS` that there can be here: AUC only with probabilities."""
        return [
            name for name in METRICS if name != "auc" or self.base.auc is not None or self.perturbed.auc is not None
        ]

    @property
    def worst_classes(self) -> tuple[str, ...]:
        """The class with the lowest recall: one, or two where the correction changes which it is."""
        return tuple(dict.fromkeys((self.base.worst_class, self.perturbed.worst_class)))

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON has it; ``ci95`` is named after the level, so ``ci90`` for 0.9."""
        key = interval_key(self.confidence_level)
        return {
            "n": self.n,
            "classes": list(self.classes),
            "counts": list(self.counts),
            "smallest_class": self.smallest_class,
            "classes_without_labels": list(self.classes_without_labels),
            "base": self.base.to_dict(key),
            "perturbed": self.perturbed.to_dict(key),
            "difference": {name: difference.to_dict(key) for name, difference in self.differences.items()},
            "recall_gain": {
                name: None
                if gain is None
                else {"value": gain.value, key: _list(gain.interval), "p_value": gain.p_value, "p_holm": p_holm}
                for name, gain, p_holm in zip(self.classes, self.gains, self.holm_p_values, strict=True)
            },
            "prevalence": {
                "source": "given" if self.shares_given else "labels",
                "shares": dict(zip(self.classes, self.shares, strict=True)),
            },
            "costs": None if self.costs is None else self.costs.to_dict(key),
            "changed": {
                "total": self.changes.total,
                "gained": self.changes.gained,
                "lost": self.changes.lost,
                "still_wrong": self.changes.still_wrong,
            },
            "failed": {"total": len(self.failed), "images": list(self.failed)},
            "unlabelled": self.unlabelled,
            "unused_labels": self.unused_labels,
            "notes": list(self.notes),
            "confidence_level": self.confidence_level,
            "seed": self.seed,
            "resamples": self.resamples,
            "group": None if self.group is None else self.group.to_dict(),
            **self.source,
        }


def interval_key(level: float) -> str:
    """The name under which JSON has an interval: ``ci95``, or ``ci90`` for a level of 0.9."""
    return f"ci{100 * level:g}"


def _list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else interval.to_list()

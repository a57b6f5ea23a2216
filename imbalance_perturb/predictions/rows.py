"""One prediction as plain values, and the columns of a predictions file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

#: A confidence reproduces if it is as close as this: another batch or machine rounds differently.
TOLERANCE = 1e-4

#: Columns of every predictions file, in order; class probabilities follow where asked for.
COLUMNS = ("image", "base_pred", "base_confidence", "pred", "confidence", "changed", "error")

#: The column after them where the correction was left out for some images: whether it was run.
CORRECTED = "corrected"

#: The column after that where it was asked for: by how much the label was decided.
MARGIN = "margin"


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """The prediction for one image, or the reason why there is none.

    ``image`` is the POSIX path relative to the folder of images. Class names in ``base_pred`` and ``pred``;
    confidences are softmax probabilities of the predicted class in [0, 1]; ``probs`` and ``base_probs`` hold C
    probabilities in class-index order. ``corrected`` says whether the correction was run on the image, where it was
    left out for some. ``margin`` is the difference of the two largest corrected probabilities, in [0, 1], ``None``
    where it is not known. A row with an ``error`` has no prediction.
    """

    image: str
    base_pred: str | None = None
    base_confidence: float | None = None
    pred: str | None = None
    confidence: float | None = None
    error: str | None = None
    probs: tuple[float, ...] = ()
    base_probs: tuple[float, ...] = ()
    corrected: bool = True
    margin: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the correction changed the predicted class."""
        return self.error is None and self.pred != self.base_pred


class RowLayout(NamedTuple):
    """Which columns rows have: class names where probabilities are written, whether :data:`CORRECTED` is there.

    ``margin`` says whether :data:`MARGIN` is, too. ``bom`` has a CSV file begin with the byte-order mark by which Excel
    knows it for UTF-8.
    """

    classes: tuple[str, ...] = ()
    corrected: bool = False
    bom: bool = False
    margin: bool = False

    def columns(self) -> list[tuple[str, type]]:
        """Name and type of each column, in order."""
        types = dict.fromkeys(COLUMNS, str) | {"base_confidence": float, "confidence": float, "changed": bool}
        columns: list[tuple[str, type]] = [*types.items(), *([(CORRECTED, bool)] if self.corrected else [])]
        columns += [(MARGIN, float)] if self.margin else []
        return columns + [(f"{kind}{name}", float) for kind in ("p_", "base_p_") for name in self.classes]

    def record(self, row: PredictionRow) -> dict[str, Any]:
        """Return a row as ``{column: value}``; without a prediction its probabilities are left out."""
        failed = row.error is not None
        record: dict[str, Any] = {
            "image": row.image,
            "base_pred": row.base_pred,
            "base_confidence": row.base_confidence,
            "pred": row.pred,
            "confidence": row.confidence,
            "changed": None if failed else row.changed,
            "error": row.error,
        }
        if self.corrected:
            record[CORRECTED] = None if failed else row.corrected
        if self.margin:
            record[MARGIN] = row.margin
        if not failed:
            record |= {f"p_{name}": p for name, p in zip(self.classes, row.probs, strict=bool(self.classes))}
            record |= {f"base_p_{name}": p for name, p in zip(self.classes, row.base_probs, strict=bool(self.classes))}
        return record


def describe_difference(then: PredictionRow, now: PredictionRow) -> str | None:
    """Say why one of two rows of an image is not the other computed again; ``None`` where it is."""
    for name in ("error", "base_pred", "pred"):
        one, other = getattr(then, name), getattr(now, name)
        if one != other:
            return f"{name} {_quoted(one)} then, {_quoted(other)} now"
    distance = largest_difference(then, now)
    return None if distance <= TOLERANCE else f"confidences or probabilities differ by up to {distance:.2g}"


def _quoted(value: str | None) -> str:
    return "none" if value is None else repr(value)


def largest_difference(then: PredictionRow, now: PredictionRow) -> float:
    """Compare confidences, margins, probabilities of two rows: their largest difference, 0 where one has none."""
    values = [(row.base_confidence, row.confidence, row.margin, *row.base_probs, *row.probs) for row in (then, now)]
    if then.error is not None or now.error is not None:
        return 0.0
    pairs = zip(*values, strict=True)
    return max((abs(one - other) for one, other in pairs if one is not None and other is not None), default=0.0)

"""What gets written: one row for each image, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """The prediction for one image, or the reason why there is none.

    ``image`` is the POSIX path relative to the folder of images. Class names in ``base_pred`` and ``pred``;
    confidences are softmax probabilities of the predicted class in [0, 1]; ``probs`` and ``base_probs`` hold C
    probabilities in class-index order. ``corrected`` says whether the correction was run on the image, where it was
    left out for some. A row with an ``error`` has no prediction.
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

    @property
    def changed(self) -> bool:
        """Whether the correction changed the predicted class."""
        return self.error is None and self.pred != self.base_pred

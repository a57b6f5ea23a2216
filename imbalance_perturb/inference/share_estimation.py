"""Estimate the class shares of a folder of unlabelled images, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbalance_perturb.config.declarations import take_numbers
from imbalance_perturb.config.settings import DebiasSettings, Settings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.errors import ImageFolderError, SettingsError
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline, make_predictor
from imbalance_perturb.inference.progress import LoadedPipeline, Progress, ProgressLike, as_progress
from imbalance_perturb.inference.provenance import describe_source
from imbalance_perturb.method.class_shares import fit_shares, resample_shares, share_interval
from imbalance_perturb.predictions.deep_images import DeepImages

#: What the estimate rests on, for whoever reads it.
ASSUMPTIONS = (
    "Assumes that the class shares alone differ from training, and that the model's probabilities are calibrated to the"
    " class mix of COUNTS. The intervals hold the chance of the draw of images, not what is wrong with either."
)


@dataclass(frozen=True, kw_only=True)
class SharesOptions:
    """How the intervals are computed.

    Args:
        resamples: of the bootstrap over images; fewer are drawn where images times classes are very many.
        seed: of the resampling.

    Raises:
        SettingsError: if there are fewer than 100 resamples.
    """

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        take_numbers(self)
        if self.resamples < 100:
            raise SettingsError(f"resamples is {self.resamples}; expected a whole number, at least 100")


@dataclass(frozen=True)
class ClassShares:
    """Class shares among ``images`` usable images.

    ``shares`` and ``training``: for each class its share here and in training, from 0 to 1; ``intervals``: 95%
    (low, high) for each class, of ``resamples`` resamples. ``errors``: reason by name for the images that failed.
    ``warnings``: what the images as a whole give to think about.
    """

    classes: tuple[str, ...]
    shares: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    training: tuple[float, ...]
    images: int
    resamples: int
    errors: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many images could not be used."""
        return len(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """The shares as JSON has them."""
        return {
            "shares": dict(zip(self.classes, self.shares, strict=True)),
            "ci95": dict(zip(self.classes, map(list, self.intervals), strict=True)),
            "images": self.images,
            "failed": self.failed,
            "errors": dict(self.errors),
            "training": dict(zip(self.classes, self.training, strict=True)),
            "resamples": self.resamples,
            "warnings": list(self.warnings),
            **self.source,
        }


def estimate_shares(
    settings: Settings,
    images: str | Path | Sequence[str | Path] | ImageList,
    options: SharesOptions | None = None,
    progress: ProgressLike = None,
) -> ClassShares:
    """Estimate the share of each class among unlabelled images, from the plain model's probabilities.

    By expectation-maximisation (Saerens et al. 2002; :func:`fit_shares`), one forward pass an image; intervals by
    resampling the images.

    Args:
        settings: of the run; those of the correction are not used.
        images: as for :func:`predict_folder`.
        options: of the intervals.
        progress: told what is found and loaded and how far it is; or called with the number of images just done.

    Raises:
        ImageFolderError: if there are no images, or none that can be used.
        InterruptedRunError: if ``progress`` said to stop.
        ImbperturbError: whatever else is wrong with model, counts or machine.
    """
    options, progress = options or SharesOptions(), as_progress(progress)
    found = images if isinstance(images, ImageList) else find_images(images)
    progress.found(found, None)
    settings = replace(settings, debias=DebiasSettings(method="none"))
    pipeline = load_pipeline(settings, found, exact=True)
    progress.loaded(LoadedPipeline.of(pipeline))
    deep = DeepImages()
    posteriors, errors = _collect(pipeline, found, progress, deep)
    if len(posteriors) == 0:
        first = next(f"{name}: {error}" for name, error in errors.items())
        raise ImageFolderError(f"{found.root}: none of the images can be used (first: {first})")
    counts = np.array(pipeline.counts.counts, dtype=np.float64)
    training = counts / counts.sum()
    shares = fit_shares(posteriors, training)
    random = np.random.default_rng(options.seed)
    drawn = resample_shares(posteriors, training, shares, resamples=options.resamples, random=random)
    low, high = share_interval(shares, drawn, len(posteriors))
    return ClassShares(
        classes=pipeline.counts.names,
        shares=tuple(shares.tolist()),
        intervals=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        training=tuple(training.tolist()),
        images=len(posteriors),
        resamples=len(drawn),
        errors=errors,
        warnings=deep.warnings,
        source=describe_source(pipeline),
    )


def _collect(
    pipeline: Pipeline, images: ImageList, progress: Progress, deep: DeepImages
) -> tuple[np.ndarray, dict[str, str]]:
    """The posteriors of the usable images, (N, C) float64, and the reason by name for the others."""
    parts: list[np.ndarray] = []
    errors: dict[str, str] = {}
    done = 0
    batches = iter_predictions(
        make_predictor(pipeline),
        images,
        pipeline.preprocessing,
        pipeline.execution,
        probabilities=True,
        deep=deep,
    )
    with applied(pipeline.execution), progress.counting(len(images)), closing(batches):
        for rows in batches:
            errors |= {row.image: row.error for row in rows if row.error is not None}
            parts.append(np.array([row.base_probs for row in rows if row.error is None]))
            done += len(rows)
            progress.advance(len(rows))
            progress.check_stop(done, len(images))
    usable = [part for part in parts if len(part)]
    return (np.concatenate(usable) if usable else np.empty((0, len(pipeline.counts)))), errors

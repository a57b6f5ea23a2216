"""Whether a predictions file is what its run file says, and whether rows of it come out again."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.image_files import ImageList, iter_sizes
from imbalance_perturb.data.remote_files import RemotePath, find_place
from imbalance_perturb.errors import PredictionsError, SettingsError
from imbalance_perturb.files.writing import FORMATS
from imbalance_perturb.inference.pipeline import Pipeline
from imbalance_perturb.inference.places import find_counts, find_images, find_predictions
from imbalance_perturb.inference.progress import LoadedPipeline, Progress, ProgressLike, as_progress
from imbalance_perturb.inference.provenance import describe_making
from imbalance_perturb.inference.rerun import RerunOptions, iter_again, load_again, settle_again
from imbalance_perturb.predictions.reading import iter_images, iter_rows
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout, describe_difference, largest_difference
from imbalance_perturb.predictions.run_differences import differences
from imbalance_perturb.predictions.run_file import RunFile, load_run_file, run_path
from imbalance_perturb.predictions.shards import files_sha256
from imbalance_perturb.predictions.writing import text_rows

#: Images at the start of the file that may be looked at for the size of the model's input.
_FIRST = 100


class Mismatch(NamedTuple):
    """An image whose row does not come out again, and what is different."""

    image: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Of ``total`` rows ``sampled`` were computed again (chosen by ``seed``), and ``reproduced`` of them came out again,
    ``identical`` to the last digit. ``largest_difference`` is of their confidences and probabilities. ``notes``:
    what is different from the run, such as versions.
    """

    run: str
    predictions: str
    total: int
    sampled: int
    seed: int
    reproduced: int
    identical: int
    largest_difference: float
    mismatches: tuple[Mismatch, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(RerunOptions):
    """How much is computed again; and as :class:`RerunOptions` where the files are now, and what may run code.

    Args:
        sample: rows to compute again, all where there are fewer.
        seed: of the sample; ``None`` draws one.
        counts: where they are now, if not where the run file says.

    Raises:
        SettingsError: if ``sample`` is below 1.
    """

    sample: int = 32
    seed: int | None = None
    counts: str | Path | None = None

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise SettingsError(f"sample is {self.sample}; expected a number of rows, at least 1")


def verify_run(path: str | Path, options: VerifyOptions | None = None, progress: ProgressLike = None) -> Verification:
    """Check the files of a run by their hashes, and compute a random sample of its rows again.

    Args:
        path: the run file, or the predictions file beside it.
        options: how many rows, where the files are now, and what may run code.
        progress: told what is loaded and how far it is; or called with the number of images just done.

    Raises:
        SettingsError: if the run file names a factory and ``options.factory`` is not given.
        InterruptedRunError: if ``progress`` said to stop.
        PredictionsError: if the run file cannot be used, or predictions, model or counts are not those of the run.
        ImbperturbError: if the model cannot be run here.
    """
    path, options = Path(path), options or VerifyOptions()
    given = path if path.suffix.lower() in FORMATS else None
    path = path if given is None else run_path(path)
    run = load_run_file(path)
    predictions = find_predictions(path, run, given)
    settings = settle_again(path, run, options)
    counts = find_counts(path, run, options.counts)
    settings = replace(settings, model=replace(settings.model, counts=counts))
    seed = secrets.randbits(32) if options.seed is None else options.seed
    recorded = _sample_rows(predictions, run.layout, run.images.total, options.sample, seed)
    root = find_images(path, run, options.images, recorded.first)
    again = _Again(path, run, settings, root, recorded, predictions, as_progress(progress))
    return _compare(recorded.rows, again, seed=seed, predictions=predictions)


class _Recorded(NamedTuple):
    """Rows of the file: the sampled ones, and the first images of all."""

    rows: list[PredictionRow]
    first: list[str]


class _Again:
    """The sampled rows, computed again."""

    def __init__(
        self,
        path: Path,
        run: RunFile,
        settings: Settings,
        root: Path | RemotePath,
        recorded: _Recorded,
        predictions: Path,
        progress: Progress,
    ) -> None:
        self.path, self.run, self._predictions = path, run, predictions
        self._settings, self._progress = settings, progress
        source = find_place(self.run.images.source)
        names = [row.image for row in recorded.rows]
        self._images = ImageList(source, root, names, whole=recorded.first)
        self.layout, self.suffix = self.run.layout, self.run.output.format

    def compute(self) -> tuple[dict[str, PredictionRow], list[str]]:
        """The rows by their image, and what is different from the run."""
        if not len(self._images):
            return {}, []
        pipeline = load_again(self.path, self.run, self._settings, self._images)
        self._progress.loaded(LoadedPipeline.of(pipeline))
        notes = self._differences(pipeline)
        found: dict[str, PredictionRow] = {}
        with self._progress.counting(len(self._images)):
            probabilities = bool(self.layout.classes)
            for rows in iter_again(self.path, self.run, pipeline, self._images, probabilities=probabilities):
                found |= {row.image: row for row in rows}
                self._progress.advance(len(rows))
                self._progress.check_stop(len(found), len(self._images))
        return found, notes

    def _differences(self, pipeline: Pipeline) -> list[str]:
        now = describe_making(pipeline, self._images, self.layout, self.suffix)
        # Files and settings are the run's own, wherever they lie; of its images these are some.
        now = replace(
            now, images=replace(self.run.images, files_sha256=self._files_sha256()), settings=self.run.settings
        )
        return differences(self.run, now)

    def _files_sha256(self) -> str:
        """What the image files are now, as the run file has it; of a part the others' names are not known."""
        if self.run.images.total != self.run.images.list_total:
            return self.run.images.files_sha256
        names, again = (iter_images(self._predictions) for _ in range(2))
        return files_sha256(names, iter_sizes(self._images.root, again))


def _sample_rows(predictions: Path, layout: RowLayout, total: int, sample: int, seed: int) -> _Recorded:
    chosen = frozenset(random.Random(seed).sample(range(total), min(sample, total)))
    rows, first = [], []
    for index, row in enumerate(iter_rows(predictions, layout)):
        if index in chosen:
            rows.append(row)
        if index < _FIRST:
            first.append(row.image)
    if len(rows) != len(chosen):
        raise PredictionsError(f"{predictions}: has fewer rows than the {total:,} that its run file tells of")
    return _Recorded(rows, first)


def _compare(recorded: Sequence[PredictionRow], again: _Again, *, seed: int, predictions: Path) -> Verification:
    found, notes = again.compute()
    line = text_rows(again.suffix, again.layout).line
    reasons = [(row.image, describe_difference(row, found[row.image])) for row in recorded]
    mismatches = tuple(Mismatch(image, reason) for image, reason in reasons if reason is not None)
    return Verification(
        run=str(again.path),
        predictions=str(predictions),
        total=again.run.images.total,
        sampled=len(recorded),
        seed=seed,
        reproduced=len(recorded) - len(mismatches),
        identical=sum(line(row) == line(found[row.image]) for row in recorded),
        largest_difference=max((largest_difference(row, found[row.image]) for row in recorded), default=0.0),
        mismatches=mismatches,
        notes=tuple(notes),
    )

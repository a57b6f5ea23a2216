"""Whether a predictions file is what its run file says, and whether rows of it come out again."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from imbalance_perturb.config.code_grants import grant_code
from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.image_files import ImageList, iter_sizes
from imbalance_perturb.errors import PredictionsError, SettingsError
from imbalance_perturb.files.writing import FORMATS
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline, make_predictor
from imbalance_perturb.inference.places import find_counts, find_images, find_model, find_predictions, settings_of
from imbalance_perturb.inference.progress import Progress, ProgressLike, as_progress
from imbalance_perturb.inference.provenance import describe_making
from imbalance_perturb.predictions.reading import iter_images, iter_rows
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout, describe_difference, largest_difference
from imbalance_perturb.predictions.run_differences import differences
from imbalance_perturb.predictions.run_file import RunFile, load_run_file, run_path
from imbalance_perturb.predictions.run_state import PredictorState
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
class VerifyOptions:
    """How much is computed again, where the files of the run are now, and what of it may run code.

    Args:
        sample: rows to compute again, all where there are fewer.
        seed: of the sample; ``None`` draws one.
        model, counts, images: where these are now, if not where the run file says.
        device: to compute on; that of the run's settings by default.
        factory: ``package.module:function`` that builds the network; a run that had one needs it again.
        trust_model_file: load a model file that runs code of its own, whatever the run file says.

    Raises:
        SettingsError: if ``sample`` is below 1.
    """

    sample: int = 32
    seed: int | None = None
    model: str | Path | None = None
    counts: str | Path | None = None
    images: str | Path | None = None
    device: str | None = None
    factory: str | None = None
    trust_model_file: bool = False

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
    sample, seed, model, counts, images = options.sample, options.seed, options.model, options.counts, options.images
    device, factory, trust_model_file = options.device, options.factory, options.trust_model_file
    given = path if path.suffix.lower() in FORMATS else None
    path = path if given is None else run_path(path)
    run = load_run_file(path)
    predictions = find_predictions(path, run, given)
    settings = settings_of(path, run)
    grant_code(path, {"factory": settings.model.factory}, {} if factory is None else {"factory": factory})
    files = replace(
        settings.model,
        model=find_model(path, run, model),
        counts=find_counts(path, run, counts),
        trust_model_file=run.model.sha256 if trust_model_file else False,
    )
    if factory is not None:
        files = replace(files, arch=None, factory=factory)
    machine = replace(settings.run, device=device or settings.run.device, batch_size=run.execution.batch_size)
    settings = replace(settings, model=files, run=machine)
    seed = secrets.randbits(32) if seed is None else seed
    recorded = _sample_rows(predictions, run.layout, run.images.total, sample, seed)
    root = find_images(path, run, images, recorded.first)
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
        root: Path,
        recorded: _Recorded,
        predictions: Path,
        progress: Progress,
    ) -> None:
        self.path, self.run, self._predictions = path, run, predictions
        self._settings, self._progress = settings, progress
        source = Path(self.run.images.source)
        names = [row.image for row in recorded.rows]
        self._images = ImageList(source, root, names, whole=recorded.first)
        self.layout, self.suffix = self.run.layout, self.run.output.format

    def compute(self) -> tuple[dict[str, PredictionRow], list[str]]:
        """The rows by their image, and what is different from the run."""
        if not len(self._images):
            return {}, []
        pipeline = load_pipeline(self._settings, self._images, n_images=self.run.images.list_total)
        self._progress.loaded(pipeline)
        notes = self._differences(pipeline)
        found: dict[str, PredictionRow] = {}
        with self._progress.counting(len(self._images)):
            for rows in self._iter_rows(pipeline):
                found |= {row.image: row for row in rows}
                self._progress.advance(len(rows))
                self._progress.check_stop(len(found), len(self._images))
        return found, notes

    def _differences(self, pipeline: Pipeline) -> list[str]:
        for what, then, digest in (
            ("model", self.run.model.sha256, pipeline.model.info.sha256),
            ("counts", self.run.counts.sha256, pipeline.counts_sha256),
        ):
            if digest != then:  # it was, when the file was looked for
                raise PredictionsError(f"{self.path}: the {what} file was replaced while it was read; verify it again")
        now = describe_making(pipeline, self._images, self.layout, self.suffix)
        # Files and settings are the run's own, wherever they lie; of its images these are some.
        now = replace(
            now, images=replace(self.run.images, files_sha256=self._files_sha256()), settings=self.run.settings
        )
        found = differences(self.run, now)
        if any(name.startswith("the class counts") for name in found):
            raise PredictionsError(
                f"{self.path}: was made with another target distribution than {self._settings.debias.target} has now;"
                " put that file back"
            )
        return found

    def _files_sha256(self) -> str:
        """What the image files are now, as the run file has it; of a part the others' names are not known."""
        if self.run.images.total != self.run.images.list_total:
            return self.run.images.files_sha256
        names, again = (iter_images(self._predictions) for _ in range(2))
        return files_sha256(names, iter_sizes(self._images.root, again))

    def _iter_rows(self, pipeline: Pipeline) -> Iterator[list[PredictionRow]]:
        for names, state in self._by_part():
            if names and state.close_calls_only and state.bounds.reach is None:
                raise PredictionsError(
                    f"{self.path}: predictor.bounds.reach is null; expected a list of 2 where close_calls_only is true"
                )
            predictor = make_predictor(pipeline)
            predictor.restore(state)
            batches = iter_predictions(
                predictor,
                replace(self._images, names=names),
                pipeline.preprocessing,
                pipeline.execution,
                probabilities=bool(self.layout.classes),
            )
            with applied(pipeline.execution), closing(batches):
                yield from batches

    def _by_part(self) -> Iterator[tuple[list[str], PredictorState]]:
        """Images with the state of the predictor that they were predicted by; a merged run had several."""
        if self.run.parts is None:
            yield list(self._images.names), self.run.predictor
            return
        for part in self.run.parts:
            names = [name for name in self._images.names if part.shard.holds(name)]
            if names:
                yield names, part.predictor


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

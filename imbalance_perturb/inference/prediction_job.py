"""The use case `predict`: from settings and a folder to a file of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.files.writing import STDOUT
from imbalance_perturb.inference.failure_limit import select_limit
from imbalance_perturb.inference.progress import LoadedPipeline, Progress, ProgressLike, as_progress
from imbalance_perturb.inference.row_source import OutputForm, RowSource
from imbalance_perturb.predictions.journal import check_place
from imbalance_perturb.predictions.resuming import check_unfinished, recorded_batch_size
from imbalance_perturb.predictions.shards import Shard, parse_shard
from imbalance_perturb.predictions.writing import check_bom

if TYPE_CHECKING:
    from imbalance_perturb.inference.folder_prediction import RunSummary
    from imbalance_perturb.inference.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Which images are predicted, what is written of them, and when to give up.

    Args:
        probs: write the probabilities of all classes, too.
        resume: go on with the rows of a run that was cut off (``True``), or drop them and start anew (``False``);
            ``None`` starts where there are none and refuses where there are.
        shard: ``I/N``, such as ``3/8``: only the I-th of N parts of the images, told by their paths.
        on_error: what an image that cannot be used does: ``skip`` (a row with the reason) or ``fail`` (the end).
        max_failures: end when more images fail: a number, or a share of all such as ``5%``; ``None`` is no limit.
        bom: begin the CSV with a byte-order mark, by which Excel knows it for UTF-8.
        margin: write by how much the label was decided, too: the difference of the two largest probabilities.

    Raises:
        SettingsError: if a value is none of these, or ``max_failures`` contradicts ``on_error``.
    """

    probs: bool = False
    resume: bool | None = None
    shard: str | None = None
    on_error: str = "skip"
    max_failures: int | str | None = None
    bom: bool = False
    margin: bool = False

    def __post_init__(self) -> None:
        self.part()
        select_limit(self.on_error, self.max_failures, 0)

    def part(self) -> Shard | None:
        """The part that ``shard`` names, ``None`` for all images."""
        return None if self.shard is None else parse_shard(self.shard)

    def form(self, out: str) -> OutputForm:
        """What the predictions file ``out`` is to look like."""
        return OutputForm(".csv" if out == STDOUT else Path(out).suffix, self.probs, self.bom, self.margin)


def predict_folder(
    settings: Settings | Pipeline,
    images: str | Path | Sequence[str | Path] | ImageList,
    out: str | Path = "predictions.csv",
    options: PredictOptions | None = None,
    progress: ProgressLike = None,
    *,
    engine: str | None = None,
) -> RunSummary:
    """Predict all images, plain and corrected, and write one row for each, then the run file beside them.

    Args:
        settings: of the run; or a pipeline that is loaded already, for several folders with one model. A run that is
            resumed takes the batch size it had, which a pipeline loaded before cannot know: name it in its settings.
        images: one or more folders, images, tables with a column ``image`` or lists of paths; or a URL; or what
            :func:`find_images` gave.
        out: ``.csv``, ``.jsonl`` or ``.parquet`` path, or ``-`` for CSV on stdout (then no run file is written).
        options: which images, what is written, and when to give up.
        progress: told what is found and loaded and how far it is; or called with the number of images just done.
        engine: ``local`` or ``ray``; by default that of the settings, which say more of a cluster.

    Raises:
        ImageFolderError: if there are no images, or machines of a cluster do not see them.
        ClusterError: if there is no such cluster, or its workers end again and again.
        SettingsError: if a value is out of range, or a byte-order mark is asked for where no CSV is written.
        ResumeError: if there is an unfinished run and ``options.resume`` does not fit it.
        TooManyFailuresError: if more images fail than may.
        InterruptedRunError: if ``progress`` said to stop; the rows so far are kept.
        OutputFileError: if the rows cannot be written.
        ImbperturbError: whatever else is wrong with model, counts or machine.
    """
    options, progress, out = options or PredictOptions(), as_progress(progress), str(out)
    part = options.part()
    if options.bom:
        check_bom(out)
    if out != STDOUT:
        check_place(Path(out))
    found = images if isinstance(images, ImageList) else find_images(images)
    found = found if part is None else found.part(part.holds)
    progress.found(found, part)
    failures = select_limit(options.on_error, options.max_failures, len(found))
    check_unfinished(out, options.resume)

    if isinstance(settings, Settings):
        run = settings.run if engine is None else replace(settings.run, engine=engine)
        if options.resume and run.batch_size is None:
            run = replace(run, batch_size=recorded_batch_size(out))
        settings = replace(settings, run=run)
    elif engine not in (None, "local"):
        raise SettingsError(f"engine is {engine}, whose workers load a pipeline each; give settings, not a pipeline")
    # Only now: what is wrong with a path need not wait for torch.
    from imbalance_perturb.inference.folder_prediction import write_predictions

    with _open_source(settings, found, out, options, progress) as source:
        summary = write_predictions(
            source, found, out, resume=options.resume, shard=part, failures=failures, progress=progress
        )
        return replace(summary, strength=source.strength(found))


@contextmanager
def _open_source(
    settings: Settings | Pipeline, images: ImageList, out: str, options: PredictOptions, progress: Progress
) -> Iterator[RowSource]:
    """Where the rows come from: this process, or a cluster, of which this process then needs no torch."""
    form = options.form(out)
    if isinstance(settings, Settings) and settings.run.engine == "ray":
        from imbalance_perturb.inference.ray_engine.ray_rows import open_ray_rows

        with open_ray_rows(settings, images, None if out == STDOUT else Path(out), form, progress) as source:
            yield source
        return
    from imbalance_perturb.inference.local_rows import LocalRows
    from imbalance_perturb.inference.pipeline import load_pipeline

    pipeline = load_pipeline(settings, images) if isinstance(settings, Settings) else settings
    if isinstance(settings, Settings):
        progress.loaded(LoadedPipeline.of(pipeline))
    yield LocalRows(pipeline, images, form)

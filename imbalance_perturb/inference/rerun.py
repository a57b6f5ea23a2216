"""A run loaded again by its run file: from the files that it was made with, wherever they are now."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from imbalance_perturb.config.code_grants import grant_code
from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline, make_predictor
from imbalance_perturb.inference.places import find_model, settings_of
from imbalance_perturb.method.counts import CountsFile
from imbalance_perturb.predictions.rows import PredictionRow
from imbalance_perturb.predictions.run_file import RunFile
from imbalance_perturb.predictions.run_state import PredictorState


@dataclass(frozen=True, kw_only=True)
class RerunOptions:
    """Where the files of a run are now, what they are run on, and what of it may run code.

    Args:
        model, images: where these are now, if not where the run file says.
        device: to compute on; that of the run's settings by default.
        factory: ``package.module:function`` that builds the network; a run that had one needs it again.
        trust_model_file: load a model file that runs code of its own, whatever the run file says.
    """

    model: str | Path | None = None
    images: str | Path | None = None
    device: str | None = None
    factory: str | None = None
    trust_model_file: bool = False


def settle_again(path: Path, run: RunFile, options: RerunOptions) -> Settings:
    """The settings of a run, with its model where it is now, and code only as the options grant it.

    Args:
        path: the run file.
        run: what it says.
        options: where the files are, and what may run code.

    Raises:
        SettingsError: if the run file names a factory that the options do not.
        PredictionsError: if the model is not there, or is not that of the run.
    """
    settings, factory = settings_of(path, run), options.factory
    grant_code(path, {"factory": settings.model.factory}, {} if factory is None else {"factory": factory})
    files = replace(
        settings.model,
        model=find_model(path, run, options.model),
        trust_model_file=run.model.sha256 if options.trust_model_file else False,
    )
    if factory is not None:
        files = replace(files, arch=None, factory=factory)
    machine = replace(settings.run, device=options.device or settings.run.device, batch_size=run.execution.batch_size)
    return replace(settings, model=files, run=machine)


def load_again(
    path: Path, run: RunFile, settings: Settings, images: ImageList, counts_file: CountsFile | None = None
) -> Pipeline:
    """Load what a run computed with, and prove that it is that.

    Args:
        path: the run file.
        run: what it says.
        settings: what :func:`settle_again` gave.
        images: those of the run that are computed again.
        counts_file: the counts, where they are not to be read from the settings' file.

    Raises:
        PredictionsError: if model, counts or target distribution are not those of the run.
        ImbperturbError: if the model cannot be run here.
    """
    pipeline = load_pipeline(settings, images, n_images=run.images.list_total, counts_file=counts_file)
    for what, then, digest in (
        ("model", run.model.sha256, pipeline.model.info.sha256),
        ("counts", run.counts.sha256, pipeline.counts_sha256),
    ):
        if digest != then:  # it was, when the file was looked for
            raise PredictionsError(f"{path}: the {what} file was replaced while it was read; do it again")
    now = list(zip(pipeline.counts.names, pipeline.counts.counts, pipeline.target.tolist(), strict=True))
    if [(one.name, one.count, one.target) for one in run.classes] != now:
        raise PredictionsError(
            f"{path}: was made with another target distribution than {settings.debias.target} has now; put that file"
            " back"
        )
    return pipeline


def iter_again(
    path: Path, run: RunFile, pipeline: Pipeline, images: ImageList, *, probabilities: bool
) -> Generator[list[PredictionRow]]:
    """Rows of images of a run, computed again as the run did, a batch at a time.

    Arguments as for :func:`load_again`, which gave ``pipeline``; ``probabilities``: of all classes, too.
    """
    for names, state in _by_part(run, images):
        if names and state.close_calls_only and state.bounds.reach is None:
            raise PredictionsError(
                f"{path}: predictor.bounds.reach is null; expected a list of 2 where close_calls_only is true"
            )
        predictor = make_predictor(pipeline)
        predictor.restore(state)
        batches = iter_predictions(
            predictor,
            replace(images, names=names),
            pipeline.preprocessing,
            pipeline.execution,
            probabilities=probabilities,
        )
        with applied(pipeline.execution), closing(batches):
            yield from batches


def _by_part(run: RunFile, images: ImageList) -> Iterator[tuple[list[str], PredictorState]]:
    """Images with the state of the predictor that they were predicted by; a merged run had several."""
    if run.parts is None:
        yield list(images.names), run.predictor
        return
    for part in run.parts:
        names = [name for name in images.names if part.shard.holds(name)]
        if names:
            yield names, part.predictor

"""What a use case tells while it works, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from imbalance_perturb.errors import InterruptedRunError
from imbalance_perturb.predictions.making import ModelEntry, StepStrength

if TYPE_CHECKING:
    from imbalance_perturb.config.settings import Settings
    from imbalance_perturb.data.image_files import ImageList
    from imbalance_perturb.inference.pipeline import Pipeline
    from imbalance_perturb.predictions.shards import Shard


@dataclass(frozen=True, kw_only=True)
class LoadedPipeline:
    """What a pipeline is, as plain values: it may be loaded on another machine than it is told of.

    Attributes:
        model: the model file and what was found in it.
        probe_seconds: for which the model was tried.
        counts_notes: what was made of the counts' file.
        preprocessing: what is done to each image, in words.
        settings: of the run, with a number for eps.
        active: whether a correction is computed with the network: the input is moved, or the file corrects itself.
        strength: how eps was found, where it was asked for as ``auto``.
        device, device_name: where it runs, as torch and as people call it.
        precision: in words.
        batch_size: images a batch.
        workers: decoding processes.
        network: how the network's passes were sped up, in words.
    """

    model: ModelEntry
    probe_seconds: float
    counts_notes: tuple[str, ...]
    preprocessing: str
    settings: Settings
    active: bool
    strength: StepStrength | None
    device: str
    device_name: str
    precision: str
    batch_size: int
    workers: int
    network: str

    @classmethod
    def of(cls, pipeline: Pipeline) -> LoadedPipeline:
        """Describe a pipeline that is loaded here."""
        execution = pipeline.execution
        return cls(
            model=ModelEntry(**asdict(pipeline.model.info)),
            probe_seconds=pipeline.probe.seconds,
            counts_notes=tuple(pipeline.counts.notes),
            preprocessing=pipeline.preprocessing.describe(),
            settings=pipeline.settings,
            active=pipeline.debiased.active or pipeline.model.card is not None,
            strength=pipeline.strength,
            device=str(execution.device),
            device_name=execution.device_name,
            precision=execution.describe_precision(),
            batch_size=execution.batch_size,
            workers=execution.workers,
            network=pipeline.optimisation.path,
        )


class Progress:
    """Listens to a use case: override what you want to hear. Here every method does nothing.

    Methods are called in their order below, in the thread of the caller; a comparison counts several times.
    """

    def found(self, images: ImageList, shard: Shard | None = None) -> None:
        """These images are what the work is about, or ``shard`` of them; nothing is loaded yet."""

    def cluster(self, text: str) -> None:
        """The cluster that the work is spread over, in words; nothing is loaded yet."""

    def loaded(self, pipeline: LoadedPipeline) -> None:
        """The model is loaded and checked; no image has been computed yet."""

    def started(self, total: int, done: int = 0) -> None:
        """Counting starts: of ``total`` images an earlier run has done ``done``."""

    def advance(self, n: int) -> None:
        """``n`` images more are done."""

    def workers(self, at_work: int, wanted: int) -> None:
        """So many workers of a cluster are at work, of so many that are wanted."""

    def should_stop(self) -> str | None:
        """Asked after each batch: a word (the name of a signal, say) ends the work there, ``None`` lets it go on."""
        return None

    def ended(self) -> None:
        """Counting ends, be it with an error."""

    @contextmanager
    def counting(self, total: int, done: int = 0) -> Iterator[None]:
        """Tell :meth:`started`, and :meth:`ended` however the block ends."""
        self.started(total, done)
        try:
            yield
        finally:
            self.ended()

    def check_stop(self, done: int, total: int) -> None:
        """End the work where that is wanted and something is left to do.

        Raises:
            InterruptedRunError: saying how far it was.
        """
        if done < total and (word := self.should_stop()):
            raise InterruptedRunError(f"stopped by {word} after {done:,} of {total:,} images")


#: What ``progress=`` takes: a listener, or a function that is called with the number of images just done.
ProgressLike = Progress | Callable[[int], object] | None


class _Calling(Progress):
    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance

    def advance(self, n: int) -> None:
        self._advance(n)


def as_progress(progress: ProgressLike) -> Progress:
    """A listener that does what ``progress=`` was given for."""
    if isinstance(progress, Progress):
        return progress
    return Progress() if progress is None else _Calling(progress)

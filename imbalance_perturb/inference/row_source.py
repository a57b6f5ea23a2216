"""Where the rows of a run come from, whichever machines compute them: done slices, in the order of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_file import EngineEntry
from imbalance_perturb.predictions.run_state import PredictorState, RunState


class OutputForm(NamedTuple):
    """What the predictions file is to look like: its suffix, and which columns are asked for."""

    suffix: str
    probabilities: bool = False
    bom: bool = False
    margin: bool = False

    def layout(self, classes: Sequence[str], *, close_calls_only: bool) -> RowLayout:
        """The columns, for classes by their names."""
        return RowLayout(tuple(classes) if self.probabilities else (), close_calls_only, self.bom, self.margin)


class DoneSlice(NamedTuple):
    """Consecutive images that are done: their rows as text of the file's format, and what is counted of them."""

    text: str
    images: int
    changed: int
    broken: list[PredictionRow]

    @classmethod
    def of(cls, rows: Sequence[PredictionRow], line: Callable[[PredictionRow], str]) -> DoneSlice:
        """Write rows as text, by the format's own ``line``, and count them."""
        broken = [row for row in rows if row.error is not None]
        return cls("".join(map(line, rows)), len(rows), sum(row.changed for row in rows), broken)

    @classmethod
    def joined(cls, parts: Sequence[DoneSlice]) -> DoneSlice:
        """Put consecutive slices together."""
        return cls(
            "".join(part.text for part in parts),
            sum(part.images for part in parts),
            sum(part.changed for part in parts),
            [row for part in parts for row in part.broken],
        )


class RowSource(Protocol):
    """Computes the rows of a run.

    Attributes:
        layout: the columns of the rows.
        machine: the entries of what makes the rows but that of the images (``describe_machine``).
        stopwatch: seconds of each stage.
        deep: the images of more than 8 bits.
        begins_settled: whether it is calibrated before it begins and may do slices ahead of their turn: then the run
            begins with a mark, and it tells of images itself once they are done, not when their rows are written.
        engine: what the run file says of a cluster, ``None`` where there is none.
    """

    layout: RowLayout
    machine: dict[str, Any]
    stopwatch: Stopwatch
    deep: DeepImages
    begins_settled: bool

    @property
    def engine(self) -> EngineEntry | None:
        """See above: it is known in the end."""
        ...

    def iter_done(self, names: Sequence[str], start: int, check_stop: Callable[[], None]) -> Iterator[DoneSlice]:
        """Compute the rows of ``names`` from position ``start`` on, in order; each image comes once.

        ``check_stop`` is for who waits for long: it raises where the run is to end.
        """
        ...

    def state(self) -> PredictorState:
        """Where the predictor stands, after the slices that have come."""
        ...

    def resume(self, state: RunState) -> None:
        """Take up where a run stood that was cut off."""
        ...

    def strength(self, images: ImageList) -> float | None:
        """How strong the step of the finished run was (``told_strength``)."""
        ...

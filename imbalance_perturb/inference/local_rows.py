"""The rows of a run, computed in this process by a pipeline that is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.pipeline import Pipeline, make_predictor
from imbalance_perturb.inference.provenance import describe_machine
from imbalance_perturb.inference.row_source import DoneSlice, OutputForm
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.inference.told_strength import tell_strength
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.run_file import EngineEntry
from imbalance_perturb.predictions.run_state import PredictorState, RunState
from imbalance_perturb.predictions.writing import text_rows


class LocalRows:
    """Rows of images by a pipeline; a :class:`RowSource`."""

    begins_settled = False
    engine: EngineEntry | None = None

    def __init__(self, pipeline: Pipeline, images: ImageList, form: OutputForm) -> None:
        self._pipeline, self._images, self._form = pipeline, images, form
        names, close_calls_only = pipeline.counts.names, pipeline.settings.run.close_calls_only
        self.layout = form.layout(names, close_calls_only=close_calls_only)
        self.machine = describe_machine(pipeline, self.layout, form.suffix)
        self.stopwatch, self.deep, self._predictor = Stopwatch(), DeepImages(), make_predictor(pipeline)

    def iter_done(self, names: Sequence[str], start: int, check_stop: Callable[[], None]) -> Iterator[DoneSlice]:
        """Rows of the images from ``start`` on, a group at a time; who takes them looks whether to stop."""
        left = replace(self._images, names=names[start:])
        line, pipeline = text_rows(self._form.suffix, self.layout).line, self._pipeline
        batches = iter_predictions(
            self._predictor,
            left,
            pipeline.preprocessing,
            pipeline.execution,
            probabilities=self._form.probabilities,
            stopwatch=self.stopwatch,
            deep=self.deep,
            start=start,
        )
        with applied(pipeline.execution), closing(batches):
            for rows in batches if len(left) else ():
                with self.stopwatch.timing("write"):
                    done = DoneSlice.of(rows, line)
                yield done

    def state(self) -> PredictorState:
        """Where the predictor stands."""
        return self._predictor.state()

    def resume(self, state: RunState) -> None:
        """Take up where a run stood that was cut off."""
        self.stopwatch.seconds.update(state.seconds)
        self._predictor.restore(state.predictor)
        self.deep = state.deep

    def strength(self, images: ImageList) -> float | None:
        """How strong the step of the finished run was."""
        return tell_strength(self._pipeline, images, len(images))

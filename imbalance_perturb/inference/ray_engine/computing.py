"""What a worker does with a slice: the engine as it runs on one machine, on part of the list."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import SomeNames
from imbalance_perturb.errors import ClusterError, ImageFolderError
from imbalance_perturb.inference.allocator import keep_freed_memory
from imbalance_perturb.inference.decoding.workers import BESIDE_THREADS, Decoders
from imbalance_perturb.inference.engine import calibrate, iter_predictions
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.pipeline import load_pipeline, make_predictor
from imbalance_perturb.inference.progress import LoadedPipeline
from imbalance_perturb.inference.provenance import describe_list, describe_machine
from imbalance_perturb.inference.ray_engine.task import FinishedSlice, Scouted, Task, is_there
from imbalance_perturb.inference.ray_engine.travelling_files import renamed, unpacked
from imbalance_perturb.inference.row_source import DoneSlice
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.inference.told_strength import tell_strength
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.making import Making
from imbalance_perturb.predictions.run_differences import differences
from imbalance_perturb.predictions.run_state import PredictorState, Tally
from imbalance_perturb.predictions.writing import text_rows


class Computing:
    """A pipeline that is loaded on a worker, its predictor and its decoders.

    Args:
        task: of the run.
        node: the name of this machine, for messages.
        get: gives the bytes of a file that travelled.

    Raises:
        ImageFolderError: if no image is there for this machine, of those that are for whoever leads the run.
        ImbperturbError: whatever is wrong with model, counts or machine.
    """

    def __init__(self, task: Task, node: str, get: Callable[[Any], Any]) -> None:
        # As the command line does for a process of its own, which a worker is.
        keep_freed_memory()
        # Threads that have to take turns at a core make a pass take many times as long.
        torch.set_num_threads(max(1, min(torch.get_num_threads(), task.cores)))
        self._task, self._node = task, node
        self._images = ImageList(task.root, task.root, [], whole=task.sampled)
        check_sees(task, node)
        with unpacked(task.luggage, get) as (settings, self._back):
            self._pipeline = load_pipeline(settings, self._images, cores=task.cores)
            self._predictor = make_predictor(self._pipeline)
        pipeline, execution = self._pipeline, self._pipeline.execution
        names, close_calls_only = pipeline.counts.names, pipeline.settings.run.close_calls_only
        self._layout = task.form.layout(names, close_calls_only=close_calls_only)
        self._decoders = Decoders(
            task.root,
            pipeline.preprocessing,
            execution.workers,
            takes_turns=execution.takes_turns,
            image_timeout=execution.image_timeout,
            start_method=BESIDE_THREADS,  # Ray's, which run in this process
            pinned=execution.device.type == "cuda",
        )

    def scout(self) -> Scouted:
        """Calibrate, and tell what is settled here for all workers."""
        pipeline = self._pipeline
        with applied(pipeline.execution):
            whole = self._task.whole
            calibrate(self._predictor, self._images, pipeline.preprocessing, pipeline.execution, whole=whole)
        return Scouted(
            node=self._node,
            loaded=renamed(LoadedPipeline.of(pipeline), self._back),
            machine=self._machine(),
            layout=self._layout,
            state=self._predictor.state(),
            batch_size=pipeline.execution.batch_size,
            group_size=pipeline.execution.group_size,
        )

    def compare(self, scouted: Scouted) -> None:
        """Refuse a machine whose rows would not be those of the first.

        Raises:
            ClusterError: naming both machines and what is different.
        """
        images = describe_list(replace(self._images, whole=None))  # none: these are looked at elsewhere
        there, here = (Making(**machine, images=images) for machine in (scouted.machine, self._machine()))
        found = [
            word.replace(" then, ", f" on {scouted.node}, ").replace(" now)", " here)")
            for word in differences(there, here)
        ]
        if found:
            raise ClusterError(
                f"{self._node}: this machine of the cluster would make other rows than {scouted.node}; different:"
                f" {', '.join(found)}; install the same versions on both, or leave one out"
            )

    def predict(self, start: int, names: Sequence[str], state: PredictorState) -> FinishedSlice:
        """Predict the slice that begins at image ``start`` of the list, by a predictor that is calibrated like this."""
        began, pipeline, predictor = time.perf_counter(), self._pipeline, self._predictor
        stopwatch, deep = Stopwatch(), DeepImages()
        limits = [most for most in (state.most_at_once, predictor.most_at_once) if most is not None]
        most = min(limits, default=None)
        predictor.restore(replace(state, tally=Tally(), most_at_once=most))
        line, parts = text_rows(self._task.form.suffix, self._layout).line, []
        batches = iter_predictions(
            predictor,
            replace(self._images, names=names),
            pipeline.preprocessing,
            pipeline.execution,
            probabilities=self._task.form.probabilities,
            stopwatch=stopwatch,
            deep=deep,
            decoders=self._decoders,
            start=start,
        )
        with applied(pipeline.execution), closing(batches):
            for rows in batches:
                with stopwatch.timing("write"):
                    parts.append(DoneSlice.of(rows, line))
        after = predictor.state()
        return FinishedSlice(
            done=DoneSlice.joined(parts),
            tally=after.tally,
            most_at_once=after.most_at_once,
            deep=deep,
            seconds=stopwatch.seconds | {"slice": time.perf_counter() - began},
        )

    def strength(self, sampled: SomeNames, n_images: int) -> float | None:
        """How strong the step of the finished run was."""
        return tell_strength(self._pipeline, replace(self._images, whole=sampled), n_images)

    def _machine(self) -> dict[str, Any]:
        return renamed(describe_machine(self._pipeline, self._layout, self._task.form.suffix), self._back)


def check_sees(task: Task, node: str) -> None:
    """Refuse a machine for which no image is there, of those that are for whoever leads the run.

    Raises:
        ImageFolderError: naming the folder and the machine.
    """
    if task.seen and not any(is_there(task.root, name) for name in task.seen):
        raise ImageFolderError(
            f"{task.root}: none of its first {len(task.seen)} images is there on {node}; every machine of the cluster"
            " has to see the images at the same path (a shared file system)"
        )

"""The rows of a run, computed over a Ray cluster: what one machine would write, whichever workers come and go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import (
    SomeNames,
    calibration_positions,
    count_told,
    strength_positions,
)
from imbalance_perturb.errors import ClusterError, printable
from imbalance_perturb.inference.progress import Progress
from imbalance_perturb.inference.ray_engine.cluster import Share, connected, settle_share
from imbalance_perturb.inference.ray_engine.pool import Finished, Lost, WorkerPool
from imbalance_perturb.inference.ray_engine.slices import Slice, SliceCutter
from imbalance_perturb.inference.ray_engine.task import FinishedSlice, Scouted, Task, is_there
from imbalance_perturb.inference.ray_engine.travelling_files import pack
from imbalance_perturb.inference.row_source import DoneSlice, OutputForm
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.ahead_file import AheadFile
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.run_file import EngineEntry
from imbalance_perturb.predictions.run_state import PredictorState, RunState

#: So often may a slice end the process that computes it.
_TRIES = 3

#: Seconds between two looks at whether the run is to stop.
_INTERVAL = 0.2

_WAITING = "no worker has the model loaded yet: ray status shows whether the cluster has room for one"

#: Names of the start of the list of which a worker has to see one.
_SEEN = 100


class RayRows:
    """Rows of images by the workers of a cluster; a :class:`RowSource`. Made by :func:`open_ray_rows`.

    Args:
        ray: the module, connected.
        pool: its workers, the first of which has found out what is settled for all.
        share: of the cluster, for each worker.
        scouted: that.
        path: the predictions file to be, ``None`` for stdout.
        progress: told how far it is.
    """

    begins_settled = True

    def __init__(
        self, ray: Any, pool: WorkerPool, share: Share, scouted: Scouted, path: Path | None, progress: Progress
    ) -> None:
        self._ray, self._pool, self._share, self._scouted = ray, pool, share, scouted
        self._path, self._progress = path, progress
        self.machine = scouted.machine
        self.layout = scouted.layout
        self.stopwatch, self.deep = Stopwatch(), DeepImages()
        self._state, self._resumed = scouted.state, False
        self._tries: dict[int, list[str]] = {}
        self._at_work, self._nodes = 0, frozenset[str]()

    def iter_done(self, names: Sequence[str], start: int, check_stop: Callable[[], None]) -> Iterator[DoneSlice]:
        """Rows of the images from ``start`` on, in order, whichever slice is done first."""
        ahead = AheadFile(self._path, resume=self._resumed)
        ahead.drop_before(start)
        self._progress.advance(sum(ahead.waiting.values()))
        cutter = SliceCutter(len(names), self._scouted.group_size, start, ahead.waiting, self._share.workers)
        calibrated = replace(self._state, most_at_once=self._scouted.state.most_at_once)

        def submit(actor: Any, one: Slice) -> Any:
            return actor.predict.remote(one.start, list(names[one.start : one.stop]), calibrated)

        turn: FinishedSlice | None = None
        try:
            while start < len(names):
                if turn is None and (record := ahead.take(start)) is not None:
                    turn = FinishedSlice.from_dict(record)
                if turn is not None:
                    self._count(turn)
                    start += turn.done.images
                    yield turn.done
                    turn = None
                    continue
                self._pool.give(cutter.cut, submit)
                for one in self._pool.take(_INTERVAL):
                    if isinstance(one, Lost):
                        self._lost(one, names)
                        cutter.take_back(one.slice, suspect=one.node is not None)
                        continue
                    self._finished(one, cutter)
                    if one.slice.start == start:
                        turn = one.result
                    else:
                        ahead.put(one.slice.start, one.slice.images, one.result.to_dict())
                self._tell_workers()
                if turn is None:  # else it is asked once its rows are kept
                    check_stop()
        finally:
            ahead.close()

    def state(self) -> PredictorState:
        """Where one predictor would stand that had done what has come."""
        return self._state

    def resume(self, state: RunState) -> None:
        """Take up where a run stood that was cut off, with what it had done ahead."""
        self.stopwatch.seconds.update(state.seconds)
        self._state, self.deep, self._resumed = state.predictor, state.deep, True

    def strength(self, images: ImageList) -> float | None:
        """How strong the step of the finished run was."""
        everything = images.everything
        sampled = SomeNames(everything, strength_positions(len(everything), count_told(len(images))))
        found: float | None = self._pool.ask(lambda actor: actor.strength.remote(sampled, len(images)))
        return found

    @property
    def engine(self) -> EngineEntry:
        """What the run file says of the cluster."""
        return EngineEntry(
            name="ray", version=self._ray.__version__, workers=max(1, self._at_work), machines=max(1, len(self._nodes))
        )

    def _finished(self, one: Finished, cutter: SliceCutter) -> None:
        done = one.result.done
        assert done.images == one.slice.images, "a row for each image"
        cutter.learn(done.images, one.result.seconds["slice"], len(done.text))
        self._progress.advance(done.images)

    def _lost(self, one: Lost, names: Sequence[str]) -> None:
        """Count who ended over a slice, and give it up where that is always so."""
        if one.node is None:
            return
        nodes = self._tries.setdefault(one.slice.start, [])
        nodes.append(one.node)
        if len(nodes) >= _TRIES:
            first, last = (printable(names[index]) for index in (one.slice.start, one.slice.stop - 1))
            raise ClusterError(
                f"images {first} to {last}: the process that predicts them ended {_TRIES} times, on"
                f" {', '.join(dict.fromkeys(nodes))} (out of memory?); put that right and go on with --resume"
            )

    def _count(self, result: FinishedSlice) -> None:
        """Add what came out beside the rows of a slice, in the order of the images."""
        before = self._state
        tally = {name: value + getattr(result.tally, name) for name, value in vars(before.tally).items()}
        most = [most for most in (before.most_at_once, result.most_at_once) if most is not None]
        self._state = replace(before, tally=replace(before.tally, **tally), most_at_once=min(most, default=None))
        self.deep.merge(result.deep)
        for stage, seconds in result.seconds.items():
            if stage != "slice":
                self.stopwatch.add(stage, seconds)

    def _tell_workers(self) -> None:
        at_work = self._pool.at_work
        self._at_work, self._nodes = max(self._at_work, at_work), self._nodes | self._pool.nodes
        self._progress.workers(at_work, self._share.workers)


@contextmanager
def open_ray_rows(
    settings: Settings, images: ImageList, out: Path | None, form: OutputForm, progress: Progress
) -> Iterator[RayRows]:
    """Connect to a cluster, have one worker find out what is settled for all, and ask for the others.

    Args:
        settings: of the run.
        images: what to predict.
        out: the predictions file to be, ``None`` for stdout.
        form: what it is to look like.
        progress: told of the cluster, of what is loaded, and how far it is.

    Raises:
        SettingsError: if Ray is not installed, or the settings cannot be had on a cluster.
        ClusterError: if there is no such cluster, or its workers do not start.
        ImbperturbError: whatever is wrong with model, counts, images or machines.
    """
    with connected(settings.run) as ray:
        share = settle_share(settings.run, ray.nodes())
        progress.cluster(share.describe(ray.__version__))
        task = _make_task(settings, images, form, share, ray.put)
        pool = WorkerPool(ray, share, task)
        try:
            scouted = pool.scout(lambda: progress.cluster(_WAITING))
            progress.loaded(scouted.loaded)
            groups = math.ceil(len(images) / scouted.group_size)
            pool.grow(min(share.workers, groups), _for_others(task, scouted), scouted)
            yield RayRows(ray, pool, share, scouted, out, progress)
        finally:
            pool.close()


def _make_task(
    settings: Settings, images: ImageList, form: OutputForm, share: Share, put: Callable[[Any], Any]
) -> Task:
    everything, root = images.everything, images.root.absolute()
    positions = {*calibration_positions(len(everything)), *strength_positions(len(everything))}
    sampled = SomeNames(everything, positions)
    return Task(
        luggage=pack(settings, put),
        root=root,
        sampled=sampled,
        whole=images.whole is None,
        seen=tuple(name for name in sampled.first[:_SEEN] if is_there(root, name)),
        form=form,
        cores=share.cpus,
    )


def _for_others(task: Task, scouted: Scouted) -> Task:
    """The task with all that the first worker settled, so that no other measures anew."""
    settings = task.luggage.settings
    settled: Settings = scouted.machine["settings"]
    settings = replace(
        settings,
        debias=replace(settings.debias, eps=settled.debias.eps, perturb_at=settled.debias.perturb_at),
        run=replace(settings.run, batch_size=scouted.batch_size),
    )
    return replace(task, luggage=replace(task.luggage, settings=settings))

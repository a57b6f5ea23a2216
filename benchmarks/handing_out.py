"""Part of the cluster benchmark that loads no torch: slices handed out to workers that sleep."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from imbalance_perturb.inference.progress import Progress
from imbalance_perturb.inference.ray_engine import pool, slices
from imbalance_perturb.inference.ray_engine.cluster import Share, _on_loopback
from imbalance_perturb.inference.ray_engine.ray_rows import RayRows
from imbalance_perturb.inference.ray_engine.task import FinishedSlice
from imbalance_perturb.inference.row_source import DoneSlice
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.run_state import Bounds, PredictorState, Tally

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "include_dashboard": False}


@contextmanager
def own_cluster(cpus: int) -> Iterator[Any]:
    """A cluster of this machine, with so many CPUs to hand out."""
    import ray

    with _on_loopback():
        ray.init(address="local", num_cpus=cpus, _node_ip_address="127.0.0.1", object_store_memory=200_000_000, **QUIET)
    try:
        yield ray
    finally:
        ray.shutdown()


class Sleeper:
    """A worker whose work is to sleep: ``seconds`` an image."""

    def scout(self, task: Any) -> Any:
        """Nothing is found out."""
        return task

    def join(self, task: Any, scouted: Any) -> str:
        """Nothing is loaded."""
        return "here"

    def predict(self, start: int, names: Sequence[str], state: PredictorState) -> FinishedSlice:
        """Sleep, and give a row for each name."""
        began = time.perf_counter()
        time.sleep(float(os.environ.get("SLEEPER", "0")) * len(names))
        done = DoneSlice("".join(f"{name},nv,0.5,nv,0.5,0,\n" for name in names), len(names), 0, [])
        seconds = {"slice": time.perf_counter() - began, "began": began}
        return FinishedSlice(done=done, tally=Tally(), most_at_once=8, deep=DeepImages(), seconds=seconds)


class Handed(NamedTuple):
    """What handing out came to: wall clock, and for each slice when it began and how long it took."""

    wall: float
    begun: list[tuple[float, float]]


def hand_out(ray: Any, names: Sequence[str], workers: int, group: int, seconds: float) -> Handed:
    """Give a list to workers that sleep, by the engine's own pool; the clock runs once all are there."""
    state = PredictorState(low=False, close_calls_only=False, bounds=Bounds(), tally=Tally(), most_at_once=8)
    scouted: Any = SimpleNamespace(state=state, group_size=group, machine={}, layout=None)
    begun: list[tuple[float, float]] = []
    with mock.patch.object(pool, "Worker", Sleeper), mock.patch.object(slices, "SECONDS", seconds):
        share = Share(1, 0.0, workers, 1)
        members = pool.WorkerPool(ray, share, "task")  # type: ignore[arg-type]
        ray.get(members._members[0].joining)
        members._members[0].ready = True
        members.grow(workers, "task", scouted)  # type: ignore[arg-type]
        while members.at_work < workers:
            list(members.take(1.0))
        rows = RayRows(ray, members, share, scouted, None, Progress())
        keep = rows._finished

        def noted(one: Any, *more: Any) -> None:
            begun.append((one.result.seconds["began"], one.result.seconds["slice"]))
            keep(one, *more)

        with mock.patch.object(rows, "_finished", noted):
            start = time.perf_counter()
            done = sum(one.images for one in rows.iter_done(names, 0, lambda: None))
            wall = time.perf_counter() - start
        assert done == len(names)
        members.close()
    return Handed(wall, begun)


def names_in_memory(total: int) -> tuple[float, float, float]:
    """MB before there are names, then how much more with them, and at the most."""
    os.environ["SLEEPER"] = "0"  # of the workers, too
    with own_cluster(2) as ray:
        hand_out(ray, ["0.png"], 1, 1, 1.0)
        before = _resident("VmRSS")
        names = [f"folder{index // 1000:05d}/image_{index:09d}.jpg" for index in range(total)]
        listed = _resident("VmRSS") - before
        hand_out(ray, names, 2, 4096, 1.0)
        return before, listed, _resident("VmHWM") - before


def _resident(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(entry)).split()[1]) / 1024

"""A worker, as Ray starts it in a process of its own: it loads torch and the model there, and not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imbalance_perturb.data.image_samples import SomeNames
from imbalance_perturb.inference.ray_engine.task import FinishedSlice, Scouted, Task
from imbalance_perturb.predictions.run_state import PredictorState

if TYPE_CHECKING:
    from imbalance_perturb.inference.ray_engine.computing import Computing


class Worker:
    """What is called on it runs one after the other, in its process."""

    def __init__(self) -> None:
        self._computing: Computing | None = None

    def scout(self, task: Task) -> Scouted:
        """Load the model, calibrate, and tell what is settled for all workers."""
        return self._load(task).scout()

    def join(self, task: Task, scouted: Scouted) -> str:
        """Load the model as the scout did, prove that this machine is of the same kind, and tell its name."""
        self._load(task).compare(scouted)
        return self.node()

    def predict(self, start: int, names: Sequence[str], state: PredictorState) -> FinishedSlice:
        """Predict a slice; as :meth:`Computing.predict`."""
        assert self._computing is not None, "scout() or join() comes first"
        return self._computing.predict(start, names, state)

    def strength(self, sampled: SomeNames, n_images: int) -> float | None:
        """How strong the step of the finished run was."""
        assert self._computing is not None, "scout() or join() comes first"
        return self._computing.strength(sampled, n_images)

    def node(self) -> str:
        """The name of the machine, as Ray's own tables have it."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)

    def _load(self, task: Task) -> Computing:
        import ray

        from imbalance_perturb.inference.ray_engine.computing import Computing

        self._computing = Computing(task, self.node(), ray.get)
        return self._computing

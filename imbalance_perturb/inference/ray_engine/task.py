"""What travels between the process that leads a run and its workers: plain values, and no network among them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imbalance_perturb.data.image_samples import SomeNames
from imbalance_perturb.data.remote_files import RemotePath
from imbalance_perturb.inference.progress import LoadedPipeline
from imbalance_perturb.inference.ray_engine.travelling_files import Luggage
from imbalance_perturb.inference.row_source import DoneSlice, OutputForm
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.rows import PredictionRow, RowLayout
from imbalance_perturb.predictions.run_state import PredictorState, Tally


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every worker of a run is told.

    Attributes:
        luggage: settings, and the files that they name.
        root: what names of images are relative to, an absolute path.
        sampled: the list of the run, of which those names are known that its preparation takes.
        whole: whether the run is about all of that list, and no part of it.
        seen: names of some images that are there for whoever leads the run.
        form: what the predictions file is to look like.
        cores: that a worker may use.
    """

    luggage: Luggage
    root: Path | RemotePath
    sampled: SomeNames
    whole: bool
    seen: tuple[str, ...]
    form: OutputForm
    cores: int


@dataclass(frozen=True, kw_only=True)
class Scouted:
    """What the first worker finds out for all.

    Attributes:
        node: the machine's name.
        loaded: what the pipeline is, for people.
        machine: what makes the rows but for the images.
        layout: the columns of the rows.
        state: where a calibrated predictor begins.
        batch_size: images a batch.
        group_size: images that are predicted together.
    """

    node: str
    loaded: LoadedPipeline
    machine: dict[str, Any]
    layout: RowLayout
    state: PredictorState
    batch_size: int
    group_size: int


@dataclass(frozen=True, kw_only=True)
class FinishedSlice:
    """A slice that is done: its rows, and what came out beside them.

    Attributes:
        done: rows as text, and what is counted of them.
        tally: of these images alone.
        most_at_once: images that went through at once, in the end.
        deep: the images of more than 8 bits.
        seconds: of each stage, and ``slice`` of all of it.
    """

    done: DoneSlice
    tally: Tally
    most_at_once: int | None
    deep: DeepImages
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        broken = [[row.image, row.error] for row in self.done.broken]
        return asdict(self) | {"done": [self.done.text, self.done.images, self.done.changed, broken]}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> FinishedSlice:
        """What :meth:`to_dict` gave."""
        text, images, changed, broken = found["done"]
        rows = [PredictionRow(image, error=error) for image, error in broken]
        return cls(
            done=DoneSlice(text, images, changed, rows),
            tally=Tally(**found["tally"]),
            most_at_once=found["most_at_once"],
            deep=DeepImages(**found["deep"]),
            seconds=found["seconds"],
        )


def is_there(root: Path | RemotePath, name: str) -> bool:
    """Whether there is such a file, as far as one may look."""
    try:
        if isinstance(root, RemotePath):
            return (root / name).exists()
        return os.path.exists(root / name)  # noqa: PTH110 - of a folder that is closed pathlib raises an error
    except ValueError:  # a CSV may name what can be no path
        return False

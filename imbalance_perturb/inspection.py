"""What a model file is, how it behaves on trial, and what the counts make of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from imbalance_perturb.assembly import load_counts, load_probed, select_target
from imbalance_perturb.execution import select_execution
from imbalance_perturb.models import ModelInfo, ProbeResult
from imbalance_perturb.optimisation import Optimisation
from imbalance_perturb.preprocessing import Preprocessing
from imbalance_perturb.recipe import write_recipe
from imbalance_perturb.settings import PreprocessSettings, Settings


@dataclass(frozen=True)
class ClassRow:
    """One line of the table class -> index -> count -> p*; ``None`` where no counts were given."""

    index: int
    name: str
    count: int | None
    target: float | None


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_model` found, as plain values."""

    model: ModelInfo
    probe: ProbeResult
    optimisation: Optimisation
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    device: str
    precision: str
    classes: tuple[ClassRow, ...]
    imbalance: float | None


def inspect_model(settings: Settings) -> Inspection:
    """Load and try a model, against its counts where the settings name them.

    Raises:
        ImbperturbError: whatever is wrong with the model file, the counts, or the two together.
    """
    counts = None if settings.model.counts is None else load_counts(settings.model).counts
    target = None if counts is None else select_target(settings, counts)
    execution = select_execution(settings.run, None)
    probed = load_probed(settings, counts, None, execution)
    model = probed.model
    if counts is None or target is None:
        rows = tuple(ClassRow(index, str(index), None, None) for index in range(model.info.num_classes))
    else:
        rows = tuple(
            ClassRow(index, name, count, p)
            for index, (name, count, p) in enumerate(zip(counts.names, counts.counts, target.tolist(), strict=True))
        )
    return Inspection(
        model=model.info,
        probe=probed.probe,
        optimisation=probed.optimisation,
        preprocessing=probed.preprocessing,
        input_shape=probed.input_shape,
        device=str(execution.device),
        precision=execution.describe_precision(),
        classes=rows,
        imbalance=None if counts is None else counts.imbalance,
    )


def write_complete_recipe(path: Path, settings: Settings, inspection: Inspection) -> None:
    """Write a recipe that leaves nothing to a preset or to recognition; file paths relative to the recipe."""
    found = inspection.preprocessing
    preprocess = PreprocessSettings(
        preset=settings.preprocess.preset,
        resize="none" if found.resize is None else found.resize,
        crop="none" if found.crop is None else found.crop,
        mean=found.mean,
        std=found.std,
        interpolation=found.interpolation,
        color=found.color,
    )
    model = replace(
        settings.model,
        model=_relative(settings.model.model, path),
        counts=_relative(settings.model.counts, path),
        # What was trusted are these bytes, not whatever comes to lie under the name later.
        trust_model_file=inspection.model.sha256 if settings.model.trust_model_file else False,
    )
    debias = settings.debias
    if debias.target.endswith(".json"):
        debias = replace(debias, target=_relative(debias.target, path) or debias.target)
    write_recipe(path, replace(settings, model=model, preprocess=preprocess, debias=debias))


def _relative(file: str | None, recipe: Path) -> str | None:
    return None if file is None else Path(os.path.relpath(file, recipe.parent)).as_posix()

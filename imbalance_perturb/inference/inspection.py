"""What a model file is, how it behaves on trial, and what the counts make of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from imbalance_perturb.config.recipe import relative_settings, write_recipe
from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.inference.acceleration.optimisation import Optimisation
from imbalance_perturb.inference.correction import check_counts
from imbalance_perturb.inference.execution import select_execution
from imbalance_perturb.inference.model_loading import load_counts, load_probed
from imbalance_perturb.inference.pipeline import select_target
from imbalance_perturb.method.counts import read_counts_file
from imbalance_perturb.models import ModelInfo, ProbeResult
from imbalance_perturb.models.corrected_file import CorrectedCard, read_card


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
        names = model.info.classes or tuple(map(str, range(model.info.num_classes)))
        rows = tuple(ClassRow(index, name, None, None) for index, name in enumerate(names))
    else:
        model.info = replace(model.info, notes=(*model.info.notes, *counts.notes))
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


def inspect_exported(settings: Settings) -> CorrectedCard | None:
    """Read what a file that ``export`` wrote says of itself; ``None`` for any other model.

    Raises:
        ModelFileError: if it cannot be read.
        CountsError: if the settings name counts that are not those it was corrected for.
    """
    card = None if settings.model.model is None else read_card(settings.model.model)
    if card is not None and settings.model.counts is not None:
        check_counts(settings.model, card, read_counts_file(settings.model.counts).counts)
    return card


def write_complete_recipe(path: Path, settings: Settings, found: Preprocessing, *, sha256: str = "") -> None:
    """Write a recipe of all settings that leaves no preprocessing to a preset; file paths relative to the recipe.

    Args:
        path: where to write it.
        settings: those of the run; all that is not preprocessing stands as it is.
        found: the preprocessing that they come to, as :class:`Inspection` has it.
        sha256: of the model, which a recipe that asks to trust it is then bound to.

    Raises:
        OutputFileError: if the recipe cannot be written.
    """
    values = {"resize": found.resize or "none", "crop": found.crop or "none"}
    preprocess = replace(settings.preprocess, **{**vars(found), **values})
    # What was trusted are these bytes, not whatever comes to lie under the name later.
    trust = settings.model.trust_model_file
    model = replace(settings.model, trust_model_file=trust and (sha256 or trust))
    write_recipe(path, relative_settings(path, replace(settings, model=model, preprocess=preprocess)))

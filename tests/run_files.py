"""A run file as ``predict`` writes it, without a run."""

from __future__ import annotations

from collections.abc import Mapping

from imbalance_perturb.config.settings import ModelSettings, Settings
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.making import (
    ClassEntry,
    CountsEntry,
    HiddenEntry,
    ModelEntry,
    OutputEntry,
    Versions,
)
from imbalance_perturb.predictions.preparation import PreprocessingEntry
from imbalance_perturb.predictions.run_file import RUN_SCHEMA, RunExecution, RunFile, RunImages
from imbalance_perturb.predictions.run_state import Bounds, PredictorState, Tally


def make_run(classes: Mapping[str, int], total: int = 7) -> RunFile:
    """The run file of a run in full precision over ``total`` images, all predicted."""
    return RunFile(
        schema=RUN_SCHEMA,
        finished="2026-01-02T03:04:05+00:00",
        predictions="predictions.csv",
        predictions_sha256="0" * 64,
        versions=Versions(
            imbalance_perturb="0.1.0",
            python="3.11.7",
            torch="2.6.0",
            torchvision="0.21.0",
            pillow="11.0.0",
            numpy="2.0.0",
            pydicom=None,
            pillow_heif=None,
            tifffile=None,
            imagecodecs=None,
        ),
        model=ModelEntry(
            path="model.pth",
            sha256="1" * 64,
            format="torch.save",
            arch="resnet18",
            num_classes=len(classes),
            in_channels=3,
            outputs="logits",
            fixed_batch=None,
            fixed_size=None,
            parameters=1000,
            notes=("a note",),
            assumptions=(),
            classes=None,
        ),
        counts=CountsEntry(path="counts.json", sha256="0" * 64),
        classes=tuple(
            ClassEntry(index=index, name=name, count=count, target=0.0)
            for index, (name, count) in enumerate(classes.items())
        ),
        settings=Settings(model=ModelSettings(model="model.pth", counts="counts.json")),
        preprocessing=PreprocessingEntry(
            resize=256,
            crop=(224, 224),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            interpolation="bilinear",
            color="rgb",
            max_value=None,
            exif_orientation=False,
            jpeg_draft=False,
        ),
        execution=RunExecution(
            device="cpu",
            device_name="CPU",
            precision="fp32",
            low_dtype=None,
            close_calls_only=False,
            notes=(),
            network="as it is",
            low_network=None,
            batch_size=16,
            workers=0,
            takes_turns=False,
            deterministic=False,
            threads=1,
            batch_ceiling=None,
        ),
        output=OutputEntry(format=".csv", probabilities=False, bom=False),
        images=RunImages(
            source="images",
            sources=("images",),
            total=total,
            shard=None,
            list_total=total,
            list_sha256="2" * 64,
            files_sha256="3" * 64,
            ignored_files={".txt": 1},
            hidden=HiddenEntry(files=0, folders=0),
            done=total,
            failed=0,
            changed=3,
            deep=DeepImages(),
        ),
        warnings=(),
        agreement=None,
        predictor=PredictorState(low=False, close_calls_only=False, bounds=Bounds(), tally=Tally(), most_at_once=None),
        seconds={"decode": 1, "total": 2.5},
        images_per_second={"decode": 7.0, "total": 2.8},
    )

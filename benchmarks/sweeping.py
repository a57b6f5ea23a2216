"""Part of the speed benchmark: what a sweep over K values of eps costs, in corrected runs of the same folder."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import Log, alternate, progress, ratios
from PIL import Image
from subjects import CLASSES, COUNTS, MEAN, STD, draw_labels, photograph
from torch import nn

from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.inference.prediction_job import predict_folder
from imbalance_perturb.method.perturbation import LossSpec
from imbalance_perturb.selection.sweep import Variant, run_sweep

K = 20

#: Stages of a run that are no passes of the model.
_NOT_PASSES = ("decode", "wait for images", "normalise", "write", "total")


def measure_sweep(
    network: nn.Module, name: str, log: Log, *, rounds: int, images: int, batch_size: int, device: torch.device
) -> None:
    """Time ``run_sweep`` with K values of eps against one corrected run in float32, both from image files."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        listed = _write_images(work / "images", images)
        pipeline = _load_pipeline(work, network, name, listed, batch_size, device)
        eps = np.geomspace(1e-4, 3e-2, K)
        variants = [Variant(LossSpec(), float(value)) for value in eps]

        def corrected() -> float:
            summary = predict_folder(pipeline, listed, str(work / "predictions.csv"))
            assert summary.run is not None
            _check(dict(summary.first_errors))
            seconds = json.loads(Path(summary.run).read_text())["seconds"]
            return _passes(seconds)

        def sweep() -> float:
            found = run_sweep(pipeline, listed, variants)
            _check(found.errors)
            return _passes(found.seconds)

        contenders = {"one corrected run": corrected, "sweep": sweep}
        progress(f"sweep with {name}: warming up")
        corrected()
        progress(f"sweep with {name}: measuring")
        measured = alternate(contenders, rounds, device)
    one, many = measured["one corrected run"], measured["sweep"]
    whole, lowest, highest = ratios(many, one)
    passes = statistics.median(many.found) / statistics.median(one.found)
    allowed = (2 + K) / 3 * 1.1
    log.say(
        f"**A sweep of K = {K} values of eps** ({name}, {images} images from PNG files, batches of {batch_size},"
        f" float32, median of {rounds}) takes {many.median:.1f} s, one corrected run {one.median:.1f} s:"
        f" {whole:.2f} times as long ({lowest:.2f}-{highest:.2f}), the passes of the model alone {passes:.2f} times."
        f" (2 + K) / 3 and 10% are {allowed:.2f}: {'met' if max(whole, passes) <= allowed else 'NOT met'}.",
        "",
    )


def _check(errors: dict[str, str]) -> None:
    for name, reason in errors.items():
        raise SystemExit(f"{name}: {reason}; nothing can be said of the sweep")


def _passes(seconds: dict[str, float]) -> float:
    return sum(value for stage, value in seconds.items() if stage not in _NOT_PASSES)


def _write_images(folder: Path, n: int) -> ImageList:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index, label in enumerate(draw_labels(random, n)):
        Image.fromarray(photograph(random, 224, 224, int(label))).save(folder / f"{index:05d}.png", compress_level=1)
    return find_images(folder)


def _load_pipeline(
    work: Path, network: nn.Module, name: str, listed: ImageList, batch_size: int, device: torch.device
) -> Pipeline:
    torch.save(network.state_dict(), work / "model.pth")
    (work / "counts.json").write_text(json.dumps(dict(zip(CLASSES, COUNTS, strict=True))))
    settings = Settings(
        model=ModelSettings(model=str(work / "model.pth"), counts=str(work / "counts.json"), arch=name),
        preprocess=PreprocessSettings(preset="none", mean=MEAN, std=STD),
        run=RunSettings(device=str(device), batch_size=batch_size, precision="fp32"),
    )
    return load_pipeline(settings, listed)

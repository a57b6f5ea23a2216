"""The use case ``export``: from a model, its counts and a correction to one file that does both, proved."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import fx

import imbalance_perturb
from imbalance_perturb.config.settings import PreprocessSettings, RunSettings, Settings
from imbalance_perturb.deployment.functional_network import make_functional, make_plain
from imbalance_perturb.deployment.onnx_files import NEEDED, check_packages, onnx_bytes, open_onnx, run_once
from imbalance_perturb.deployment.program_files import make_program, program_bytes, read_program
from imbalance_perturb.deployment.proof import Proof, TrialBatch, make_trials, prove
from imbalance_perturb.deployment.tracing import Correction, select_outputs, trace
from imbalance_perturb.errors import ModelFileError, ModelGradientError, SettingsError
from imbalance_perturb.files.writing import check_output, write_whole
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.inference.progress import LoadedPipeline, ProgressLike, as_progress
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.models import LoadedClassifier
from imbalance_perturb.models.corrected_file import SCHEMA, CardClass, CardInput, CardSource, CorrectedCard

SUFFIXES = (".pt2", ".onnx")

#: Of the graph, in this order.
OUTPUTS = ("logits", "base_logits")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What goes into the file beside network and correction.

    Args:
        with_preprocessing: scaling and normalising, too: the file takes uint8 pixels of the size that the network
            does, (N, C, H, W).
    """

    with_preprocessing: bool = False


@dataclass(frozen=True)
class ExportSummary:
    """What was written: the file, its bytes and their SHA-256, what it says of itself, and how it was proved.

    ``seconds`` are of wall clock, ``assumptions`` what the model file does not show and would change predictions.
    """

    path: str
    bytes: int
    sha256: str
    card: CorrectedCard
    proof: Proof
    seconds: float
    assumptions: tuple[str, ...] = ()


def export_classifier(
    settings: Settings,
    out: str | Path,
    options: ExportOptions | None = None,
    progress: ProgressLike = None,
) -> ExportSummary:
    """Write a model with its correction as one graph that needs no autograd, proved on random images.

    Args:
        settings: as of a prediction; eps must be a number.
        out: a ``.pt2`` (``torch.export``) or ``.onnx`` path.
        options: what else goes into the file.
        progress: told when the model is loaded.

    Raises:
        OutputFileError: if the file cannot be written, or what ONNX needs is not installed.
        SettingsError: for settings that no file can have.
        ModelFileError: naming what of the network cannot be in such a graph.
        ModelGradientError: if the graph does not compute what the correction does; nothing is written then.
        ImbperturbError: whatever else is wrong with model or counts.
    """
    started = time.perf_counter()
    options, progress, path = options or ExportOptions(), as_progress(progress), Path(out)
    check_output(path, SUFFIXES)
    if path.suffix.lower() == ".onnx":
        check_packages()
    pipeline = load_for_export(settings)
    progress.loaded(LoadedPipeline.of(pipeline))
    content, card, proof = make_file(trace_pipeline(pipeline, pixels=options.with_preprocessing), path.suffix.lower())
    write_whole(path, content)
    return ExportSummary(
        path=str(path),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        card=card,
        proof=proof,
        seconds=time.perf_counter() - started,
        assumptions=pipeline.model.info.assumptions,
    )


def load_for_export(settings: Settings) -> Pipeline:
    """Load what is to be exported, on the CPU and in float32, as a file is, and not rewritten for this machine.

    Raises:
        SettingsError: for settings that no file can have.
        ImbperturbError: whatever is wrong with model or counts.
    """
    debias, run = settings.debias, settings.run
    if debias.moves_input and isinstance(debias.eps, str):
        raise SettingsError(
            f"eps is {debias.eps}, which is found on images, and an export has none: give the number that predict says"
            " with it, or that tune-eps chose"
        )
    if run.precision in ("bf16", "fp16") or run.close_calls_only:
        raise SettingsError(
            f"precision is {run.precision} and close_calls_only {str(run.close_calls_only).lower()}; a file computes"
            " all images in float32: leave both out"
        )
    settings = replace(settings, run=RunSettings(device="cpu", precision="fp32"))
    return load_pipeline(settings, None, exact=True, optimised=False)


class Traced(NamedTuple):
    """A pipeline as a graph: with the gradients among its outputs, and as the program that a file gets."""

    pipeline: Pipeline
    graph: fx.GraphModule
    program: torch.export.ExportedProgram
    trials: list[TrialBatch]
    pixels: bool
    any_size: bool


def trace_pipeline(pipeline: Pipeline, *, pixels: bool = False) -> Traced:
    """Trace a pipeline's model and correction, on the CPU and not rewritten for it.

    Args:
        pipeline: what :func:`load_pipeline` gave for no images.
        pixels: whether the graph takes uint8 pixels.

    Raises:
        ModelFileError: naming what cannot be in such a graph.
    """
    model, preprocessing, debiased = pipeline.model, pipeline.preprocessing, pipeline.debiased
    with_pixels = preprocessing if pixels else None
    any_size = preprocessing.size is None and model.info.fixed_size is None
    trials = make_trials(pipeline.input_shape, with_pixels, any_size=any_size)
    x = trials[0]  # the largest of the usual size
    with _naming(pipeline):
        # Where the step is at a hidden layer, the classifier is of its output.
        h = debiased.to_stage(x.x)
        front = None if debiased.front is None else make_plain(debiased.front, x.x, h)
        assert isinstance(debiased.model, LoadedClassifier)
        correction = Correction(make_functional(debiased.model, h), debiased, with_pixels, front)
        graph = trace(correction, x.given, any_size=any_size)
        program = make_program(select_outputs(graph, len(OUTPUTS)), x.given, any_size=any_size)
    return Traced(pipeline, graph, program, trials, pixels, any_size)


def make_file(traced: Traced, suffix: str) -> tuple[bytes, CorrectedCard, Proof]:
    """Make the bytes of a ``.pt2`` or ``.onnx`` file, its card, and the proof of it.

    Raises:
        ModelFileError: if the graph cannot be written so.
        ModelGradientError: if the file does not compute what the correction does.
    """
    trials, debiased = traced.trials, traced.pipeline.debiased
    card = _describe(traced, suffix)
    with _naming(traced.pipeline):
        if suffix == ".onnx":
            content, with_gradient = onnx_bytes(traced.program, trials[0].given, card)
            file = run_once(content, [trial.given for trial in trials])
            gradient = open_onnx(with_gradient)
        else:
            content = program_bytes(traced.program, card)
            gradient, file = traced.graph, read_program(content)
        return content, card, prove(gradient, file, debiased, trials)


@contextmanager
def _naming(pipeline: Pipeline) -> Iterator[None]:
    """Inside: float32 alone, and a refusal names the model."""
    try:
        with full_precision(pipeline.execution.device):
            yield
    except (ModelFileError, ModelGradientError) as error:
        raise type(error)(f"{pipeline.model.info.path}: {error}; nothing was written") from error


def _describe(traced: Traced, suffix: str) -> CorrectedCard:
    pipeline = traced.pipeline
    info, p = pipeline.model.info, pipeline.preprocessing
    classes = zip(pipeline.counts.names, pipeline.counts.counts, pipeline.target.tolist(), strict=True)
    packages = ("torch", "torchvision", *(NEEDED if suffix == ".onnx" else ()))
    channels, height, width = pipeline.input_shape
    said = {"resize": p.resize or "none", "crop": p.crop or "none"}
    return CorrectedCard(
        schema=SCHEMA,
        input=CardInput(
            name="images",
            dtype="uint8" if traced.pixels else "float32",
            shape=("batch", channels, *(("height", "width") if traced.any_size else (height, width))),
        ),
        outputs=OUTPUTS,
        classes=tuple(
            CardClass(index=index, name=name, count=count, target=p) for index, (name, count, p) in enumerate(classes)
        ),
        correction=pipeline.settings.debias,
        preprocessing=PreprocessSettings(preset="none", **{**vars(p), **said}),
        model=CardSource(
            file=Path(info.path).name,
            sha256=info.sha256,
            format=info.format,
            arch=info.arch,
            parameters=info.parameters,
        ),
        counts_sha256=pipeline.counts_sha256,
        versions={
            "imbalance_perturb": imbalance_perturb.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    )

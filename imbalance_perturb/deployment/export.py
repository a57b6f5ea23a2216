"""The use case ``export``: from a model, its counts and a correction to one file that does both, proved."""

from __future__ import annotations

import hashlib
import platform
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import imbalance_perturb
from imbalance_perturb.config.settings import PreprocessSettings, RunSettings, Settings
from imbalance_perturb.deployment.functional_network import make_functional
from imbalance_perturb.deployment.onnx_files import NEEDED, check_packages, onnx_bytes, open_onnx
from imbalance_perturb.deployment.program_files import make_program, program_bytes, read_program
from imbalance_perturb.deployment.proof import Proof, make_trials, prove
from imbalance_perturb.deployment.tracing import Correction, select_outputs, trace
from imbalance_perturb.errors import ModelFileError, ModelGradientError, SettingsError
from imbalance_perturb.files.writing import check_output, write_whole
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline
from imbalance_perturb.inference.progress import ProgressLike, as_progress
from imbalance_perturb.method.module_state import full_precision
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
    pipeline = load_pipeline(_settle(settings), None, exact=True, optimised=False)
    progress.loaded(pipeline)
    content, card, proof = _make(pipeline, path.suffix.lower(), pixels=options.with_preprocessing)
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


def _settle(settings: Settings) -> Settings:
    """The settings of the correction, on the CPU and in float32, as a file is."""
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
    return replace(settings, run=RunSettings(device="cpu", precision="fp32"))


def _make(pipeline: Pipeline, suffix: str, *, pixels: bool) -> tuple[bytes, CorrectedCard, Proof]:
    """The file's bytes, its card, and the proof of it."""
    model, preprocessing = pipeline.model, pipeline.preprocessing
    with_pixels = preprocessing if pixels else None
    any_size = preprocessing.size is None and model.info.fixed_size is None
    trials = make_trials(pipeline.input_shape, with_pixels)
    try:
        with full_precision(pipeline.execution.device):
            correction = Correction(make_functional(model, trials[-1].x), pipeline.debiased, with_pixels)
            graph = trace(correction, trials[-1].given, any_size=any_size)
            program = make_program(select_outputs(graph, len(OUTPUTS)), trials[-1].given, any_size=any_size)
            card = _describe(pipeline, suffix, pixels=pixels, any_size=any_size)
            if suffix == ".onnx":
                content, with_gradient = onnx_bytes(program, trials[-1].given, card)
                gradient, file = open_onnx(with_gradient), open_onnx(content)
            else:
                content = program_bytes(program, card)
                gradient, file = graph, read_program(content)
            proof = prove(gradient, pipeline.debiased, trials, "the graph")
            final = prove(file, pipeline.debiased, trials, "the file")
    except (ModelFileError, ModelGradientError) as error:
        raise type(error)(f"{model.info.path}: {error}; nothing was written") from error
    return content, card, replace(final, signs_agreed=proof.signs_agreed)


def _describe(pipeline: Pipeline, suffix: str, *, pixels: bool, any_size: bool) -> CorrectedCard:
    info, p = pipeline.model.info, pipeline.preprocessing
    classes = zip(pipeline.counts.names, pipeline.counts.counts, pipeline.target.tolist(), strict=True)
    packages = ("torch", "torchvision", *(NEEDED if suffix == ".onnx" else ()))
    channels, height, width = pipeline.input_shape
    said = {"resize": p.resize or "none", "crop": p.crop or "none"}
    return CorrectedCard(
        schema=SCHEMA,
        input=CardInput(
            name="images",
            dtype="uint8" if pixels else "float32",
            shape=("batch", channels, *(("height", "width") if any_size else (height, width))),
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

"""``imbperturb export``: the corrected model as one file that needs no autograd."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Option

from imbalance_perturb.cli import terminal
from imbalance_perturb.cli.narration import Narrator
from imbalance_perturb.cli.options import (
    CommonOptions,
    CountsArgument,
    DebiasOptions,
    ModelArgument,
    ModelOptions,
    PreprocessOptions,
    RunOptions,
    with_options,
)
from imbalance_perturb.cli.settings import resolve_settings


@with_options
def export(
    model: ModelArgument = None,
    counts: CountsArgument = None,
    *,
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="The .pt2 or .onnx file to write.")],
    with_preprocessing: Annotated[
        bool,
        Option(
            "--with-preprocessing",
            help="Put scaling and normalising into the graph: it takes uint8 pixels (N, 3, H, W), resized and cropped.",
        ),
    ] = False,
    model_options: ModelOptions,
    preprocess: PreprocessOptions,
    debias: DebiasOptions,
    run: RunOptions,
    common: CommonOptions,
) -> None:
    """Write model and correction as one graph of forward operators, for torch, ONNX Runtime or OpenVINO.

    It takes a batch `images` (N, 3, H, W), float32 and normalised, and returns `logits` and `base_logits`, corrected
    and plain. It is proved against the correction by autograd before it is written. MODEL and COUNTS may be left out
    where the recipe names them.
    """
    settings, recipe = resolve_settings(common, model_options, preprocess, debias, run, model=model, counts=counts)

    from imbalance_perturb.deployment.export import ExportOptions, export_classifier

    say = Narrator(common.quiet)
    say.recipe(recipe)
    summary = export_classifier(settings, out, ExportOptions(with_preprocessing=with_preprocessing), progress=say)
    proof = summary.proof
    signs = "" if proof.signs_agreed is None else f", {proof.signs_agreed:.3%} of clear gradient signs the same"
    say.line(
        f"proved on batches of {', '.join(map(str, proof.batches))} random images: logits differ from those by autograd"
        f" by {proof.logit_difference:.1g} of the largest{signs}"
    )
    say.line(f"written: {summary.path}, {summary.bytes / 2**20:.1f} MiB ({summary.seconds:.0f} s)")
    say.assumptions(summary.assumptions)
    if common.as_json:
        terminal.show_json({**asdict(summary), "card": summary.card.to_dict()})

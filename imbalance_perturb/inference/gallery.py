"""Images of a run as its model received them, and what the correction did to their pixels, as pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.data.remote_files import find_place
from imbalance_perturb.errors import PredictionsError, printable
from imbalance_perturb.inference.batching import Passes
from imbalance_perturb.inference.execution import applied
from imbalance_perturb.inference.input_stream import iter_inputs
from imbalance_perturb.inference.pipeline import Pipeline
from imbalance_perturb.inference.places import find_images
from imbalance_perturb.inference.rerun import RerunOptions, iter_again, load_again, settle_again
from imbalance_perturb.method.counts import CountsFile
from imbalance_perturb.predictions.rows import PredictionRow, describe_difference
from imbalance_perturb.predictions.run_file import RunFile, load_run_of, run_path

#: Longer side of a picture, in pixels: hundreds of them are to fit into one page.
LONGEST = 224

#: Grey of a pixel that does not move, and how far from it the largest step is drawn.
_GREY, _REACH = 128, 127

_JPEG_QUALITY = 90


class Picture(NamedTuple):
    """An image as the model received it (a JPEG file), and the perturbation of its pixels (a PNG file).

    The perturbation is x̃ - x in units of pixels, amplified around a middle grey, ``None`` where no pixel moves.
    """

    image: bytes
    perturbation: bytes | None


@dataclass(frozen=True)
class Gallery:
    """Pictures by the name of their image, and how many times their perturbations are amplified.

    ``amplification`` is ``None`` where the correction moves no pixel. ``low_precision`` names the format that the run
    computed in where it was a low one: the pictures are of full precision.
    """

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    amplification: float | None = None
    low_precision: str | None = None


def make_gallery(
    predictions: str | Path, rows: Sequence[PredictionRow], options: RerunOptions | None = None
) -> Gallery:
    """Compute the perturbations of some images of a run again, and prove that these have the rows that are shown.

    Args:
        predictions: the predictions file, with its run file beside it.
        rows: rows of it without probabilities, each of another image.
        options: where model and images are now, and what may run code.

    Raises:
        SettingsError: if the run file names a factory that the options do not.
        PredictionsError: if predictions, model or an image are not those of the run, or are not there.
        ImbperturbError: if the model cannot be run here.
    """
    predictions, options = Path(predictions), options or RerunOptions()
    path = run_path(predictions)
    run = load_run_of(predictions)
    settings = settle_again(path, run, options)
    names = sorted(row.image for row in rows)
    if not names:
        return Gallery()
    images = ImageList(find_place(run.images.source), find_images(path, run, options.images, names), names)
    # The run file has the counts, so their file is not needed.
    pipeline = load_again(path, run, settings, images, CountsFile(run.class_counts, run.counts.sha256))
    _check_rows(rows, path, run, pipeline, images)
    peak = _largest_step(pipeline)
    with applied(pipeline.execution):
        pictures = dict(_iter_pictures(pipeline, images, peak))
    return Gallery(
        pictures=pictures,
        amplification=_REACH / 255 / peak if peak > 0 else None,
        low_precision=run.execution.low_dtype,
    )


def _check_rows(rows: Sequence[PredictionRow], path: Path, run: RunFile, pipeline: Pipeline, images: ImageList) -> None:
    """Refuse images that are gone, or have other predictions now: what is shown must be what was predicted."""
    with closing(iter_again(path, run, pipeline, images, probabilities=False)) as batches:
        now = {row.image: row for batch in batches for row in batch}
    for row in sorted(rows, key=lambda row: row.image):
        found = now[row.image]
        _check_usable(images, row.image, found.error)
        difference = describe_difference(row, found)
        if difference is not None:
            raise PredictionsError(
                f"{printable(str(images.root / row.image))}: is not predicted as in {path} any more"
                f" ({printable(difference)}), so the gallery cannot show it; put the image of the run back, predict"
                " again, or leave --gallery out"
            )


def _check_usable(images: ImageList, name: str, error: str | None) -> None:
    if error is not None:
        raise PredictionsError(
            f"{printable(str(images.root / name))}: the gallery cannot show this image of the run"
            f" ({printable(error)}); say where the images are with --images PATH, or leave --gallery out"
        )


def _largest_step(pipeline: Pipeline) -> float:
    """How far a pixel in [0, 1] can be moved: the same for all images, so that their pictures compare.

    0 where the step is at a hidden layer, where there are no pixels to move.
    """
    if pipeline.settings.debias.hidden:
        return 0.0
    debiased, std = pipeline.debiased, torch.tensor(pipeline.preprocessing.std, dtype=torch.float64)
    return float((debiased.eps.cpu() * std.view(1, -1, 1, 1)).max()) * debiased.steps


def _iter_pictures(pipeline: Pipeline, images: ImageList, peak: float) -> Iterator[tuple[str, Picture]]:
    debiased, preprocessing = pipeline.debiased, pipeline.preprocessing
    passes = Passes(pipeline.execution.batch_size, alike=False)
    for batch in iter_inputs(images, preprocessing, pipeline.execution):
        for name, error in zip(batch.names, batch.errors, strict=True):
            _check_usable(images, name, error)  # gone since its row was computed
        for positions, x in batch.groups:
            moved = passes.run_in_parts(debiased.perturb_input, x)[1] if peak > 0 else x
            steps = _to_pixels(moved - x, preprocessing) / peak if peak > 0 else None
            for index, position in enumerate(positions):
                step = None if steps is None else _encode_perturbation(steps[index])
                yield batch.names[position], Picture(_encode_image(x[index], preprocessing), step)


def _to_pixels(step: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert a difference of model inputs (N, C, H, W) to units of pixels in [0, 1], in float64 on the CPU."""
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    return step.double().cpu() * std.view(1, -1, 1, 1)


def _encode_image(x: Tensor, preprocessing: Preprocessing) -> bytes:
    """The JPEG file of one model input (C, H, W)."""
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(-1, 1, 1)
    picture = _as_picture((_to_pixels(x[None], preprocessing)[0] + mean) * 255)
    picture.thumbnail((LONGEST, LONGEST))
    return _encode(picture, "JPEG", quality=_JPEG_QUALITY)


def _encode_perturbation(step: Tensor) -> bytes:
    """The PNG file of one perturbation (C, H, W) in [-1, 1]."""
    picture = _as_picture(_GREY + _REACH * step)
    # A mean over neighbours that move up and down would be grey: of a large picture some pixels are shown as they are.
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.NEAREST)
    return _encode(picture, "PNG", optimize=True)


def _as_picture(values: Tensor) -> Image.Image:
    pixels = values.round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def _encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()

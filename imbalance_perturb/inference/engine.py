"""The engine: images in, rows out. The only loop in the package that runs a model on images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import CALIBRATED, calibration_positions
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.errors import ModelGradientError
from imbalance_perturb.inference.decoding.workers import DecodedBatch, Decoders, in_slices, iter_decoded
from imbalance_perturb.inference.execution import Execution
from imbalance_perturb.inference.predictor import Begun, Predicted, Predictor
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.rows import PredictionRow

#: Images of the first group on a GPU: what one worker decodes at a time.
_FIRST = 32

#: Most images of a batch that a predictor is calibrated on.
_CALIBRATION_BATCH = 16


class InputGroup(NamedTuple):
    """Images of one batch that have the same size: ``positions`` in the batch and their tensor (n, C, H, W)."""

    positions: list[int]
    x: Tensor


class InputBatch(NamedTuple):
    """Consecutive images: ``names``, for each the reason why it cannot be used or ``None``, and the usable ones.

    Every position without an error is in exactly one group.
    """

    names: list[str]
    errors: list[str | None]
    groups: list[InputGroup]


def iter_inputs(
    images: ImageList,
    preprocessing: Preprocessing,
    execution: Execution,
    stopwatch: Stopwatch | None = None,
    deep: DeepImages | None = None,
) -> Iterator[InputBatch]:
    """Decode in worker processes and yield model inputs in the order of ``images.names``, a group at a time.

    A group is several batches (``execution.group_size`` images): what is given to a model is cut to size there.

    Every name comes exactly once, usable or with its error; tensors are float32 on the execution's device. ``deep``
    gets the images of more than 8 bits.
    """
    decoded = _decode(images, in_slices(images.names, execution.group_size), preprocessing, execution)
    return _iter_normalised(decoded, preprocessing, execution, stopwatch or Stopwatch(), deep or DeepImages())


def _decode(
    images: ImageList, slices: Iterator[list[str]], preprocessing: Preprocessing, execution: Execution
) -> Generator[DecodedBatch]:
    return iter_decoded(
        images.root,
        slices,
        preprocessing,
        execution.workers,
        takes_turns=execution.takes_turns,
        image_timeout=execution.image_timeout,
    )


def _iter_normalised(
    batches: Iterator[DecodedBatch],
    preprocessing: Preprocessing,
    execution: Execution,
    stopwatch: Stopwatch,
    deep: DeepImages,
) -> Iterator[InputBatch]:
    while True:
        with stopwatch.timing("wait for images"):
            decoded = next(batches, None)
        if decoded is None:
            return
        stopwatch.add("decode", decoded.seconds)
        for peak in decoded.peaks:
            deep.add(*peak)
        with stopwatch.timing("normalise", execution.device):
            groups = [
                InputGroup(positions, preprocessing.normalise(_sent(pixels, execution.device)))
                for positions, pixels in decoded.groups
            ]
        yield InputBatch(decoded.names, decoded.errors, groups)


def _sent(pixels: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return pixels.to(device)
    # Only from pinned memory does a copy to the GPU overlap other work. One layout, whoever decoded.
    return pixels.contiguous().pin_memory().to(device, non_blocking=True)


def sample_names(images: ImageList, count: int = CALIBRATED, seed: int = 0) -> list[str]:
    """Draw a random sample of all images, sorted: a folder's first are of one class.

    Of a shard it is the whole list's sample, so that all shards are calibrated alike.
    """
    names = images.everything
    return sorted(names[index] for index in calibration_positions(len(names), count, seed))


def calibrate(predictor: Predictor, images: ImageList, preprocessing: Preprocessing, execution: Execution) -> None:
    """Calibrate a predictor that needs it, on the usable ones of :func:`sample_names`, and predict nothing."""
    if predictor.needs_calibration:
        slices = list(in_slices(sample_names(images), execution.group_size))
        with closing(_decode(images, iter(slices), preprocessing, execution)) as decoded:
            _calibrate(predictor, decoded, preprocessing, execution)


def _calibrate(
    predictor: Predictor, decoded: Iterator[DecodedBatch], preprocessing: Preprocessing, execution: Execution
) -> None:
    sampled = _iter_normalised(decoded, preprocessing, execution, Stopwatch(), DeepImages())
    most = min(execution.batch_size, _CALIBRATION_BATCH)
    predictor.calibrate(part for batch in sampled for _, x in batch.groups for part in torch.split(x, most))


def iter_predictions(
    predictor: Predictor,
    images: ImageList,
    preprocessing: Preprocessing,
    execution: Execution,
    *,
    probabilities: bool = False,
    stopwatch: Stopwatch | None = None,
    deep: DeepImages | None = None,
    decoders: Decoders | None = None,
    start: int = 0,
) -> Generator[list[PredictionRow]]:
    """Predict all images, plain and corrected; yields a list of rows for each batch, in order.

    Exactly one row for each name; an image that cannot be decoded, or whose gradient or output is not finite,
    has its reason in ``error``. Memory does not grow with the number of images. A predictor that needs calibration
    is calibrated first, on the usable ones of :func:`sample_names`. ``deep`` gets the images of more than 8 bits.
    ``decoders`` that stay open for other lists are used where they are given. ``start`` is where these images begin in
    the list of the run.
    """
    stopwatch, deep = stopwatch or Stopwatch(), deep or DeepImages()
    sample: list[list[str]] = []
    if predictor.needs_calibration:
        sample = list(in_slices(sample_names(images), execution.group_size))
    # One stream for both: workers start once, and decode the run's first images while the predictor is calibrated.
    slices = chain(sample, _in_groups(images.names, execution))
    decoded = _decode(images, slices, preprocessing, execution) if decoders is None else decoders.iter_decoded(slices)
    if sample:
        with stopwatch.timing("calibration", execution.device):
            _calibrate(predictor, islice(decoded, len(sample)), preprocessing, execution)
    # A GPU computes one batch while the rows of the one before are made.
    ahead = execution.device.type == "cuda"
    waiting: list[Callable[[], list[PredictionRow]]] = []
    first = start + min(len(images.names), _first_group(execution))
    for batch in _iter_normalised(decoded, preprocessing, execution, stopwatch, deep):
        begun = [predictor.begin(x, stopwatch) if ahead else None for _, x in batch.groups]
        waiting.append(partial(_finish, predictor, batch, begun, start, probabilities, stopwatch))
        start += len(batch.names)
        if len(waiting) > int(ahead) or start == first:
            yield waiting.pop(0)()
    for finish in waiting:
        yield finish()


def _in_groups(names: Sequence[str], execution: Execution) -> Iterator[list[str]]:
    """Names in the groups in which they are decoded and predicted: a small one at first, for rows that come soon."""
    start, size = 0, _first_group(execution)
    while start < len(names):
        yield list(names[start : start + size])
        start, size = start + size, execution.group_size


def _first_group(execution: Execution) -> int:
    """On a GPU groups are large, and all of one is decoded before it is predicted."""
    return min(execution.group_size, _FIRST) if execution.device.type == "cuda" else execution.group_size


def _finish(
    predictor: Predictor,
    batch: InputBatch,
    begun: Sequence[Begun | None],
    start: int,
    probabilities: bool,
    stopwatch: Stopwatch,
) -> list[PredictionRow]:
    """The rows of a batch that begins at ``start`` in the run; what is begun of its groups is waited for."""
    rows: list[PredictionRow | None] = [
        None if error is None else PredictionRow(name, error=error)
        for name, error in zip(batch.names, batch.errors, strict=True)
    ]
    for (positions, x), one in zip(batch.groups, begun, strict=True):
        found = {start + position: batch.names[position] for position in positions}
        predicted = _predict(predictor, found, x, probabilities, stopwatch, one)
        for position, row in zip(positions, predicted, strict=True):
            rows[position] = row
    return [_present(row) for row in rows]


def _present(row: PredictionRow | None) -> PredictionRow:
    assert row is not None, "every image of a batch is in a group or has an error"
    return row


def _predict(
    predictor: Predictor,
    names: Mapping[int, str],
    x: Tensor,
    probabilities: bool,
    stopwatch: Stopwatch,
    begun: Begun | None = None,
) -> list[PredictionRow]:
    """Predict images (N, C, H, W), whose ``names`` are by their positions in the run, or what is begun of them."""
    try:
        predicted = predictor.finish(begun or predictor.begin(x, stopwatch), stopwatch, list(names))
    except ModelGradientError as error:
        if len(names) == 1:
            return [PredictionRow(next(iter(names.values())), error=str(error))]
        # One image with a gradient that is not finite must not take its batch mates with it.
        return [
            row
            for one, image in zip(names.items(), x, strict=True)
            for row in _predict(predictor, dict([one]), image[None], probabilities, stopwatch)
        ]
    asked = "output" if x.device.type == "cpu" else "output, or its gradient,"
    return _rows(list(names.values()), predicted, predictor.counts.names, probabilities, asked)


def _rows(
    names: list[str], predicted: Predicted, classes: Sequence[str], probabilities: bool, asked: str
) -> list[PredictionRow]:
    base, logits = predicted.base, predicted.logits
    corrected = predicted.corrected.tolist()
    finite = (torch.isfinite(base).all(1) & torch.isfinite(logits).all(1)).tolist()
    # float64: a confidence is written with more digits than a float32 softmax keeps.
    base_probs, probs = (torch.softmax(z.double(), dim=1) for z in (base, logits))
    # argmax over the logits: probabilities can tie where logits differ.
    base_preds, preds = base.argmax(1).tolist(), logits.argmax(1).tolist()
    first, second = probs.topk(2).values.unbind(1)
    margins = (first - second).tolist()
    rows = []
    for index, name in enumerate(names):
        if not finite[index]:
            rows.append(PredictionRow(name, error=f"the model's {asked} is not finite (NaN or infinity)"))
            continue
        rows.append(
            PredictionRow(
                image=name,
                base_pred=classes[base_preds[index]],
                base_confidence=base_probs[index, base_preds[index]].item(),
                pred=classes[preds[index]],
                confidence=probs[index, preds[index]].item(),
                probs=tuple(probs[index].tolist()) if probabilities else (),
                base_probs=tuple(base_probs[index].tolist()) if probabilities else (),
                corrected=corrected[index],
                margin=margins[index],
            )
        )
    return rows

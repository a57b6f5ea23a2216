"""The engine: images in, rows out. The only loop in the package that decodes images and runs a model on them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imbalance_perturb.batching import BatchLimit
from imbalance_perturb.errors import ImageError, ModelGradientError
from imbalance_perturb.execution import Execution
from imbalance_perturb.images import ImageList, decode_image
from imbalance_perturb.pixels import Pixels
from imbalance_perturb.predictor import Predicted, Predictor
from imbalance_perturb.preprocessing import Preprocessing, make_geometry
from imbalance_perturb.results import PredictionRow
from imbalance_perturb.stopwatch import Stopwatch

#: Images that a predictor is calibrated on, and the most of them in one batch.
CALIBRATED, _CALIBRATION_BATCH = 64, 16


def load_pixels(path: Path, preprocessing: Preprocessing, geometry: Callable[[Pixels], Tensor]) -> Tensor:
    """Pixels (C, H, W) of an image file, decoded and resized as ``preprocessing`` says.

    ``geometry`` is what :func:`make_geometry` made of it, once for all images.

    Raises:
        ImageError: if the file cannot be used.
    """
    return geometry(
        decode_image(
            path,
            preprocessing.color,
            max_value=preprocessing.max_value,
            exif_orientation=preprocessing.exif_orientation,
        )
    )


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


class _DecodedBatch(NamedTuple):
    names: list[str]
    errors: list[str | None]
    groups: list[tuple[list[int], Tensor]]
    seconds: float


class _Decoder:
    """What a worker process does: a batch of names in, pixels out. It holds no list of the images."""

    def __init__(self, root: Path, preprocessing: Preprocessing) -> None:
        self._root = root
        self._preprocessing = preprocessing
        self._geometry = make_geometry(preprocessing)

    def __getitem__(self, name: str) -> tuple[str, Tensor | str, float]:
        start = time.perf_counter()
        found: Tensor | str
        try:
            found = load_pixels(self._root / name, self._preprocessing, self._geometry)
        except ImageError as error:
            found = str(error)
        return name, found, time.perf_counter() - start


def _collate(items: Sequence[tuple[str, Tensor | str, float]]) -> _DecodedBatch:
    # Each image keeps its position beside its pixels, so that no failure can shift a prediction to a neighbour.
    errors: list[str | None] = [found if isinstance(found, str) else None for _, found, _ in items]
    alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for position, (_, found, _) in enumerate(items):
        if isinstance(found, Tensor):
            alike.setdefault((found.shape, found.dtype), []).append(position)
    groups = [
        (positions, torch.stack([found for p in positions if isinstance(found := items[p][1], Tensor)]))
        for positions in alike.values()
    ]
    return _DecodedBatch([name for name, _, _ in items], errors, groups, sum(seconds for _, _, seconds in items))


class _Batches:
    """The order of the run: consecutive slices of the sorted names."""

    def __init__(self, names: Sequence[str], size: int) -> None:
        self._names, self._size = names, size

    def __len__(self) -> int:
        return -(-len(self._names) // self._size)

    def __iter__(self) -> Iterator[list[str]]:
        for start in range(0, len(self._names), self._size):
            yield list(self._names[start : start + self._size])


def iter_inputs(
    images: ImageList, preprocessing: Preprocessing, execution: Execution, stopwatch: Stopwatch | None = None
) -> Iterator[InputBatch]:
    """Decode in worker processes and yield model inputs in the order of ``images.names``, a group at a time.

    A group is several batches (``execution.group_size`` images): what is given to a model is cut to size there.

    Every name comes exactly once, usable or with its error; tensors are float32 on the execution's device.
    """
    stopwatch = stopwatch or Stopwatch()
    loader: DataLoader[Any] = DataLoader(
        _Decoder(images.root, preprocessing),  # type: ignore[arg-type]  # keyed by name: the sampler yields names
        batch_sampler=_Batches(images.names, execution.group_size),
        num_workers=execution.workers,
        collate_fn=_collate,
        pin_memory=execution.device.type == "cuda",
    )
    batches = iter(loader)
    while True:
        with stopwatch.timing("wait for images"):
            decoded: _DecodedBatch | None = next(batches, None)
        if decoded is None:
            return
        stopwatch.add("decode", decoded.seconds)
        with stopwatch.timing("normalise", execution.device):
            groups = [
                InputGroup(positions, preprocessing.normalise(pixels.to(execution.device, non_blocking=True)))
                for positions, pixels in decoded.groups
            ]
        yield InputBatch(decoded.names, decoded.errors, groups)


def sample_inputs(
    images: ImageList, preprocessing: Preprocessing, execution: Execution, *, count: int = CALIBRATED, seed: int = 0
) -> Iterator[Tensor]:
    """Inputs (n, C, H, W) of a random sample of all images, the usable ones: a folder's first are of one class."""
    names = images.names
    if len(names) > count:
        names = sorted(random.Random(seed).sample(names, count))
    for batch in iter_inputs(replace(images, names=names), preprocessing, execution):
        for _, x in batch.groups:
            yield from torch.split(x, min(execution.batch_size, _CALIBRATION_BATCH))


def iter_predictions(
    predictor: Predictor,
    images: ImageList,
    preprocessing: Preprocessing,
    execution: Execution,
    *,
    probabilities: bool = False,
    stopwatch: Stopwatch | None = None,
    limit: BatchLimit | None = None,
) -> Iterator[list[PredictionRow]]:
    """Base and corrected predictions of all images, a list of rows for each batch, in order.

    Exactly one row for each name; an image that cannot be decoded, or whose gradient or output is not finite,
    has its reason in ``error``. Memory does not grow with the number of images. A predictor that needs calibration
    is calibrated first, on :func:`sample_inputs`. Where memory runs out, batches are halved and nothing is lost;
    ``limit`` then says to what.
    """
    stopwatch, limit = stopwatch or Stopwatch(), limit or BatchLimit()
    if predictor.needs_calibration:
        with stopwatch.timing("calibration", execution.device):
            predictor.calibrate(sample_inputs(images, preprocessing, execution))
    for batch in iter_inputs(images, preprocessing, execution, stopwatch):
        rows: list[PredictionRow | None] = [
            None if error is None else PredictionRow(name, error=error)
            for name, error in zip(batch.names, batch.errors, strict=True)
        ]
        for positions, x in batch.groups:
            names = [batch.names[position] for position in positions]
            compute = partial(_predict_part, predictor, names, x, probabilities, stopwatch)
            predicted = limit.run(compute, len(names))
            for position, row in zip(positions, predicted, strict=True):
                rows[position] = row
        yield [_present(row) for row in rows]


def _present(row: PredictionRow | None) -> PredictionRow:
    assert row is not None, "every image of a batch is in a group or has an error"
    return row


def _predict_part(
    predictor: Predictor, names: list[str], x: Tensor, probabilities: bool, stopwatch: Stopwatch, part: slice
) -> list[PredictionRow]:
    return _predict(predictor, names[part], x[part], probabilities, stopwatch)


def _predict(
    predictor: Predictor, names: list[str], x: Tensor, probabilities: bool, stopwatch: Stopwatch
) -> list[PredictionRow]:
    try:
        predicted = predictor.predict(x, stopwatch)
    except ModelGradientError as error:
        if len(names) == 1:
            return [PredictionRow(names[0], error=str(error))]
        # One image with a gradient that is not finite must not take its batch mates with it.
        return [
            row
            for name, image in zip(names, x, strict=True)
            for row in _predict(predictor, [name], image[None], probabilities, stopwatch)
        ]
    return _rows(names, predicted, predictor.counts.names, probabilities)


def _rows(names: list[str], predicted: Predicted, classes: Sequence[str], probabilities: bool) -> list[PredictionRow]:
    base, logits = predicted.base, predicted.logits
    corrected = predicted.corrected.tolist()
    finite = (torch.isfinite(base).all(1) & torch.isfinite(logits).all(1)).tolist()
    # float64: a confidence is written with more digits than a float32 softmax keeps.
    base_probs, probs = (torch.softmax(z.double(), dim=1).cpu() for z in (base, logits))
    # argmax over the logits: probabilities can tie where logits differ.
    base_preds, preds = base.argmax(1).tolist(), logits.argmax(1).tolist()
    rows = []
    for index, name in enumerate(names):
        if not finite[index]:
            rows.append(PredictionRow(name, error="the model's output is not finite (NaN or infinity)"))
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
            )
        )
    return rows

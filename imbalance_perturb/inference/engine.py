"""The engine: images in, rows out. The only loop in the package that runs a model on images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import calibration_positions
from imbalance_perturb.data.preprocessing import Preprocessing
from imbalance_perturb.errors import ModelGradientError
from imbalance_perturb.inference.calibration import Sampled
from imbalance_perturb.inference.decoding.workers import DecodedBatch, Decoders, in_slices
from imbalance_perturb.inference.execution import Execution
from imbalance_perturb.inference.input_stream import InputBatch, decode, iter_normalised
from imbalance_perturb.inference.predicted import Predicted
from imbalance_perturb.inference.predictor import Begun, Predictor
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.rows import PredictionRow

#: Images of the first group on a GPU: what one worker decodes at a time.
_FIRST = 32

#: Images that a predictor is calibrated on between two looks at whether that is enough.
_CALIBRATION_BATCH = 16


def sample_names(images: ImageList) -> list[str]:
    """Draw the images that a predictor may be calibrated on, at random from all: a folder's first are of one class.

    Of a shard it is the whole list's sample, so that all shards are calibrated alike.
    """
    names = images.everything
    return [names[index] for index in calibration_positions(len(names))]


class _Slices:
    """What is decoded of a run: the images to calibrate on, until there are enough of them, and then its own."""

    def __init__(self, sample: Sequence[str], own: Iterator[list[str]], execution: Execution) -> None:
        self.sample = list(in_slices(sample, min(execution.batch_size, _CALIBRATION_BATCH)))
        self.enough, self.started = False, 0
        self._own = own

    def __iter__(self) -> Iterator[list[str]]:
        while not self.enough and self.started < len(self.sample):
            self.started += 1
            yield self.sample[self.started - 1]
        yield from self._own


def calibrate(
    predictor: Predictor, images: ImageList, preprocessing: Preprocessing, execution: Execution, *, whole: bool
) -> None:
    """Calibrate a predictor that needs it, on the usable ones of :func:`sample_names`, and predict nothing.

    ``whole``: whether the run is about the whole list, of which no name may be known here.
    """
    if predictor.needs_calibration:
        sample = sample_names(images)
        slices = _Slices(sample, iter(()), execution)
        with closing(decode(images, iter(slices), preprocessing, execution)) as decoded:
            own = frozenset(sample if whole else ())
            _calibrate(predictor, slices, decoded, own, len(images.everything), preprocessing, execution)


def _calibrate(
    predictor: Predictor,
    slices: _Slices,
    decoded: Iterator[DecodedBatch],
    own: Collection[str],
    ahead: int,
    preprocessing: Preprocessing,
    execution: Execution,
) -> None:
    """Calibrate on the first of what is decoded.

    ``own``: those names of the sample that are images of the run; ``ahead``: images of the list.
    """
    taken = 0

    def batches() -> Iterator[Sampled]:
        nonlocal taken
        sampled = islice(decoded, len(slices.sample))
        for batch in iter_normalised(sampled, preprocessing, execution, Stopwatch(), DeepImages()):
            taken += 1
            for positions, x in batch.groups:
                yield Sampled(x, [name if name in own else None for name in batch.names_of(positions)])

    predictor.calibrate(batches(), ahead=ahead)
    slices.enough = True
    for _ in range(slices.started - taken):  # were decoded ahead
        next(decoded)


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
    sample = sample_names(images) if predictor.is_calibrated else []
    predictor.compared = frozenset(sample)
    # One stream for both: workers start once, and decode the run's first images while the predictor is calibrated.
    slices = _Slices(sample if predictor.needs_calibration else [], _in_groups(images.names, execution), execution)
    wanted = iter(slices)
    decoded = decode(images, wanted, preprocessing, execution) if decoders is None else decoders.iter_decoded(wanted)
    if predictor.needs_calibration:
        own = predictor.compared
        if images.whole is not None:
            own = frozenset(name for name in images.names if name in own)
        with stopwatch.timing("calibration", execution.device):
            _calibrate(predictor, slices, decoded, own, len(images.everything), preprocessing, execution)
    # A GPU computes one batch while the rows of the one before are made.
    ahead = execution.device.type == "cuda"
    waiting: list[Callable[[], list[PredictionRow]]] = []
    first = start + min(len(images.names), _first_group(execution))
    for batch in iter_normalised(decoded, preprocessing, execution, stopwatch, deep):
        begun = [predictor.begin(x, stopwatch, batch.names_of(group)) if ahead else None for group, x in batch.groups]
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
        begun = begun or predictor.begin(x, stopwatch, list(names.values()))
        predicted = predictor.finish(begun, stopwatch, list(names))
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

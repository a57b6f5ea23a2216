"""What a model is fed: how images are prepared for it, and the size that it is tried with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.preprocessing import Preprocessing, select_preprocessing
from imbalance_perturb.errors import ModelFileError
from imbalance_perturb.inference.decoding.workers import DecodedBatch, in_slices, iter_decoded
from imbalance_perturb.inference.execution import Execution
from imbalance_perturb.models import OwnPreprocessing

#: Height and width that a model is tried with where neither preprocessing nor an image says one.
FALLBACK_SIZE = (224, 224)

#: What says all of preprocessing without a preset.
_ALL = ("resize", "crop", "mean", "std", "interpolation")


def settle_preprocessing(
    settings: PreprocessSettings, own: OwnPreprocessing | None, in_channels: int | None = None
) -> Preprocessing:
    """The preprocessing that the settings come to, beside what the model says of its own.

    Raises:
        ModelFileError: if what the model says cannot be done here and no preset takes its place.
        SettingsError: for an unknown preset, or entries that do not fit together.
    """
    said = settings.preset is not None or all(getattr(settings, name) is not None for name in _ALL)
    if own is not None and own.refusal and not said:
        raise ModelFileError(own.refusal)
    return select_preprocessing(settings, in_channels, None if own is None else own.settings)


def decode_some(
    images: ImageList, names: Sequence[str], preprocessing: Preprocessing, execution: Execution, at_once: int
) -> Generator[DecodedBatch]:
    """Decode some images of a run before or after it, a few at once, as it does itself: an image may end its decoder.

    Args:
        names: of images of the list.
        at_once: how many make a batch.
    """
    batches = iter_decoded(
        images.root,
        in_slices(names, at_once),
        preprocessing,
        min(1, execution.workers),
        image_timeout=execution.image_timeout,
    )
    with closing(batches):
        yield from batches


def trial_size(preprocessing: Preprocessing, images: ImageList | None, execution: Execution) -> tuple[int, int]:
    """Height and width of an input: what preprocessing makes of every image, else of the first that can be read."""
    if preprocessing.size is not None:
        return preprocessing.size
    names = [] if images is None else images.everything
    if images is not None and names:
        with closing(decode_some(images, names, preprocessing, execution, 1)) as one_by_one:
            for batch in one_by_one:  # an image that cannot be used says so in its own row
                for _, pixels in batch.groups:
                    return int(pixels.shape[2]), int(pixels.shape[3])
    shorter = preprocessing.resize
    return (shorter, shorter) if isinstance(shorter, int) else FALLBACK_SIZE

"""Image files damaged at random: decoding ends in an ImageError or in valid pixels, in bounded time and memory.

``python -m tests.faults.fuzz_images --images 10000`` runs longer than the tests do, in a process of its own, which a
crash or a hang does not outlive. Findings are kept as files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imbalance_perturb.data.image_decoding import decode_image
from imbalance_perturb.errors import ImageError
from tests.faults.fuzzing import Edit, Target, damage, run
from tests.image_samples import dicom_samples, heif_samples, samples


def check(path: Path, options: int = 0) -> str:
    """Decode a file: ``pixels``, or the reason why there are none; anything else raises.

    Args:
        path: the file.
        options: from 0 to 7, which of the options of decoding are on.
    """
    color = "gray" if options & 1 else "rgb"
    try:
        pixels = decode_image(path, color, max_value=4095 if options & 2 else None, exif_orientation=bool(options & 4))
    except ImageError as error:
        message = str(error)
        assert message, "no reason is given"
        assert message.isprintable(), f"more than one line: {message!r}"
        assert len(message) < 300, f"a long message: {message!r}"
        return message
    planes = pixels if isinstance(pixels, tuple) else (pixels,)
    assert len({plane.size for plane in planes}) == 1
    for plane in planes:
        assert plane.mode in (("L", "F") if color == "gray" else ("RGB", "F"))
        assert min(plane.size) > 0
        values = np.asarray(plane)
        assert values.dtype == (np.float32 if plane.mode == "F" else np.uint8)
        assert np.isfinite(values).all()
        assert 0 <= values.min() <= values.max() <= 255
    return "pixels"


def _samples() -> dict[str, bytes]:
    return {**samples(), **dicom_samples(), **heif_samples()}


def _damaged(data: bytes, edits: Sequence[Edit], options: int) -> bytes:
    return damage(data, edits)


def _outcome(path: Path, options: int) -> str:
    return "pixels" if check(path, options) == "pixels" else "error"


def _start() -> None:
    """Nothing to prepare."""


if __name__ == "__main__":
    # By its full name: the child process would not find what it needs in __main__.
    from tests.faults import fuzz_images as here

    sys.exit(run(Target("image", here._samples, here._damaged, here._outcome, 8, ("pixels", "error"), here._start)))

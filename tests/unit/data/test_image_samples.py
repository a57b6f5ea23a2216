"""Which images of a list are tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_perturb.data.image_files import ImageList
from imbalance_perturb.data.image_samples import FIRST, SomeNames, calibration_positions, count_told, strength_positions
from imbalance_perturb.errors import ImageFolderError
from imbalance_perturb.inference.engine import sample_names


def test_part_of_a_list_has_the_samples_of_the_whole() -> None:
    """A machine that is told some names of a list draws from them what it would draw from all; others it refuses."""
    names = [f"{index:05d}.png" for index in range(5000)]
    some = SomeNames(names, {*calibration_positions(len(names)), *strength_positions(len(names))})
    assert len(some) == len(names)
    assert some.first == names[:FIRST]
    whole, part = (ImageList(Path(), Path(), [], whole=one) for one in (names, some))
    assert sample_names(whole) == sample_names(part)
    assert 30 < sum(name in names[:FIRST] for name in sample_names(part)) < 75
    assert [some[index] for index in strength_positions(5000)] == [names[index] for index in strength_positions(5000)]
    unknown = next(index for index in range(FIRST, 5000) if index not in some._known)
    with pytest.raises(ImageFolderError, match=r"none of the first 1,000 images can be read.*--resize or --crop"):
        some[unknown]
    with pytest.raises(IndexError):
        some[5000]


def test_few_images_are_all_taken() -> None:
    """Of a short list every image is tried, and the strength of a finished run is told by few."""
    assert sorted(calibration_positions(64)) == list(range(64)) != calibration_positions(64)
    assert [len(calibration_positions(n)) for n in (1, 65, 512, 1024, 10**6)] == [1, 64, 64, 128, 256]
    assert strength_positions(3) == [0, 1, 2]
    assert [count_told(n) for n in (10, 1000, 10**6)] == [8, 20, 64]

from __future__ import annotations

import pytest

from imbalance_perturb.errors import SettingsError, TooManyFailuresError
from imbalance_perturb.inference.failure_limit import select_limit
from imbalance_perturb.predictions.rows import PredictionRow

ROWS = [PredictionRow(f"{name}.png", error="is broken") for name in "abc"]


@pytest.mark.parametrize(
    ("on_error", "max_failures", "total", "most"),
    [
        ("skip", None, 10, None),
        ("fail", None, 10, 0),
        ("skip", "0", 10, 0),
        ("skip", "7", 10, 7),
        ("skip", "5%", 100, 5),
        ("skip", "29%", 100, 29),
        ("skip", "0.5%", 1000, 5),
        ("skip", "5%", 19, 0),
        ("skip", "100%", 19, 19),
    ],
)
def test_so_many_images_may_fail(on_error: str, max_failures: str | None, total: int, most: int | None) -> None:
    """Numbers are taken as they are, shares are of all images and rounded down."""
    assert select_limit(on_error, max_failures, total).most == most


@pytest.mark.parametrize("text", ["", "%", "x", "-1", "1.5", "101%", "-1%", "nan%", "inf%"])
def test_what_is_no_limit_is_named(text: str) -> None:
    """Anything but a number or a share up to 100% is refused."""
    with pytest.raises(SettingsError, match="expected a number of images, or a share"):
        select_limit("skip", text, 10)


def test_contradictions_are_named() -> None:
    """An unknown word, and a limit beside fail, are refused."""
    with pytest.raises(SettingsError, match="expected one of skip, fail"):
        select_limit("stop", None, 10)
    with pytest.raises(SettingsError, match="leave max_failures out"):
        select_limit("fail", "5", 10)


def test_one_more_than_allowed_ends_the_run() -> None:
    """The limit itself is allowed; one above it names the image, its reason and the option."""
    limit = select_limit("skip", "2", 10)
    limit.check(0, ROWS[:2])
    limit.check(2, [])
    for before, name in ((0, "c"), (1, "b"), (2, "a")):
        message = rf"{name}\.png: is broken; that makes 3 failed images, more than --max-failures 2 allows"
        with pytest.raises(TooManyFailuresError, match=message):
            limit.check(before, ROWS)
    select_limit("skip", None, 10).check(10, ROWS)

"""How many images of a run may fail before it is not worth going on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imbalance_perturb.errors import SettingsError, TooManyFailuresError, printable
from imbalance_perturb.predictions.rows import PredictionRow

ON_ERROR = ("skip", "fail")


@dataclass(frozen=True)
class FailureLimit:
    """At most ``most`` images may fail; ``None`` is no limit. ``option`` is what the user gave, for the message."""

    most: int | None = None
    option: str = ""

    def check(self, failed: int, broken: Sequence[PredictionRow]) -> None:
        """Refuse to go on.

        Args:
            failed: images of the run that failed before.
            broken: rows of those that failed now.

        Raises:
            TooManyFailuresError: if they are more than may fail, naming the first too many.
        """
        if self.most is None or not broken or failed + len(broken) <= self.most:
            return
        index = max(0, self.most - failed)
        row, count = broken[index], failed + index + 1
        images = f"{count:,} failed image{'s' if count > 1 else ''}"
        raise TooManyFailuresError(
            f"{printable(row.image)}: {row.error}; that makes {images}, more than {self.option} allows"
        )


def select_limit(on_error: str, max_failures: int | str | None, total: int) -> FailureLimit:
    """The limit that the options ask for.

    Args:
        on_error: ``skip`` (a failed image has its row, the run goes on) or ``fail`` (the first one ends it).
        max_failures: a number of images, or a share of all like ``5%``; ``None`` is no limit.
        total: number of images of the run.

    Raises:
        SettingsError: if they are not that, or contradict each other.
    """
    if on_error not in ON_ERROR:
        raise SettingsError(f"on_error is {on_error!r}; expected one of {', '.join(ON_ERROR)}")
    if on_error == "fail":
        if max_failures is not None:
            raise SettingsError("on_error is fail, so that no failure is allowed; leave max_failures out")
        return FailureLimit(0, "--on-error fail")
    if max_failures is None:
        return FailureLimit()
    return FailureLimit(_parse_most(str(max_failures), total), f"--max-failures {max_failures}")


def _parse_most(text: str, total: int) -> int:
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if not 0 <= value <= (100 if percent else float("inf")):
        raise SettingsError(f"max_failures is {text!r}; expected a number of images, or a share from 0% to 100%")
    # 29% of 100 images are 29 of them, which 0.29 * 100 in floating point are not.
    return int(round(value * total, 6) // 100) if percent else int(value)

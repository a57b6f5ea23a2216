"""Every error a user can cause: one base class, each leaf also the built-in exception it naturally is.

A message is one line that names the thing (file, argument, option), what was expected, what was found and
what to do about it. Only the command line prints or exits; the library raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# What is escaped in files. A file name that is not UTF-8 reaches Python with one surrogate for each such byte, which
# UTF-8 text cannot hold; control characters command the terminal of whoever looks at the file, and those that turn
# the direction of writing make one name look like another. Tabs and line ends stay: formats have ways for them.
UNSAFE = "[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"

UNSAFE_CHARACTER = re.compile(UNSAFE)

#: Characters of a wrong value in a message.
_LONGEST_VALUE = 80


class ImbperturbError(Exception):
    """Base of all errors raised on purpose by this package."""


class CountsError(ImbperturbError, ValueError):
    """The class counts cannot be used: malformed, not positive integers, fewer than two classes."""


class NothingToCorrectError(CountsError):
    """The classes are balanced (or the target uniform), so the method has no direction to push in."""


class TargetError(ImbperturbError, ValueError):
    """The target distribution p* cannot be formed or does not fit the classes."""


class SettingsError(ImbperturbError, ValueError):
    """An option or a recipe entry is out of range or contradicts another: a wrong use of the command."""


class ModelFileError(ImbperturbError, ValueError):
    """The model file is missing, truncated, of an unknown format, or does not fit the network."""


class UntrustedModelError(ModelFileError):
    """Loading the model file would run code that it brings along."""


class ArchitectureError(ModelFileError):
    """The network is not known, cannot be recognised, or its tensors do not match the file's."""


class ModelOutputError(ImbperturbError, ValueError):
    """What the model returns cannot be read as one row of logits for each image."""


class ModelGradientError(ImbperturbError, RuntimeError):
    """No usable gradient reaches the model's input, so the input cannot be perturbed."""


class ImageError(ImbperturbError, ValueError):
    """One image file cannot be used; the message is the reason that goes into its row."""


class ImageFolderError(ImbperturbError, ValueError):
    """The images as a whole cannot be used: no such folder, no image in it, a bad list."""


class LabelsError(ImbperturbError, ValueError):
    """The labels are malformed or do not fit the images or the classes."""


class PredictionsError(ImbperturbError, ValueError):
    """The predictions file or the run file beside it cannot be used, or does not fit what else is given."""


class OutputFileError(ImbperturbError, OSError):
    """A result cannot be written where it was asked for."""


class ResumeError(ImbperturbError, ValueError):
    """An unfinished run cannot be resumed, or its files are in the way of a new one."""


class MergeError(ImbperturbError, ValueError):
    """Predictions files are not the parts of one run, or not all of them."""


class VerificationError(ImbperturbError, RuntimeError):
    """The rows of a run do not come out again."""


class InterruptedRunError(ImbperturbError, RuntimeError):
    """A run was asked to stop; what it had done is kept."""


class TooManyFailuresError(ImbperturbError, RuntimeError):
    """More images failed than the caller allowed."""


class DeviceError(ImbperturbError, RuntimeError):
    """The device asked for is not there, or ran out of memory."""


class ClusterError(ImbperturbError, RuntimeError):
    """The cluster cannot be reached, a worker of it ends again and again, or is of another kind than the others."""


def first_line(error: BaseException) -> str:
    """Find the line of an error's message that says what happened; the error's name where there is no message."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TorchScript puts a traceback first and the reason last.
    return lines[-1] if lines[0].startswith("The following operation failed") else lines[0]


def first_few(names: Sequence[str], limit: int = 3) -> str:
    """List the first names for a message, each on one line whatever it holds, and how many more there are."""
    more = len(names) - limit
    return ", ".join(map(printable, names[:limit])) + (f" and {more:,} more" if more > 0 else "")


def printable(name: str) -> str:
    r"""Escape a name for a terminal: control characters and bytes that are not UTF-8 as ``\x1b`` or ``\udcff``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def brief(value: object) -> str:
    """A wrong value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"

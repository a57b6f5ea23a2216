"""What a setting may be, as data: the check, its message, and how the command line's text becomes a value."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from imbalance_perturb.errors import SettingsError
from imbalance_perturb.files.strict_json import parse_json


def parse_list(option: str, text: str, kind: Callable[[str], Any] = float) -> tuple[Any, ...]:
    """Parse a list with commas, as the command line has it.

    Raises:
        SettingsError: naming the option, if ``kind`` cannot read one of them.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"{option} is {text!r}; expected numbers separated by commas") from None


class Allowed:
    """The values that a setting may have, and ``expected``, what they are in words.

    The command line takes them as ``given_as``, called ``metavar`` in its help, and ``parse`` makes a value of that.
    """

    given_as: type[Any] = str
    metavar: ClassVar[str | None] = None
    expected: str

    def accepts(self, value: Any) -> bool:
        """Whether a value, of whatever type, is one of them."""
        raise NotImplementedError

    def parse(self, name: str, given: Any) -> Any:
        """Parse what the command line has; a :class:`SettingsError` names the setting if it is no value."""
        return given


@dataclass(frozen=True)
class Text(Allowed):
    """One of ``words``, or what ``pattern`` matches as a whole; any text where there is neither.

    ``form`` is what the pattern matches, in words for an error; ``listed`` the same among the choices of the help.
    """

    words: tuple[str, ...] = ()
    pattern: str = ""
    form: str = ""
    listed: str = ""

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The words and the form."""
        words = f"one of {', '.join(self.words)}" if self.words else ""
        return " or ".join(filter(None, (words, self.form)))

    def accepts(self, value: Any) -> bool:
        """Whether a text is one of these."""
        matches = bool(self.pattern) and re.fullmatch(self.pattern, value, re.DOTALL) is not None
        return matches or value in self.words or not (self.words or self.pattern)


@dataclass(frozen=True)
class Flag(Allowed):
    """True or false; ``off`` is whether the command line has a switch for false, too."""

    given_as = bool
    expected = "true or false"
    off: bool = True

    def accepts(self, value: Any) -> bool:
        """Whether it is one of the two; 0 and 1 are not."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class FlagOrHash(Flag):
    """A flag, or the SHA-256 of the only file for which it is true."""

    expected = "true, false or the SHA-256 of the model file"

    def accepts(self, value: Any) -> bool:
        """Whether it is true, false or 64 hexadecimal digits."""
        return super().accepts(value) or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)


@dataclass(frozen=True, kw_only=True)
class Number(Allowed):
    """A finite number, a ``whole`` one perhaps, within its bounds; true and false are none."""

    whole: bool = False
    of: str = ""  # what is counted
    above: int | None = None
    at_least: int | None = None
    at_most: int | None = None

    @property
    def given_as(self) -> type[Any]:  # type: ignore[override]
        """``int`` for a whole number."""
        return int if self.whole else float

    @property
    def noun(self) -> str:
        """What it is in words, without an article."""
        bounds = f" above {self.above}" if self.above is not None else ""
        if self.at_least is not None:
            least, most = self.at_least, self.at_most
            bounds = f", at least {least}" if most is None else f" from {least} to {most}"
        return f"{'whole ' if self.whole else ''}number{f' of {self.of}' if self.of else ''}{bounds}"

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The number and its bounds."""
        return f"a {self.noun}"

    def accepts(self, value: Any) -> bool:
        """Whether it is such a number."""
        if not isinstance(value, int if self.whole else int | float) or isinstance(value, bool):
            return False
        # Compared exactly, so that neither NaN nor an integer that no float can hold comes through.
        return (
            abs(value) <= sys.float_info.max
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )


@dataclass(frozen=True, kw_only=True)
class NumberOrAuto(Number):
    """A number, or ``auto``, ``auto*X``: one that a run finds out, times X."""

    metavar = "E|auto|auto*X"
    given_as = str

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The number, or the word."""
        return f"{super().expected}, auto, or auto*X with X above 0"

    def accepts(self, value: Any) -> bool:
        """Whether it is such a number or text."""
        if isinstance(value, str):
            return auto_factor(value) is not None
        return super().accepts(value)

    def parse(self, name: str, given: Any) -> Any:
        """Parse a number; any other text is left to the check."""
        try:
            return float(given)
        except ValueError:
            return given.replace(" ", "")


def auto_factor(text: str) -> float | None:
    """X of ``auto*X``, 1 of ``auto``; ``None`` for any other text."""
    word, times, number = text.partition("*")
    if word != "auto":
        return None
    if not times:
        return 1.0
    try:
        factor = float(number)
    except ValueError:
        return None
    return factor if 0 < factor <= sys.float_info.max else None


@dataclass(frozen=True)
class PerChannel(Allowed):
    """A tuple of numbers, one for each channel of an image; one alone is of all channels."""

    metavar = "R,G,B"
    number: Number = Number()

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The words of the number, for each channel."""
        return f"one {self.number.noun} for each channel"

    def accepts(self, value: Any) -> bool:
        """Whether it is a tuple of at least one such number."""
        return isinstance(value, tuple) and bool(value) and all(map(self.number.accepts, value))

    def parse(self, name: str, given: Any) -> Any:
        """Parse numbers separated by commas."""
        return parse_list(name, given)


@dataclass(frozen=True)
class PerClass(PerChannel):
    """A tuple of numbers, one for each class in class-index order."""

    metavar = "A,B,..."

    @property
    def expected(self) -> str:  # type: ignore[override]
        """The words of the number, for each class."""
        return f"one {self.number.noun} for each class"


@dataclass(frozen=True)
class Prior(Allowed):
    """``balanced``, a .json file, or a number above 0 for each class by its name."""

    metavar = "balanced|FILE.json|JSON"
    words: ClassVar = ("balanced",)
    expected = "balanced, a .json file, or a share above 0 for each class by its name"
    share: ClassVar = Number(above=0)

    def accepts(self, value: Any) -> bool:
        """Whether it is one of the three; which classes there are is not known here."""
        if isinstance(value, str):
            return value in self.words or value.endswith(".json")
        by_name = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return by_name and bool(value) and all(map(self.share.accepts, value.values()))

    def parse(self, name: str, given: Any) -> Any:
        """Parse JSON, which begins with a brace; any other text is left to the check."""
        if not given.lstrip().startswith("{"):
            return given
        try:
            return parse_json(given, self.expected, SettingsError)
        except SettingsError as error:
            raise SettingsError(f"{name} is {given!r}, which {error}") from None


@dataclass(frozen=True)
class Size(Allowed):
    """Pixels of one side, (height, width), or ``"none"``."""

    metavar = "S|H,W|none"
    expected = "a number of pixels, H,W or none"
    side: ClassVar = Number(whole=True, at_least=1)

    def accepts(self, value: Any) -> bool:
        """Whether it is one of the three."""
        sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
        return value == "none" or all(map(self.side.accepts, sides))

    def parse(self, name: str, given: Any) -> Any:
        """Parse one number, two separated by a comma, or ``none``."""
        numbers = (given,) if given == "none" else parse_list(name, given, int)
        return numbers[0] if len(numbers) == 1 else numbers

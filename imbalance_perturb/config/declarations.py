"""How a setting is declared: what it may be, as data, and what people read about it.

The check and its message, the command line's option, the recipe's entry and the tests are made from that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from imbalance_perturb.errors import SettingsError


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


@dataclass(frozen=True)
class Declaration:
    """One setting: what it may be and what people read about it.

    Attributes:
        allowed: the values it may have.
        help: what it is, in a sentence; its choices follow it, and its default.
        default_text: the default in words, if not the value itself.
        argument: whether the command line has it as an argument of the commands, not as an option.
        path: whether it names a file, which a recipe does from its own folder.
        of_preset: whether a preset states it, too, so that a preset named later takes its place.
        compared: whether rows depend on it, so that only runs of the same value are resumed and merged.
        name, default: its name in Python, and its value where nothing is said; ``None`` is what ``default_text`` says.
    """

    allowed: Allowed
    help: str
    default_text: str | None = None
    argument: bool = False
    path: bool = False
    of_preset: bool = False
    compared: bool = True
    name: str = ""
    default: Any = None

    @property
    def option(self) -> str:
        """Its name on the command line, without the dashes before it."""
        return self.name.replace("_", "-")

    def check(self, value: Any) -> None:
        """Refuse a value that is not allowed; ``None`` is 'not said' where it is the default.

        Raises:
            SettingsError: with the setting's name, the value and what was expected.
        """
        if value is None and self.default is None:
            return
        if isinstance(self.allowed, Text) and not isinstance(value, str):
            raise SettingsError(f"{self.name} is {value!r}; expected text")
        if not self.allowed.accepts(value):
            raise SettingsError(f"{self.name} is {value!r}; expected {self.allowed.expected}")

    def names_file(self, value: Any) -> bool:
        """Whether a value that is allowed is the path of a file, not one of the setting's words."""
        return self.path and value is not None and value not in getattr(self.allowed, "words", ())

    def describe(self, default_text: str | None = None, *, off: str | None = None) -> str:
        """Describe the setting: its help, its choices and its default.

        Args:
            default_text: another default than its own.
            off: what a flag that is off is called, where that is not by its switch.
        """
        allowed, default = self.allowed, default_text or self.default_text
        if isinstance(allowed, Flag):
            default = off or default or f"no-{self.option}" if allowed.off else None
        elif default is None and self.default is not None:
            default = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        listed = filter(None, (*allowed.words, allowed.listed)) if isinstance(allowed, Text) else ()
        choices = " | ".join(listed)
        return (
            self.help + (f" {choices}." if choices else "") + (f" (default: {default})" if default is not None else "")
        )


def setting(default: Any, allowed: Allowed, help: str, **more: Any) -> Any:
    """Declare an entry of a :class:`Table`; ``more`` is what a :class:`Declaration` has besides."""
    return field(default=default, metadata={"declared": Declaration(allowed, help, **more)})


class Table:
    """Base of the tables of settings, frozen dataclasses whose entries are checked as they were declared.

    ``panel`` is what the command line's help calls the options, ``comment`` is written into the recipe.
    """

    panel: ClassVar[str]
    comment: ClassVar[str]

    def __post_init__(self) -> None:
        take_numbers(self)
        for name, entry in declarations(type(self)).items():
            entry.check(getattr(self, name))


def take_numbers(options: Any) -> None:
    """Make Python's numbers, by their value, of those that NumPy, pandas or torch have put into a frozen dataclass."""
    for entry in fields(options):
        object.__setattr__(options, entry.name, _plain(getattr(options, entry.name)))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    dimensions = getattr(value, "ndim", None) if hasattr(value, "tolist") else None
    if dimensions == 0:
        return value.item()
    return tuple(value.tolist()) if dimensions == 1 else value


def declarations(table: type[Any]) -> dict[str, Declaration]:
    """List the settings of a table by their names, in the order of their declaration."""
    return {
        entry.name: replace(entry.metadata["declared"], name=entry.name, default=entry.default)
        for entry in fields(table)
    }

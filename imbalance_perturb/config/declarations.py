"""How a setting is declared: what it may be, as data, and what people read about it.

The check and its message, the command line's option, the recipe's entry and the tests are made from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from imbalance_perturb.config.allowed import Allowed, Flag, Text
from imbalance_perturb.errors import SettingsError


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
        only: the one command that has it as an option; any where there is none.
        name, default: its name in Python, and its value where nothing is said; ``None`` is what ``default_text`` says.
    """

    allowed: Allowed
    help: str
    default_text: str | None = None
    argument: bool = False
    path: bool = False
    of_preset: bool = False
    compared: bool = True
    only: str = ""
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
        return self.path and isinstance(value, str) and value not in getattr(self.allowed, "words", ())

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
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
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

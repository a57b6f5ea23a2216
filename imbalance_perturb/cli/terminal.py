"""The one place where text leaves for people, so that whatever a name holds, it commands no terminal and ends no run.

Names of files, folders and classes may come from a stranger. What is not printable (control characters, terminal
commands, marks that turn the direction of writing, bytes that are not UTF-8) is shown as an escape such as ``\\x1b``,
and a character that the console lacks likewise. Tables are in :mod:`imbalance_perturb.reports.terminal`.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
import traceback
import warnings
from dataclasses import asdict, is_dataclass
from types import TracebackType
from typing import Any

from imbalance_perturb.errors import printable

_LINE_ENDS = re.compile(r"[\r\n]+")


def prepare() -> None:
    """Let no character that the console lacks end a command, and show warnings as all else is shown."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _format_warning


def say(text: str) -> None:
    """Print one line on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print one line on stdout."""
    # Flushed, or it would come after what other processes print.
    print(one_line(text), flush=True)


def show_json(result: Any) -> None:
    """Print a dataclass of plain values as JSON on stdout: valid UTF-8 whatever the console's encoding."""
    from imbalance_perturb.files.writing import json_text

    data = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    # In another encoding only ASCII is UTF-8, too.
    print(json_text(data, indent=2, ascii_only=not _is_utf8(sys.stdout.encoding)))


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception as Python shows it, for ``sys.excepthook``."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    print(_by_line(lines), file=sys.stderr, end="")


def one_line(text: str) -> str:
    """Bring text to one line of printable characters; its own line ends become blanks."""
    first, *others = _LINE_ENDS.split(text)
    return printable(" ".join([first, *(part.strip() for part in others if part.strip())]))


def _by_line(text: str) -> str:
    return "".join(f"{printable(line)}\n" for line in text.splitlines())


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return _by_line(f"{filename}:{lineno}: {category.__name__}: {message}")


def _is_utf8(encoding: str | None) -> bool:
    return encoding is not None and codecs.lookup(encoding).name == "utf-8"

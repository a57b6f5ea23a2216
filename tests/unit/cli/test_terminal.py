from __future__ import annotations

import io
import json
import re
import sys
import warnings

import pytest
from rich.table import Table

from imbalance_perturb.cli import terminal
from imbalance_perturb.reports.terminal import new_console, styled

HOSTILE = ("[red]x[/red]", "x [/y]", "\x1b[31m\x9b2J\x07", "\u202eabc\u2066", "\udcff", ":mole:", "two\nlines", "c\rr")
SHOWN = (
    "[red]x[/red]",
    "x [/y]",
    "\\x1b[31m\\x9b2J\\x07",
    "\\u202eabc\\u2066",
    "\\udcff",
    ":mole:",
    "two\\nlines",
    "c\\rr",
)


def test_tables_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In titles, heads, cells and sentences a name is text; on a terminal only the table's own colours are commands."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    console = new_console()
    for name, shown in zip(HOSTILE, SHOWN, strict=True):
        table = Table(title=name)
        table.add_column(name)
        table.add_column(styled((name, "bold")))
        table.add_row(name, styled((name, "red"), name, between="\n"))
        console.print(table)
        console.print(name, style="bold")
        out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert all(character.isprintable() or character == "\n" for character in out)
        assert out.count(shown) == 7


def test_lines_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is one line: a name's commands are shown, a message's own line ends become blanks, its indent stays."""
    for name in HOSTILE[:6]:
        terminal.say(f"  note: {name}")
        terminal.show(name)
    out, err = capsys.readouterr()
    assert out.splitlines() == list(SHOWN[:6])
    assert err.splitlines() == [f"  note: {shown}" for shown in SHOWN[:6]]
    assert terminal.one_line("why:\r\n   because\n\nof  that\x1b\n") == "why: because of  that\\x1b"


def test_warnings_and_tracebacks_are_shown_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    """What Python itself prints of a name commands no terminal either."""
    terminal.prepare()
    shown = warnings.formatwarning("\x1b[31m\u202e", UserWarning, "f\x1b.py", 3)
    assert shown == "f\\x1b.py:3: UserWarning: \\x1b[31m\\u202e\n"
    try:
        raise ValueError("\x1b[31m\x9b")
    except ValueError as error:
        terminal.show_traceback(type(error), error, error.__traceback__)
    err = capsys.readouterr().err
    assert err.endswith("ValueError: \\x1b[31m\\x9b\n")
    assert "\n" in err.strip()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_utf8_whatever_the_console(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """JSON on stdout reads back as UTF-8 in every encoding, and what is no UTF-8 is an escape of JSON's own."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    data = {name: ["é", "🙂", "皮"] for name in HOSTILE}
    terminal.prepare()
    terminal.show_json(data)
    stream.flush()
    written = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert json.loads(written.decode("utf-8")) == data
    assert b'"\\udcff"' in written
    assert ("é".encode() in written) == (encoding == "utf-8")

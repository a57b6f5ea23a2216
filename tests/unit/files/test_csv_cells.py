from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imbalance_perturb.errors import printable
from imbalance_perturb.files.csv_tables import (
    csv_line,
    decode_path,
    decode_text,
    decode_unicode,
    encode_json,
    encode_path,
    encode_text,
    encode_unicode,
    normal_path,
    read_path,
)

NAMES = [
    "=1+1",
    "+cmd",
    "-x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "'=1",
    "''",
    "./=1",
    "././x",
    "././=x",
    "a b.png",
    'quote ".png',
    "comma,.png",
    "semicolon;=1.png",
    "line\nend.png",
    "carriage\rreturn.png",
    "🙂.png",
    "bad\udcff\udc80.png",
    "\\udcff.png",
    "esc\x1b[31m\x9b2J\x7f",
    "\\u001b",
    "\\u009b\\u202e",
    "rtl\u202e\u2066",
    "\\u005cudcff.png",
    "back\\slash",
    "-1",
    "",
]

# Names of files are bytes: what is not UTF-8 comes as surrogates from U+DC80 to U+DCFF.
file_names = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
escapes = st.lists(st.sampled_from(["\\", "u", "005c", "dcff", "\udcff", "./", "'", "=", "a"])).map("".join)
names = st.one_of(st.sampled_from(NAMES), st.text(), file_names, escapes)

PAIRS = [(encode_path, decode_path), (encode_text, decode_text), (encode_unicode, decode_unicode)]


@pytest.mark.parametrize(("encode", "decode"), PAIRS)
@given(name=names)
def test_every_name_comes_back(encode: Callable[[str], str], decode: Callable[[str], str], name: str) -> None:
    """Whatever the name, it is written as UTF-8 and read back the same, so no two names look alike."""
    cell = encode(name)
    assert decode(cell.encode("utf-8").decode("utf-8")) == name


@given(name=names)
def test_no_cell_is_a_formula(name: str) -> None:
    """No cell begins with what a spreadsheet takes for a formula; negative numbers are none."""
    for cell in (encode_path(name), encode_text(name)):
        assert not cell.startswith(("=", "+", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        assert not cell.startswith("-") or float(cell) < 0 or float(cell) == 0
    assert encode_text("-1") == "-1"
    assert encode_path("=x.png") == "./=x.png"
    assert encode_text("=x") == "'=x"


@given(cells=st.lists(names.map(encode_unicode), min_size=2))
@example(cells=["a\rb", "c"])
def test_lines_read_back(cells: list[str]) -> None:
    """Python's reader gives the cells back: quotes, commas, line ends and lone carriage returns are quoted."""
    cells = [cell.replace("\0", "") for cell in cells]
    line = csv_line(cells)
    assert next(csv.reader(io.StringIO(line, newline=""), strict=True)) == cells
    assert csv_line(["a", "b"]) == "a,b\n"
    assert csv_line(['x"y', "a;b"]) == '"x""y","a;b"\n'


CONTROL = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@given(name=names)
def test_no_file_commands_a_terminal(name: str) -> None:
    """No cell, and no JSON, holds a control character, a mark that turns the writing, or what is no UTF-8."""
    for encoded in (encode_path(name), encode_text(name), encode_unicode(name), encode_json(json.dumps([name]))):
        assert not CONTROL.search(encoded)
    text = encode_json(json.dumps({name: [name, "\x9b"]}, ensure_ascii=False, indent=2))
    assert not CONTROL.search(text)
    assert json.loads(text.encode()) == {name: [name, "\x9b"]}


def test_ordinary_names_stay_as_they_are() -> None:
    """Spaces, emoji, backslashes and quotes need no escape, and neither does a path below the folder."""
    for name in ("a/b c.png", "./a.png", "🙂.png", "back\\slash.png", "it's.png", 'a"b.png', "x'.png"):
        assert encode_path(name) == name
        assert encode_text(name) == name


def test_names_for_a_terminal() -> None:
    """Control characters and bytes that are not UTF-8 are shown, not sent to the terminal."""
    assert printable("a\x1b[31m\n\udcff 🙂.png") == "a\\x1b[31m\\n\\udcff 🙂.png"


segments = st.sampled_from(["a", "..", ".", "", "=b", "-1", "\\", " ", "\udcff", "\\udcff"])


@given(path=st.one_of(names, st.lists(segments, max_size=6).map("/".join)))
def test_a_normal_path_is_the_same_file_and_reads_back(path: str) -> None:
    """Normal once is normal for good; no '..' is resolved; a table that predict writes gives the same name back."""
    normal = normal_path(path)
    assert normal_path(normal) == normal
    assert [part for part in path.split("/") if part not in ("", ".")] == [p for p in normal.split("/") if p]
    assert normal.startswith("/") == path.startswith("/")
    assert read_path(encode_path(normal)) == normal

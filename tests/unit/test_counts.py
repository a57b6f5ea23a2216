from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbalance_perturb.counts import ClassCounts, load_class_counts, parse_class_counts
from imbalance_perturb.errors import CountsError


@pytest.mark.parametrize(
    ("data", "names", "counts"),
    [
        ({"nv": 6705, "mel": 1113}, ("nv", "mel"), (6705, 1113)),
        ({"classes": ["b", "a"], "counts": [2, 9]}, ("b", "a"), (2, 9)),
        ([5, 3, 1], ("0", "1", "2"), (5, 3, 1)),
        ({"classes": 7, "counts": 3}, ("classes", "counts"), (7, 3)),
    ],
)
def test_every_form_keeps_class_index_order(
    data: object, names: tuple[str, ...], counts: tuple[int, ...], tmp_path: Path
) -> None:
    """All three JSON forms give names and counts in class-index order, from an object and from a file."""
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(data), encoding="utf-8-sig")
    assert parse_class_counts(data) == load_class_counts(path) == ClassCounts(names, counts)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{nv: 3}", "is not JSON (line 1, column 2"),
        ("[3, 4", "is not JSON"),
        ("{}", "0 class found"),
        ("[]", "0 class found"),
        ("[7]", "1 class found"),
        ('{"a": 3, "b": -4}', "the count of class 'b' is -4"),
        ('{"a": 3, "b": 0}', "the count of class 'b' is 0"),
        ('{"a": 3, "b": 4.5}', "the count of class 'b' is 4.5"),
        ('{"a": 3, "b": "4"}', "the count of class 'b' is '4'"),
        ('{"a": 3, "b": true}', "the count of class 'b' is True"),
        ('{"a": 3, "b": NaN}', "NaN is not a number that can be used"),
        ('{"a": 3, "a": 4}', "'a' stands more than once"),
        ('{"classes": ["a", "a"], "counts": [1, 2]}', "class name 'a' stands more than once"),
        ('{"classes": ["a"], "counts": [1, 2]}', "1 class names but 2 counts"),
        ('{"classes": "ab", "counts": [1, 2]}', "must both be lists"),
        ('{"": 1, "b": 2}', "class name '' is not a non-empty string"),
        ('"abc"', "found str; expected"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_bad_counts_end_in_one_line_naming_file_and_cause(text: str, cause: str, tmp_path: Path) -> None:
    """Unusable counts raise CountsError with one line that names the file, the cause and what is expected."""
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(CountsError) as caught:
        load_class_counts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert cause in message
    assert "\n" not in message


def test_a_missing_file_and_binary_data_are_named(tmp_path: Path) -> None:
    """A file that is not there, a folder, or a file that is not text is an error naming it."""
    binary = tmp_path / "counts.bin"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path, cause in (
        (tmp_path / "no.json", "No such file"),
        (tmp_path, "directory"),
        (binary, "not UTF-8"),
    ):
        with pytest.raises(CountsError, match=cause):
            load_class_counts(path)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=20))
def test_derived_values(counts: list[int]) -> None:
    """Total, imbalance, balance and the smallest class follow from the counts."""
    parsed = parse_class_counts(counts)
    assert len(parsed) == len(counts)
    assert parsed.total == sum(counts)
    assert parsed.balanced == (min(counts) == max(counts))
    assert parsed.imbalance == max(counts) / min(counts)
    assert counts[parsed.smallest] == min(counts)
    assert parsed.smallest == counts.index(min(counts))
    assert parse_class_counts(parsed.to_dict()) == parsed

"""imbalance_perturb.data.packed_names: a list of names in one block of memory, which is a list of the same names."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbalance_perturb.data import packed_names
from imbalance_perturb.data.packed_names import first_double, pack_names

# Whatever os.fsdecode gives: also bytes that are not UTF-8.
NAMES = st.lists(st.binary(max_size=6).map(lambda raw: raw.decode("utf-8", "surrogateescape")))


@given(names=NAMES, start=st.integers(-5, 9), stop=st.integers(-5, 9), step=st.sampled_from([1, 2, -1]))
def test_packed_names_are_the_sorted_list(names: list[str], start: int, stop: int, step: int) -> None:
    """Length, items, slices, iteration, membership, equality, and the order: those of Python's sorted list."""
    packed, expected = pack_names(names), sorted(names)
    assert packed == expected
    assert expected == packed
    assert list(packed) == expected
    assert [packed[index] for index in range(len(packed))] == expected
    assert packed[start:stop:step] == expected[start:stop:step]
    assert packed[start:stop] == expected[start:stop]
    if names:
        assert packed[-1] == expected[-1]
        assert names[0] in packed
    assert packed != [*expected, "another"]
    assert packed == pack_names(expected)
    with pytest.raises(IndexError):
        packed[len(names)]
    doubles = [name for name, after in pairwise(expected) if name == after]
    assert first_double(packed) == (doubles[0] if doubles else None)


def test_the_order_needs_no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the names are put in order as strings."""
    monkeypatch.setattr(packed_names, "_order", lambda packed: None)
    assert pack_names(["b", "é", "a"]) == ["a", "b", "é"]


def test_a_name_takes_little_more_than_its_letters() -> None:
    """100,000 names of 40 letters that come out of order: 48 bytes each are kept, where a list of strings keeps 97."""
    pytest.importorskip("pyarrow", reason="needs pyarrow, which puts them in order")
    pack_names(["b", "a"])
    tracemalloc.start()
    try:
        packed = pack_names(f"{index * 7919 % 100_000:040}" for index in range(100_000))
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(packed) == 100_000
    assert kept < 60 * 100_000
    assert most < 200 * 100_000

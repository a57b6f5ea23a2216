from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbalance_perturb.data.image_files import ImageList, iter_sizes
from imbalance_perturb.errors import SettingsError
from imbalance_perturb.predictions.shards import Shard, files_sha256, list_sha256, parse_shard


@given(names=st.lists(st.text(min_size=1), unique=True), count=st.integers(1, 9))
def test_every_image_is_in_exactly_one_part(names: list[str], count: int) -> None:
    """The parts are disjoint, hold all images in their order, and know the whole list."""
    images = ImageList(Path(), Path(), sorted(names))
    parts = [images.part(Shard(index, count).holds) for index in range(1, count + 1)]
    assert sorted(name for part in parts for name in part.names) == sorted(names)
    assert all(list(part.names) == sorted(part.names) for part in parts)
    assert all(part.everything == images.names for part in parts)


def test_a_part_is_told_by_the_path_alone() -> None:
    """Other images in the list move none from its part, the parts are about equal, and they are so for good."""
    names = sorted(f"{index}.png" for index in range(4000))
    whole, half = (ImageList(Path(), Path(), listed).part(Shard(2, 8).holds).names for listed in (names, names[::2]))
    assert list(half) == [name for name in whole if name in set(names[::2])]
    assert 400 < len(whole) < 600
    held = [name for name in ("a.png", "b/c.png", "é\udcff.png", "d.png") if Shard(1, 2).holds(name)]
    assert held == ["a.png", "b/c.png", "d.png"]


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "1/0", "-1/2", "1/2/3", "a/b", "1.5/2", "1/", "/2", "²/3"])
def test_what_is_no_part_is_named(text: str) -> None:
    """Anything but I/N with I from 1 to N is refused, saying what is expected."""
    with pytest.raises(SettingsError, match="expected I/N with I from 1 to N, such as 3/8"):
        parse_shard(text)


def test_parts_read_back() -> None:
    """A part is written as it is read."""
    assert parse_shard("3/8") == Shard(3, 8)
    assert str(Shard(3, 8)) == "3/8"


def test_the_hash_of_a_list_tells_lists_apart() -> None:
    """Names, their order and their ends all count."""
    assert list_sha256(["a", "b"]) == list_sha256(("a", "b"))
    assert len({list_sha256(names) for names in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [], ["a\udcff"])}) == 6


def test_the_hash_of_files_tells_their_sizes_apart(tmp_path: Path) -> None:
    """Names and sizes count; what is no file, or is gone, has none, and does not end the search."""
    (tmp_path / "a.png").write_bytes(b"123")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    names = ["a.png", "bad\udcff.png", "folder.png", "link.png", "no\0name.png"]
    sizes = list(iter_sizes(tmp_path, names))
    assert sizes == [3, None, None, 3, None]
    others = [(names, [4, *sizes[1:]]), (names, [3, 0, *sizes[2:]]), (names[1:], sizes[1:]), (names[:1], [3])]
    assert len({files_sha256(*each) for each in ((names, sizes), *others)}) == 5

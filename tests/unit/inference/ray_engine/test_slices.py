"""How a list is cut into slices for workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imbalance_perturb.inference.ray_engine.slices import SECONDS, Slice, SliceCutter


@given(
    total=st.integers(1, 500),
    group=st.integers(1, 40),
    begin=st.integers(0, 5),
    done=st.sets(st.integers(0, 30), max_size=6),
    workers=st.integers(1, 6),
    learnt=st.lists(st.tuples(st.integers(1, 500), st.floats(0.001, 100), st.integers(1, 10**7)), max_size=5),
    lost=st.integers(0, 3),
)
def test_slices_are_whole_groups_and_every_image_is_in_one(
    total: int,
    group: int,
    begin: int,
    done: set[int],
    workers: int,
    learnt: list[tuple[int, float, int]],
    lost: int,
) -> None:
    """From any start, beside slices that are done, with slices lost: each image once, in whole groups."""
    start = min(begin * group, total // group * group)
    ahead = {one * group: min(group, total - one * group) for one in done if start <= one * group < total}
    cutter = SliceCutter(total, group, start, ahead, workers)
    seen = [image for first, images in ahead.items() for image in range(first, first + images)]
    left = list(learnt)
    while (one := cutter.cut()) is not None:
        if lost:
            lost -= 1
            cutter.take_back(one, suspect=lost % 2 == 0)
            if lost % 2 == 0:
                continue
            assert cutter.cut() == one
        assert one.start % group == 0
        assert one.stop % group == 0 or one.stop == total
        seen += range(one.start, one.stop)
        if left:
            cutter.learn(*left.pop())
    assert sorted(seen) == list(range(start, total))


def test_slices_take_half_a_minute_and_less_towards_the_end() -> None:
    """The first is a group; then the speed decides, and what is left is shared out so that all end together."""
    cutter = SliceCutter(100_000, 100, 0, {}, 2)
    assert cutter.cut() == Slice(0, 100)
    cutter.learn(100, SECONDS / 20, 1000)
    sizes = []
    while (one := cutter.cut()) is not None:
        sizes.append(one.images)
    assert sizes[0] == 2000
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 100
    assert sum(sizes) == 99_900


def test_a_slice_that_ended_its_worker_waits_for_others() -> None:
    """Three for each worker go out before it does again, or all that are left."""
    cutter = SliceCutter(100, 10, 0, {}, 1)
    first = cutter.cut()
    assert first is not None
    cutter.take_back(first, suspect=True)
    starts = [one.start for one in iter(cutter.cut, None)]
    assert starts == [10, 20, 30, 0, 40, 50, 60, 70, 80, 90]
    cutter = SliceCutter(20, 10, 0, {}, 1)
    assert cutter.cut() == Slice(0, 10)
    cutter.take_back(Slice(0, 10), suspect=True)
    assert [cutter.cut(), cutter.cut(), cutter.cut()] == [Slice(10, 20), Slice(0, 10), None]


def test_slices_are_bounded_by_the_text_of_their_rows() -> None:
    """Rows of very many classes make short slices, so that few megabytes are in memory."""
    cutter = SliceCutter(100_000, 10, 0, {}, 1)
    cutter.learn(10, 0.001, 10 << 20)
    one = cutter.cut()
    assert one is not None
    assert one.images == 10

"""Slices that were done before their turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_perturb.errors import OutputFileError
from imbalance_perturb.predictions.ahead_file import AheadFile
from imbalance_perturb.predictions.progress_file import ahead_path


def filled(path: Path | None) -> AheadFile:
    ahead = AheadFile(path, resume=False)
    for start in (20, 10, 30):
        ahead.put(start, 10, {"text": f"rows of {start}\n", "name": "\udcff"})
    return ahead


@pytest.mark.parametrize("kept", [True, False])
def test_slices_come_back_whatever_the_order(tmp_path: Path, kept: bool) -> None:
    """Each is taken once, in any order; when none waits, the file is empty."""
    path = tmp_path / "p.csv" if kept else None
    ahead = filled(path)
    assert ahead.waiting == {20: 10, 10: 10, 30: 10}
    for start in (10, 20, 30):
        assert ahead.take(start) == {"text": f"rows of {start}\n", "name": "\udcff"}
        assert ahead.take(start) is None
    ahead.put(40, 2, {})
    assert ahead.waiting == {40: 2}
    ahead.close()
    assert path is None or ahead_path(path).stat().st_size < 100


def test_a_run_that_goes_on_finds_what_is_whole(tmp_path: Path) -> None:
    """Slices count up to the first that was cut off or changed; those already written are dropped."""
    path = tmp_path / "p.csv"
    filled(path).close()
    whole = ahead_path(path).read_bytes()
    for cut in (len(whole) - 1, len(whole) - 5):
        ahead_path(path).write_bytes(whole[:cut])
        ahead = AheadFile(path, resume=True)
        assert ahead.waiting == {20: 10, 10: 10}
        ahead.drop_before(20)
        assert ahead.waiting == {20: 10}
        ahead.put(50, 1, {"text": "new"})
        ahead.close()
        again = AheadFile(path, resume=True)
        assert again.take(50) == {"text": "new"}
        again.close()
    ahead_path(path).write_bytes(whole.replace(b"rows of 10", b"rows of 11"))
    ahead = AheadFile(path, resume=True)
    assert ahead.waiting == {20: 10}
    ahead.close()
    fresh = AheadFile(path, resume=False)
    assert fresh.waiting == {}
    fresh.close()


def test_a_link_is_refused(tmp_path: Path) -> None:
    """Its name can be foreseen, so another's link there is not followed."""
    (tmp_path / "other").write_text("")
    ahead_path(tmp_path / "p.csv").symlink_to(tmp_path / "other")
    with pytest.raises(OutputFileError):
        AheadFile(tmp_path / "p.csv", resume=True)

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.image_decoding import decode_image, open_regular
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.preprocessing import select_preprocessing
from imbalance_perturb.inference.decoding import decoder_pool, workers
from imbalance_perturb.inference.decoding.decoder_pool import DecoderPool
from imbalance_perturb.inference.decoding.workers import DecodedBatch, Decoders, in_slices, iter_decoded

PREPROCESSING = select_preprocessing(PreprocessSettings(preset="none"))


@pytest.fixture(params=["pipes", "shared memory"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images without a size of their own come through pipes, those of one size through shared memory."""
    if request.param == "shared memory":
        sized = select_preprocessing(PreprocessSettings(preset="none", resize=(4, 4)))
        assert sized.size == (4, 4)
        monkeypatch.setitem(globals(), "PREPROCESSING", sized)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """Fifty images that hold their own number, and a broken one."""
    for index in range(50):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / f"{index:02d}.png")
    (tmp_path / "17x.png").write_text("broken")
    return find_images(tmp_path)


def decode(images: ImageList, size: int, workers: int, *, takes_turns: bool = False) -> Iterator[DecodedBatch]:
    return iter_decoded(images.root, in_slices(images.names, size), PREPROCESSING, workers, takes_turns=takes_turns)


def levels(batches: list[DecodedBatch]) -> dict[str, int | str | None]:
    """For each image the number found in it, or its error."""
    found: dict[str, int | str | None] = {}
    for batch in batches:
        names = batch.names
        found |= dict(zip(names, batch.errors, strict=True))
        for positions, pixels in batch.groups:
            found |= {names[p]: int(one.unique().item()) for p, one in zip(positions, pixels, strict=True)}
    return found


def expected(images: ImageList) -> dict[str, int | str | None]:
    broken = "not an image in a known format"
    return {name: int(name[:2]) if name != "17x.png" else broken for name in images.names}


@pytest.mark.parametrize("takes_turns", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_images_come_in_order_each_with_its_own_pixels(
    images: ImageList, workers: int, size: int, takes_turns: bool
) -> None:
    """Every name comes once, in order, with its own pixels or its own error, in slices of the size asked for."""
    batches = list(decode(images, size, workers, takes_turns=takes_turns))
    assert [name for batch in batches for name in batch.names] == list(images.names)
    assert {len(batch.names) for batch in batches[:-1]} <= {size}
    assert levels(batches) == expected(images)


@pytest.mark.usefixtures("way")
def test_a_large_slice_is_shared_out(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of hundreds is no task of one worker: small ones go to all, and no more wait than two slices take."""
    sizes: list[int] = []
    waiting: list[int] = []
    submit = DecoderPool._submit

    def note(pool: DecoderPool, work: object, names: list[str]) -> object:
        sizes.append(len(names))
        waiting.append(len(pool._under_way))
        return submit(pool, work, names)  # type: ignore[arg-type]

    monkeypatch.setattr(DecoderPool, "_submit", note)
    monkeypatch.setattr(decoder_pool, "_TASK", 4)
    slices = [list(images.names[:17]), list(images.names[17:40]), list(images.names[40:])]
    batches = list(iter_decoded(images.root, iter(slices), PREPROCESSING, 2))
    assert [batch.names for batch in batches] == slices
    assert levels(batches) == expected(images)
    assert sizes == [4, 4, 4, 4, 1, 4, 4, 4, 4, 4, 3, 4, 4, 3]
    assert max(waiting) <= 2 * 6


def dying(monkeypatch: pytest.MonkeyPatch, name: str, end: Callable[[], object]) -> None:
    """Let the decoding of one image end its process."""

    def decode(path: Path, *arguments: object, **options: object) -> object:
        if path.name == name:
            end()
        return decode_image(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "decode_image", decode)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("takes_turns", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_kills_its_worker_fails_alone(
    images: ImageList, workers: int, takes_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image on which workers die again and again has the reason in its error; all others are decoded."""
    dying(monkeypatch, "23.png", lambda: os.kill(os.getpid(), signal.SIGKILL))
    found = levels(list(decode(images, 8, workers, takes_turns=takes_turns)))
    assert "killed by the system" in str(found.pop("23.png"))
    others = expected(images)
    del others["23.png"]
    assert found == others


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("takes_turns", [False, True])
def test_a_worker_killed_by_chance_costs_nothing(
    images: ImageList, takes_turns: bool, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed once, for no fault of its image, is replaced and the image decoded."""
    mark = tmp_path_factory.mktemp("mark") / "killed"

    def once() -> None:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    dying(monkeypatch, "23.png", once)
    assert levels(list(decode(images, 8, 2, takes_turns=takes_turns))) == expected(images)
    assert mark.exists()


def test_files_are_read_before_their_turn_comes(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model would compute, workers read the files of the next slice and decode none of them."""
    context = multiprocessing.get_context("fork")
    read, decoded = context.SimpleQueue(), context.SimpleQueue()

    def opened(path: Path) -> BinaryIO:
        read.put(path.name)
        return open_regular(path)

    def taken(path: Path, *arguments: object, **options: object) -> object:
        decoded.put(path.name)
        return decode_image(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "open_regular", opened)
    monkeypatch.setattr(workers, "decode_image", taken)
    batches = decode(images, 8, 2, takes_turns=True)
    first, second = next(batches), images.names[8:16]
    assert sorted(read.get() for _ in second) == sorted(second)
    assert sorted(decoded.get() for _ in first.names) == first.names
    assert decoded.empty()
    assert levels([first, *batches]) == expected(images)


def test_a_file_that_cannot_be_read_ahead_has_its_own_error_alone(images: ImageList, tmp_path: Path) -> None:
    """A file that is gone, or is none, does not disturb what is read before its turn."""
    gone, pipe = images.names[20], images.names[30]
    (tmp_path / gone).unlink()
    (tmp_path / pipe).unlink()
    os.mkfifo(tmp_path / pipe)
    found = levels(list(decode(images, 8, 2, takes_turns=True)))
    assert found.pop(gone) == "no such file or directory"
    assert found.pop(pipe) == "is a named pipe, not a file"
    assert found == {name: level for name, level in expected(images).items() if name not in (gone, pipe)}


def test_workers_end_when_nobody_asks_for_more(images: ImageList) -> None:
    """Leaving early ends the worker processes."""
    batches = decode(images, 4, 2)
    next(batches)
    pool = batches.gi_frame.f_locals["decoders"]._pool  # type: ignore[attr-defined]
    processes = list(pool._pool._processes.values())
    assert all(process.is_alive() for process in processes)
    batches.close()  # type: ignore[attr-defined]
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("workers", [0, 2])
def test_decoders_stay_for_another_list(images: ImageList, workers: int) -> None:
    """The same processes decode one list after the other, each whole and in order, and end when they are closed."""
    decoders = Decoders(images.root, PREPROCESSING, workers)
    halves = [images.names[:20], images.names[20:]]
    processes = []
    for names in halves:
        assert [one for batch in decoders.iter_decoded(in_slices(names, 7)) for one in batch.names] == list(names)
        if decoders._pool is not None:
            processes.append(sorted(decoders._pool._pool._processes))
    assert processes == processes[:1] * 2 if workers else not processes
    found = levels([batch for names in halves for batch in decoders.iter_decoded(in_slices(names, 9))])
    assert found == expected(images)
    decoders.close()


def test_sixteen_bits_come_as_float(tmp_path: Path) -> None:
    """Images of different types in one slice are in groups of their own, with values unchanged."""
    Image.fromarray(np.full((3, 3), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((3, 3), 40, np.uint8)).save(tmp_path / "flat.png")
    (batch,) = decode(find_images(tmp_path), 8, 1)
    assert {pixels.dtype for _, pixels in batch.groups} == {torch.uint8, torch.float32}


def stall(seconds: float = 600) -> Callable[[], object]:
    return lambda: time.sleep(seconds)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("takes_turns", [False, True])
@pytest.mark.parametrize("stalled", [("23.png",), ("00.png", "01.png", "23.png", "49.png")])
def test_an_image_that_never_ends_fails_alone(
    images: ImageList, stalled: tuple[str, ...], takes_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker is killed and replaced; the other images of its batch, and all other batches, are decoded."""

    def decode_stalling(path: Path, *arguments: object, **options: object) -> object:
        if path.name in stalled:
            time.sleep(600)
        return decode_image(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "decode_image", decode_stalling)
    slices = in_slices(images.names, 8)
    start = time.monotonic()
    found = levels(list(iter_decoded(images.root, slices, PREPROCESSING, 2, takes_turns=takes_turns, image_timeout=1)))
    assert time.monotonic() - start < 60
    for name in stalled:
        assert found[name] == "not read within 1 s (--image-timeout SECONDS gives it more)"
    assert {n: v for n, v in found.items() if n not in stalled} == {
        n: v for n, v in expected(images).items() if n not in stalled
    }


def test_a_file_that_stalls_while_it_is_read_ahead_fails_alone(
    images: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file that hangs before its turn comes is given up, and is not waited for again."""

    def opened(path: Path) -> BinaryIO:
        if path.name == "30.png":
            time.sleep(600)
        return open_regular(path)

    monkeypatch.setattr(workers, "open_regular", opened)
    batches = iter_decoded(images.root, in_slices(images.names, 8), PREPROCESSING, 1, takes_turns=True, image_timeout=1)
    found = levels(list(batches))
    assert str(found.pop("30.png")).startswith("not read within 1 s")
    assert found == {name: level for name, level in expected(images).items() if name != "30.png"}


def test_an_image_given_up_is_not_waited_for_again(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration's images come twice: the second time the reason is at hand."""
    dying(monkeypatch, "05.png", stall())
    twice = iter([["05.png", "06.png"], ["05.png"], ["05.png", "07.png"]])
    start = time.monotonic()
    batches = list(iter_decoded(images.root, twice, PREPROCESSING, 1, image_timeout=2))
    assert time.monotonic() - start < 20
    assert [[error is None for error in batch.errors] for batch in batches] == [[False, True], [False], [False, True]]


def test_time_in_which_nobody_waits_does_not_count(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that takes long while the model computes, or the run is stopped, is not late."""
    dying(monkeypatch, "08.png", stall(3))
    batches = iter_decoded(images.root, in_slices(images.names, 8), PREPROCESSING, 1, image_timeout=2)
    first = next(batches)
    time.sleep(3)
    assert levels([first, *batches]) == expected(images)


def test_leaving_early_does_not_wait_for_a_stalled_image(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that hang when the run ends are killed after a moment, whatever the limit is."""
    dying(monkeypatch, "08.png", stall())
    batches = iter_decoded(images.root, in_slices(images.names, 4), PREPROCESSING, 2, image_timeout=600)
    next(batches)
    time.sleep(1)
    processes = list(batches.gi_frame.f_locals["decoders"]._pool._pool._processes.values())
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 20
    assert not any(process.is_alive() for process in processes)

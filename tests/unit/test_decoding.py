from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_perturb import decoding
from imbalance_perturb.decoding import DecodedBatch, in_slices, iter_decoded
from imbalance_perturb.images import ImageList, decode_image, find_images, open_regular
from imbalance_perturb.preprocessing import select_preprocessing
from imbalance_perturb.settings import PreprocessSettings

PREPROCESSING = select_preprocessing(PreprocessSettings(preset="none"))


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
    for names, errors, groups, _ in batches:
        found |= dict(zip(names, errors, strict=True))
        for positions, pixels in groups:
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


def dying(monkeypatch: pytest.MonkeyPatch, name: str, end: Callable[[], object]) -> None:
    """Let the decoding of one image end its process."""

    def decode(path: Path, *arguments: object, **options: object) -> object:
        if path.name == name:
            end()
        return decode_image(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode_image", decode)


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

    monkeypatch.setattr(decoding, "open_regular", opened)
    monkeypatch.setattr(decoding, "decode_image", taken)
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
    workshop = batches.gi_frame.f_locals["workshop"]  # type: ignore[attr-defined]
    processes = list(workshop._pool._processes.values())
    assert all(process.is_alive() for process in processes)
    batches.close()  # type: ignore[attr-defined]
    assert not any(process.is_alive() for process in processes)


def test_sixteen_bits_come_as_float(tmp_path: Path) -> None:
    """Images of different types in one slice are in groups of their own, with values unchanged."""
    Image.fromarray(np.full((3, 3), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((3, 3), 40, np.uint8)).save(tmp_path / "flat.png")
    (batch,) = decode(find_images(tmp_path), 8, 1)
    assert {pixels.dtype for _, pixels in batch.groups} == {torch.uint8, torch.float32}

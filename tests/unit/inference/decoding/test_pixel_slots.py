"""Pixels in shared memory: those of the image, whatever is reused, runs out, or dies."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.preprocessing import select_preprocessing
from imbalance_perturb.inference.decoding import decoder_pool
from imbalance_perturb.inference.decoding.decoder_pool import DecoderPool
from imbalance_perturb.inference.decoding.pixel_slots import PixelSlots
from imbalance_perturb.inference.decoding.workers import Decoders, in_slices

SIDE = 6
PREPROCESSING = select_preprocessing(PreprocessSettings(preset="none", resize=(SIDE, SIDE)))


def test_a_slot_takes_what_fits_and_has_one_owner() -> None:
    """Other types and shapes go another way; slots are handed out once; large images make smaller tasks."""
    slots = PixelSlots((3, 2, 2), 4, 2)
    assert slots.images == 4
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    first, second = slots.take(), slots.take()
    assert first is not None
    assert second is not None
    assert slots.take() is None
    assert slots.put(first, 3, pixels)
    assert slots.put(second, 3, pixels + 1)
    np.testing.assert_array_equal(slots.get(first, 3), pixels)
    assert not slots.put(first, 0, pixels.astype(np.float32))
    assert not slots.put(first, 0, pixels[:1])
    slots.give_back(first)
    slots.give_back(None)
    with pytest.raises(AssertionError, match="one owner"):
        slots.give_back(first)
    assert slots.take() == first
    assert PixelSlots((3, 1024, 1024), 32, 1).images == 2
    assert PixelSlots((3, 4096, 4096), 32, 1).images == 1


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """Four hundred images, each of its own noise, and some that are broken or of 16 bits."""
    for index in range(400):
        rng = np.random.default_rng(index)
        path = tmp_path / f"{index:03}.png"
        if index % 37 == 5:
            path.write_text("broken")
        elif index % 41 == 7:
            Image.fromarray(rng.integers(0, 65536, (SIDE, SIDE), np.uint16)).save(path)
        else:
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return find_images(tmp_path)


def check(decoders: Decoders, images: ImageList, size: int, kill_every: int = 0) -> None:
    """Every image has its own pixels, though a worker is killed after some of the slices."""
    names = []
    for number, batch in enumerate(decoders.iter_decoded(in_slices(images.names, size))):
        names += batch.names
        for positions, pixels in batch.groups:
            for position, one in zip(positions, pixels, strict=True):
                index = int(batch.names[position][:3])
                rng = np.random.default_rng(index)
                if index % 41 == 7:
                    grey = rng.integers(0, 65536, (SIDE, SIDE), np.uint16) / 257
                    np.testing.assert_allclose(one.numpy(), np.stack([grey] * 3), atol=1e-3)
                else:
                    expected = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8).transpose(2, 0, 1)
                    np.testing.assert_array_equal(one.numpy(), expected)
        assert [name for name, error in zip(batch.names, batch.errors, strict=True) if error] == [
            name for name in batch.names if int(name[:3]) % 37 == 5
        ]
        pool = decoders._pool
        if kill_every and number % kill_every == kill_every - 1 and pool is not None:
            # One that ended when another was killed may still be among them.
            with suppress(ProcessLookupError):
                os.kill(next(iter(pool._pool._processes)), signal.SIGKILL)
    assert names == list(images.names)


@pytest.mark.parametrize(("takes_turns", "slots"), list(itertools.product([False, True], [1, 12])))
def test_slots_that_are_used_again_or_run_out_mix_nothing_up(
    images: ImageList, takes_turns: bool, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while workers are killed, and for a second list in the same processes; at the end every slot is free."""
    monkeypatch.setattr(decoder_pool, "_SLOTS", slots)
    monkeypatch.setattr(decoder_pool, "_TASK", 8)
    decoders = Decoders(images.root, PREPROCESSING, 2, takes_turns=takes_turns)
    try:
        check(decoders, images, 30, kill_every=3)
        check(decoders, images, 30)
        pool = decoders._pool
        assert pool is not None
        assert pool._slots is not None
        assert sorted(pool._slots._free) == list(range(3 * slots))
    finally:
        decoders.close()


def test_without_such_memory_pixels_go_through_pipes(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that refuses it costs speed alone."""

    def refuse(*_: object) -> PixelSlots:
        raise OSError("no memory")

    monkeypatch.setattr(decoder_pool, "PixelSlots", refuse)
    decoders = Decoders(images.root, PREPROCESSING, 1)
    try:
        assert isinstance(decoders._pool, DecoderPool)
        assert decoders._pool._slots is None
        check(decoders, images, 50)
    finally:
        decoders.close()

"""Which of the arguments of a command are MODEL and COUNTS, and which are images."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from imbalance_perturb.errors import SettingsError


def tell_apart(
    command: str, given: Sequence[str | None], *, has_recipe: bool
) -> tuple[str | None, str | None, list[str]]:
    """Tell MODEL, COUNTS and IMAGES apart, of which a recipe can name the first two: COUNTS is JSON, no image is.

    Raises:
        SettingsError: if no images are given; ``command`` is what it says to type.
    """
    known = [one for one in given if one is not None]
    if len(known) == 1 or (has_recipe and known and not _is_json(known[1])):
        return None, None, known
    if len(known) < 3:
        raise SettingsError(f"no images are given: imbperturb {command} MODEL COUNTS IMAGES (or IMAGES with a recipe)")
    return known[0], known[1], known[2:]


def _is_json(path: str) -> bool:
    if path.lower().endswith(".json"):
        return True
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as stream:
            return stream.read(64).removeprefix(BOM_UTF8).lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False

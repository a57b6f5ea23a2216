"""Files that a run is made with, on their way to the workers: read here once, written and checked there.

Only the images have to be where they are named on every machine; model, class counts and target distribution need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from imbalance_perturb.config.model_names import is_hub_name, place_of, with_place
from imbalance_perturb.config.settings import Settings
from imbalance_perturb.errors import ClusterError, ImbperturbError

T = TypeVar("T")

#: Beside a model file, what may say how the network is built and its images are prepared.
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")

#: Of a folder of timm or transformers, the files that may be read.
_OF_FOLDER = (".json", ".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class TravellingFile:
    """One file: its path here, where it comes to in the worker's folder, the hash of its bytes and what has them."""

    path: str
    place: str
    sha256: str
    content: Any


@dataclass(frozen=True)
class Luggage:
    """Settings, and the files that they name.

    ``named`` has the path of each setting that names one, ``places`` where that comes to in the worker's folder.
    """

    settings: Settings
    files: tuple[TravellingFile, ...]
    named: Mapping[str, str]
    places: Mapping[str, str]


def pack(settings: Settings, put: Callable[[Any], Any]) -> Luggage:
    """Read the files that settings name, and hand the bytes of each, an array, to ``put``.

    What is not there does not travel: a worker says so as a run here would.
    """
    files: list[TravellingFile] = []
    named, places = _named(settings), {}
    for setting, path in named.items():
        place = Path(path)
        if place.is_dir():
            found = [one for one in sorted(place.iterdir()) if one.suffix in _OF_FOLDER and one.is_file()]
            places[setting] = setting
        elif place.is_file():
            beside = [place.with_name(name) for name in _CONFIGS] if setting == "model" else []
            found = [place, *(one for one in beside if one.is_file())]
            places[setting] = f"{setting}/{place.name}"
        else:
            continue
        for one in found:
            content = np.fromfile(one, np.uint8)
            digest = sha256(content.data).hexdigest()
            files.append(TravellingFile(str(one), f"{setting}/{one.name}", digest, put(content)))
    return Luggage(settings, tuple(files), named, places)


def _named(settings: Settings) -> dict[str, str]:
    """The path of each setting that names a file."""
    model, prior = settings.model.model, settings.debias.prior
    found = {}
    if model is not None and not is_hub_name(model):
        found["model"] = place_of(model)
    if settings.model.counts is not None:
        found["counts"] = settings.model.counts
    if settings.debias.target.endswith(".json"):
        found["target"] = settings.debias.target
    if isinstance(prior, str) and prior.endswith(".json"):
        found["prior"] = prior
    return found


@contextmanager
def unpacked(luggage: Luggage, get: Callable[[Any], Any]) -> Iterator[tuple[Settings, Mapping[str, str]]]:
    """Inside: the files are in a temporary folder; yields settings that name them there, and the names back.

    Args:
        luggage: what :func:`pack` gave.
        get: gives the bytes of a file, an array, for what ``put`` returned.

    Raises:
        ClusterError: if the bytes that came are not those that were sent.
        ImbperturbError: whatever is raised inside, naming files as they are named here.
    """
    with TemporaryDirectory(prefix="imbperturb-") as folder:
        back = {str(Path(folder, place)): luggage.named[setting] for setting, place in luggage.places.items()}
        for file in luggage.files:
            there = Path(folder, file.place)
            there.parent.mkdir(exist_ok=True)
            content = get(file.content)
            if sha256(content.data).hexdigest() != file.sha256:
                raise ClusterError(f"{file.path}: came damaged to a worker; go on with --resume")
            content.tofile(there)
            back.setdefault(str(there), file.path)
        try:
            yield _moved(luggage, folder), back
        except ImbperturbError as error:
            raise type(error)(renamed(str(error), back)) from None


def _moved(luggage: Luggage, folder: str) -> Settings:
    """Settings with the places that files came to, of those that travelled."""
    model, debias, places = luggage.settings.model, luggage.settings.debias, luggage.places
    if "model" in places:
        assert model.model is not None
        model = replace(model, model=with_place(model.model, lambda _: str(Path(folder, places["model"]))))
    if "counts" in places:
        model = replace(model, counts=str(Path(folder, places["counts"])))
    if "target" in places:
        debias = replace(debias, target=str(Path(folder, places["target"])))
    if "prior" in places:
        debias = replace(debias, prior=str(Path(folder, places["prior"])))
    return replace(luggage.settings, model=model, debias=debias)


def renamed(value: T, back: Mapping[str, str]) -> T:
    """A plain value with every name of a file as it is where the run was started; dataclasses are gone through."""
    found: T = _renamed(value, back)
    return found


def _renamed(value: Any, back: Mapping[str, str]) -> Any:
    found = value
    if isinstance(value, str):
        for there, here in sorted(back.items(), key=lambda pair: -len(pair[0])):
            found = found.replace(there, here)
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(
            value, **{one.name: _renamed(getattr(value, one.name), back) for one in fields(value) if one.init}
        )
    elif isinstance(value, Mapping):
        found = {key: _renamed(one, back) for key, one in value.items()}
    elif isinstance(value, tuple | list):
        found = type(value)(_renamed(one, back) for one in value)
    return found

"""Where the files of a run are now, told by their hashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from imbalance_perturb.config.model_names import is_hub_name, place_of, with_place
from imbalance_perturb.config.settings import Settings
from imbalance_perturb.data.remote_files import RemotePath, find_place
from imbalance_perturb.errors import ModelFileError, PredictionsError
from imbalance_perturb.files.writing import sha256
from imbalance_perturb.models import hash_model
from imbalance_perturb.predictions.run_file import RunFile, check_unchanged, find_beside


def find_predictions(path: Path, run: RunFile, given: Path | None) -> Path:
    """The predictions file of a run: the given one, or that beside the run file.

    Raises:
        PredictionsError: if it is not there, or another than the run wrote.
    """
    predictions = path.parent / run.predictions if given is None else given
    if not predictions.is_file():
        raise PredictionsError(f"{predictions}: no such file; keep the predictions beside {path}")
    check_unchanged(predictions, run, path, "predict it again")
    return predictions


def settings_of(path: Path, run: RunFile) -> Settings:
    """The settings of a run, with the target's file where it is now."""
    settings, target = run.settings, run.settings.debias.target
    if target.endswith(".json"):
        settings = replace(settings, debias=replace(settings.debias, target=str(find_beside(target, path))))
    return settings


def find_model(path: Path, run: RunFile, given: str | Path | None) -> str:
    """The model of a run: where the user says, where the run file says, or beside that; of the hub the same commit."""
    recorded = str(run.settings.model.model)
    # The run file has the commit that a branch or tag stood for.
    places = [run.model.path] if is_hub_name(recorded) else _places(path, recorded)
    places = places if given is None else [str(given)]
    found = [place for place in places if is_hub_name(place) or Path(place_of(place)).exists()]
    return _told_by_hash(path, places, found, run.model.sha256, "model", _hash_model)


def find_counts(path: Path, run: RunFile, given: str | Path | None) -> str:
    """The class counts of a run, likewise."""
    places = _places(path, str(run.settings.model.counts)) if given is None else [str(given)]
    found = [place for place in places if Path(place).is_file()]
    return _told_by_hash(path, places, found, run.counts.sha256, "counts", lambda place: sha256(Path(place)))


def _hash_model(place: str) -> str:
    try:
        return hash_model(place)
    except ModelFileError:
        if is_hub_name(place) or Path(place_of(place)).is_dir():
            raise
        return sha256(Path(place_of(place)))  # a file that is no model any more


def _places(path: Path, recorded: str) -> list[str]:
    return [recorded, with_place(recorded, lambda place: str(path.parent / place))]


def _told_by_hash(
    path: Path, places: list[str], found: list[str], digest: str, what: str, hash_of: Callable[[str], str]
) -> str:
    if not found:
        raise PredictionsError(f"{places[0]}: the {what} file of the run is not there; say where with --{what} FILE")
    for place in found:
        if hash_of(place) == digest:
            return place
    raise PredictionsError(
        f"{found[0]}: is not the {what} file that {path} was made with (its SHA-256 differs); say where that is with"
        f" --{what} FILE"
    )


def find_images(path: Path, run: RunFile, given: str | Path | None, names: Sequence[str]) -> Path | RemotePath:
    """The folder that the images' names are relative to; of two that may be meant, the one with the first of them."""
    source = find_place(run.images.source)
    if given is not None:
        places: list[Path | RemotePath] = [find_place(given)]
    else:
        places = [source] if isinstance(source, RemotePath) else [source, path.parent / source]
    roots = [place if place.is_dir() else place.parent for place in places if place.exists()]
    if not roots:
        raise PredictionsError(f"{places[0]}: the images of the run are not there; say where with --images PATH")
    return next((root for root in roots if any((root / name).exists() for name in names[:1])), roots[0])

"""What made a predictions file, as ``predict`` writes it beside it: read, compared, found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.settings import TABLES, to_lists
from imbalance_perturb.errors import CountsError, PredictionsError, first_few
from imbalance_perturb.files.strict_json import read_json
from imbalance_perturb.files.writing import sha256
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.predictions.rows import RowLayout

#: Version of the layout of a run file.
RUN_SCHEMA = 3

_LIST, _FILES = "the list of images", "the images (some file has another size)"

#: Entries that must be the same, too, for a run to go on.
_SAME_PART = {"execution.device_name": "the device", "execution.batch_size": "the batch size", "images.shard": "shard"}


@dataclass(frozen=True)
class RunFile:
    """What a run file says: the classes with their training counts, and all the rest as JSON has it."""

    path: Path
    counts: ClassCounts
    data: Mapping[str, Any]


def load_run_file(path: str | Path) -> RunFile:
    """Load the run file that ``predict`` writes beside its predictions.

    Raises:
        PredictionsError: if it cannot be read or names no classes with counts.
    """
    path = Path(path)
    try:
        data = read_json(path, "the run that made the predictions", PredictionsError)
    except PredictionsError as error:
        raise PredictionsError(f"{path}: {error}") from None
    try:
        classes = [(entry["name"], entry["count"]) for entry in data["classes"]]
        counts = ClassCounts([name for name, _ in classes], [count for _, count in classes])
    except (KeyError, TypeError, IndexError):
        raise PredictionsError(
            f"{path}: has no list 'classes' with a name and a count each; expected the file that predict writes"
        ) from None
    except CountsError as error:
        raise PredictionsError(f"{path}: {error}") from None
    return RunFile(path, counts, data)


def load_run_of(predictions: Path, remedy: str = "predict it again") -> RunFile:
    """Load the run file beside predictions, and prove that they are the ones it tells of.

    Args:
        predictions: the predictions file.
        remedy: what to do where they are not, for the message.

    Raises:
        PredictionsError: if the run file cannot be used, or the predictions are not those of the run: changed since,
            cut off, or of another run.
    """
    run = load_run_file(run_path(predictions))
    check_unchanged(predictions, run, remedy)
    return run


def check_unchanged(predictions: Path, run: RunFile, remedy: str) -> None:
    """Refuse predictions that are not those of a run, by their hash.

    Raises:
        PredictionsError: naming the two files, and ``remedy``.
    """
    if run.data.get("predictions_sha256") != sha256(predictions):
        raise PredictionsError(
            f"{predictions}: is not the file that {run.path.name} tells of (its SHA-256 differs): changed, cut off, or"
            f" of another run; {remedy}"
        )


def run_layout(run: Mapping[str, Any], path: Path) -> RowLayout:
    """The columns of the predictions file of a run; ``path`` is that of its run file, for the message.

    Raises:
        PredictionsError: if the run file does not tell.
    """
    try:
        output, settings = run["output"], run["settings"]["run"]
        names = tuple(entry["name"] for entry in run["classes"]) if output["probabilities"] else ()
        return RowLayout(names, bool(settings["close_calls_only"]), bool(output.get("bom", False)))
    except (KeyError, TypeError, AttributeError):
        raise PredictionsError(
            f"{path}: does not tell which columns the rows have; expected what predict writes"
        ) from None


def check_same_counts(run: RunFile, given: ClassCounts, given_path: str | Path) -> None:
    """Refuse counts that are not those of the run: SCR, target and class order would be of another problem.

    Raises:
        PredictionsError: naming the first difference.
    """
    made = run.counts
    if not given.named and len(given) == len(made):
        given = ClassCounts(made.names, given.counts)  # a bare list: the run has the names
    if made == given:
        return
    start = "the predictions were made with other counts than given:"
    end = "give the counts of the run, or leave --counts out"
    if set(made.names) != set(given.names):
        gone = [name for name in made.names if name not in given.names]
        new = [name for name in given.names if name not in made.names]
        raise PredictionsError(
            f"{start} only {run.path} has the classes {first_few(gone, 10) or 'none'}, only {given_path} has"
            f" {first_few(new, 10) or 'none'}; {end}"
        )
    for position, (name, count) in enumerate(made.to_dict().items()):
        if given.to_dict()[name] != count:
            raise PredictionsError(
                f"{start} class {name!r} has {count} images in {run.path}, {given.to_dict()[name]} in"
                f" {given_path}; {end}"
            )
        if given.names[position] != name:
            raise PredictionsError(
                f"{start} class index {position} is {name!r} in {run.path}, {given.names[position]!r} in"
                f" {given_path}; {end}"
            )


def run_path(path: Path) -> Path:
    """The run file beside a predictions file: ``p.csv`` -> ``p.run.json``, ``p.parquet`` -> ``p.parquet.run.json``.

    Only CSV goes without its suffix, so that no run file is of two files.
    """
    return path.with_suffix(".run.json") if path.suffix == ".csv" else path.with_name(path.name + ".run.json")


def _compared(table: str) -> dict[str, str]:
    known = declarations(TABLES[table])
    return {f"settings.{table}.{name}": name for name, entry in known.items() if entry.compared}


#: Entries that must be the same for rows to be of one run, and how people call them. A table stands for its entries.
#: Of the settings of preprocessing what they come to is compared.
_SAME_RUN = {
    "versions.imbalance_perturb": "imbalance-perturb",
    "versions.torch": "torch",
    "versions.torchvision": "torchvision",
    "versions.pillow": "Pillow",
    "versions.numpy": "NumPy",
    "versions.pydicom": "pydicom",
    "versions.pillow_heif": "pillow-heif",
    "model.sha256": "the model file",
    "model.arch": "arch",
    "model.outputs": "outputs",
    **_compared("model"),
    "classes": "the class counts or p*",
    **_compared("debias"),
    **_compared("run"),
    "preprocessing": "",
    "execution.precision": "the precision",
    "execution.low_dtype": "the low precision",
    "output": "",
    "images.list_sha256": _LIST,
    "images.files_sha256": _FILES,
}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], *, part: bool = True) -> list[str]:
    """What is not the same in two accounts and would show in the rows, in words; empty where nothing is.

    Args:
        then, now: what :func:`describe_making` gave, perhaps read back from JSON.
        part: whether they are to be of the same part of a run; else of parts of one run, on whatever machine.
    """
    words = []
    then_is, now_is = ("then", "now") if part else ("there", "here")
    for name, one, other in _entries(then, now, _SAME_RUN | (_SAME_PART if part else {})):
        # Of another list the files are others anyway.
        if one != other and not (name == _FILES and _LIST in words):
            told = all(value is None or isinstance(value, str | int | float) for value in (one, other))
            told = told and not any(isinstance(value, str) and len(value) > 40 for value in (one, other))
            words.append(f"{name} ({_told(one)} {then_is}, {_told(other)} {now_is})" if told else name)
    return words


def _entries(
    then: Mapping[str, Any], now: Mapping[str, Any], wanted: Mapping[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    for entry, name in wanted.items():
        one, other = (look_up(account, entry) for account in (then, now))
        if name:
            yield name, one, other
            continue
        one, other = (value if isinstance(value, Mapping) else {} for value in (one, other))
        for key in sorted({*one, *other}):
            yield key, to_lists(one.get(key)), to_lists(other.get(key))


def look_up(account: Any, entry: str) -> Any:
    """An entry of an account, such as ``execution.device_name``; ``None`` where it is not there."""
    for key in entry.split("."):
        account = account.get(key) if isinstance(account, Mapping) else None
    return account


def _told(value: Any) -> str:
    return "none" if value is None else str(value)


def find_beside(path: str, run_file: Path) -> Path:
    """A path that a run file names: as it stands, or, where that is not there, seen from the run file's folder."""
    beside = run_file.parent / path
    return Path(path) if Path(path).exists() or not beside.exists() else beside

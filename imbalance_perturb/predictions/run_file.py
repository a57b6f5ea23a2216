"""Reading predictions back: the rows of a predictions file, and the counts of the run that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imbalance_perturb.cells import normal_path, printable
from imbalance_perturb.errors import CountsError, PredictionsError
from imbalance_perturb.files.csv_tables import first_few
from imbalance_perturb.files.writing import run_path, sha256
from imbalance_perturb.method.counts import ClassCounts, read_json
from imbalance_perturb.predictions.reading import Record, iter_records
from imbalance_perturb.predictions.writing import RowLayout


@dataclass(frozen=True)
class Predictions:
    """The rows of a predictions file that hold a prediction, and the images of those that do not.

    ``base_preds`` and ``preds`` are class indices; ``base_probs`` and ``probs`` hold C probabilities for each
    image, or are empty where the file has none.
    """

    images: tuple[str, ...]
    base_preds: tuple[int, ...]
    preds: tuple[int, ...]
    failed: tuple[str, ...]
    base_probs: tuple[tuple[float, ...], ...] = ()
    probs: tuple[tuple[float, ...], ...] = ()


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


def load_predictions(path: str | Path, names: Sequence[str]) -> Predictions:
    """Load a predictions file (``.csv``, ``.jsonl`` or ``.parquet``).

    Args:
        path: the file.
        names: C class names in class-index order.

    Raises:
        PredictionsError: if the file cannot be read, lacks columns, is empty, has an image twice, names a class
            that is none, or has probabilities of some classes only.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(f"{path}: no such file; imbperturb predict makes it")
    reader = _Reader(path, names)
    for record in iter_records(path):
        reader.add(record)
    return reader.finish()


class _Reader:
    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names
        self._index = {name: position for position, name in enumerate(names)}
        self._columns = {kind: [f"{kind}{name}" for name in names] for kind in ("base_p_", "p_")}
        self._with_probs: bool | None = None
        self._rows: list[tuple[str, int, int]] = []
        self._probs: dict[str, list[tuple[float, ...]]] = {"base_p_": [], "p_": []}
        self._failed: list[str] = []
        self._unknown: dict[str, int] = {}

    def add(self, record: Record) -> None:
        if record.is_empty("image"):
            raise PredictionsError(f"{self._path}, line {record.line}: the image is empty; every row is of one image")
        image = normal_path(record.text("image"))
        if record.error is not None:
            self._failed.append(image)
            return
        if record.is_empty("base_pred") or record.is_empty("pred"):
            raise PredictionsError(
                f"{self._path}, line {record.line}: {printable(image)} has neither a prediction nor an error; predict"
                " it again"
            )
        found = [record.text("base_pred"), record.text("pred")]
        for name in found:
            if name not in self._index:
                self._unknown.setdefault(name, record.line)
        if self._unknown:
            return
        self._rows.append((image, self._index[found[0]], self._index[found[1]]))
        if self._with_probs is None:
            self._with_probs = self._find_probabilities(record)
        if not self._with_probs and any(columns[0] in record for columns in self._columns.values()):
            raise PredictionsError(
                f"{self._path}, line {record.line}: has probabilities, rows before it have none; predict all alike"
            )
        if self._with_probs:
            for kind, columns in self._columns.items():
                self._probs[kind].append(tuple(map(record.probability, columns)))

    def finish(self) -> Predictions:
        if self._unknown:
            raise PredictionsError(
                f"{self._path}, line {min(self._unknown.values())}: predicts classes that are none of the counts:"
                f" {first_few(sorted(self._unknown), 10)}; the classes are {first_few(self._names, 20)}"
            )
        images = [image for image, _, _ in self._rows]
        if not images and not self._failed:
            raise PredictionsError(f"{self._path}: holds no prediction; imbperturb predict makes one row an image")
        doubles = [image for image, count in Counter([*images, *self._failed]).items() if count > 1]
        if doubles:
            raise PredictionsError(
                f"{self._path}: {len(doubles):,} images stand more than once (first: {first_few(doubles)});"
                " every image has one row"
            )
        return Predictions(
            images=tuple(images),
            base_preds=tuple(base for _, base, _ in self._rows),
            preds=tuple(pred for _, _, pred in self._rows),
            failed=tuple(self._failed),
            base_probs=tuple(self._probs["base_p_"]),
            probs=tuple(self._probs["p_"]),
        )

    def _find_probabilities(self, row: Record) -> bool:
        wanted = [column for columns in self._columns.values() for column in columns]
        missing = [column for column in wanted if column not in row]
        if missing and len(missing) < len(wanted):
            raise PredictionsError(
                f"{self._path}: has probabilities of some classes only (not there: {first_few(missing)});"
                " expected p_<class> and base_p_<class> of all classes, or none"
            )
        return not missing


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

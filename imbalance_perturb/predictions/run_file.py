"""What made a predictions file, as ``predict`` writes it beside it: read, compared, found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from imbalance_perturb.errors import CountsError, PredictionsError, first_few
from imbalance_perturb.files.strict_json import read_json
from imbalance_perturb.files.typed_json import OPTIONAL, Count, EntryError, refuse
from imbalance_perturb.files.writing import sha256
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.making import Making, MakingExecution, MakingImages, read_entry
from imbalance_perturb.predictions.run_state import PredictorState
from imbalance_perturb.predictions.shards import Shard

#: Version of the layout of a run file.
RUN_SCHEMA = 4


@dataclass(frozen=True, kw_only=True)
class RunExecution(MakingExecution):
    """How the rows were computed.

    Attributes:
        batch_ceiling: images to which batches had to be cut where memory ran out, null where it did not.
    """

    batch_ceiling: Count | None


@dataclass(frozen=True, kw_only=True)
class RunImages(MakingImages):
    """Which images were predicted, and how many of them how.

    Attributes:
        done: number of images with a prediction.
        failed: number of images with an error.
        changed: number of images whose label the correction changed.
        deep: the images of more than 8 bits whose white was assumed.
    """

    done: Count
    failed: Count
    changed: Count
    deep: DeepImages


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """One part of a merged run.

    Attributes:
        predictions: the name of its file.
        sha256: of that file, in hexadecimal.
        shard: which part it is, such as 2/8.
        images: number of its images.
        device_name: the device it was computed on.
        predictor: where its predictor stood in the end.
    """

    predictions: str
    sha256: str
    shard: Shard
    images: Count
    device_name: str
    predictor: PredictorState


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """The cluster that the rows were computed on.

    Attributes:
        name: ray.
        version: of that.
        workers: the most that were at work at a time.
        machines: that these were on.
    """

    name: str
    version: str
    workers: Count
    machines: Count


@dataclass(frozen=True, kw_only=True)
class _Head:
    """How a run file begins.

    Attributes:
        schema: version of the layout of the file.
        finished: when the run ended, ISO 8601 with the offset from UTC.
        predictions: the name of the predictions file, which stands beside this one.
        predictions_sha256: of that file, in hexadecimal.
    """

    schema: int
    finished: str
    predictions: str
    predictions_sha256: str


@dataclass(frozen=True, kw_only=True)
class RunFile(Making, _Head):
    """What a run file says: everything that made a predictions file, and what came out.

    Attributes:
        warnings: what the images as a whole give to think about.
        agreement: of labels with those of the full computation; null where nothing else was computed.
        predictor: where the predictor stood in the end; verify takes it up.
        seconds: seconds of each stage; total is wall clock.
        images_per_second: images per second of each stage that took any time.
        parts: of a merged run its parts; absent from any other.
        engine: the cluster of a run over one, on which the seconds of stages are summed over workers; else absent.
    """

    execution: RunExecution
    images: RunImages
    warnings: tuple[str, ...]
    agreement: Agreement | None
    predictor: PredictorState
    seconds: Mapping[str, float]
    images_per_second: Mapping[str, float]
    parts: tuple[PartEntry, ...] | None = field(default=None, metadata=OPTIONAL)
    engine: EngineEntry | None = field(default=None, metadata=OPTIONAL)


def parse_run(data: Any, path: Path) -> RunFile:
    """A run file from JSON.

    Args:
        data: what JSON has.
        path: of the run file, for messages.

    Raises:
        PredictionsError: naming the file and the entry that is missing or wrong, or if it is of another version.
    """
    if not isinstance(data, dict):
        raise PredictionsError(f"{path}: holds no JSON object; expected the file that predict or merge writes")
    schema = data.get("schema", RUN_SCHEMA)
    if isinstance(schema, int) and schema != RUN_SCHEMA:
        raise PredictionsError(
            f"{path}: is of another version of imbalance-perturb (schema {schema}, this one reads {RUN_SCHEMA}); use it"
            " with that one, or predict again"
        )
    try:
        run = read_entry(RunFile, data)
        for index, one in enumerate(run.classes):
            if one.index != index:
                refuse(f"classes[{index}].index", one.index, f"{index}: classes stand in class-index order")
        if "total" not in run.seconds:
            refuse("seconds.total", MISSING, "a number")
        _ = run.class_counts
    except (EntryError, CountsError) as error:
        raise PredictionsError(f"{path}: {error}") from None
    return run


def load_run_file(path: str | Path) -> RunFile:
    """Load the run file that ``predict`` or ``merge`` writes beside its predictions.

    Raises:
        PredictionsError: if it cannot be read, or as :func:`parse_run`.
    """
    path = Path(path)
    try:
        data = read_json(path, "the run that made the predictions", PredictionsError)
    except PredictionsError as error:
        raise PredictionsError(f"{path}: {error}") from None
    return parse_run(data, path)


def load_run_of(predictions: Path, remedy: str = "predict it again") -> RunFile:
    """Load the run file beside predictions, and prove that they are the ones it tells of.

    Args:
        predictions: the predictions file.
        remedy: what to do where they are not, for the message.

    Raises:
        PredictionsError: if the run file cannot be used, or the predictions are not those of the run: changed since,
            cut off, or of another run.
    """
    beside = run_path(predictions)
    run = load_run_file(beside)
    check_unchanged(predictions, run, beside, remedy)
    return run


def check_unchanged(predictions: Path, run: RunFile, path: Path, remedy: str) -> None:
    """Refuse predictions that are not those of a run, whose run file is at ``path``, by their hash.

    Raises:
        PredictionsError: naming the two files, and ``remedy``.
    """
    if run.predictions_sha256 != sha256(predictions):
        raise PredictionsError(
            f"{predictions}: is not the file that {path.name} tells of (its SHA-256 differs): changed, cut off, or"
            f" of another run; {remedy}"
        )


def check_same_counts(made: ClassCounts, path: Path, given: ClassCounts, given_path: str | Path) -> None:
    """Refuse counts that are not those of the run file at ``path``: SCR, target and classes would be another problem's.

    Raises:
        PredictionsError: naming the first difference.
    """
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
            f"{start} only {path} has the classes {first_few(gone, 10) or 'none'}, only {given_path} has"
            f" {first_few(new, 10) or 'none'}; {end}"
        )
    for position, (name, count) in enumerate(made.to_dict().items()):
        if given.to_dict()[name] != count:
            raise PredictionsError(
                f"{start} class {name!r} has {count} images in {path}, {given.to_dict()[name]} in {given_path}; {end}"
            )
        if given.names[position] != name:
            raise PredictionsError(
                f"{start} class index {position} is {name!r} in {path}, {given.names[position]!r} in"
                f" {given_path}; {end}"
            )


def run_path(path: Path) -> Path:
    """The run file beside a predictions file: ``p.csv`` -> ``p.run.json``, ``p.parquet`` -> ``p.parquet.run.json``.

    Only CSV goes without its suffix, so that no run file is of two files.
    """
    return path.with_suffix(".run.json") if path.suffix == ".csv" else path.with_name(path.name + ".run.json")


def find_beside(path: str, run_file: Path) -> Path:
    """A path that a run file names: as it stands, or, where that is not there, seen from the run file's folder."""
    beside = run_file.parent / path
    return Path(path) if Path(path).exists() or not beside.exists() else beside

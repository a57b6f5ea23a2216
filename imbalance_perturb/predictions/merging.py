"""Parts of one run into the file that a run without parts would have written, once it is proved that they are that."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from imbalance_perturb.errors import MergeError, OutputFileError, PredictionsError, SettingsError, first_few, printable
from imbalance_perturb.files.writing import check_output, check_writable, sha256, write_json
from imbalance_perturb.predictions.agreement import Agreement
from imbalance_perturb.predictions.deep_images import DeepImages
from imbalance_perturb.predictions.frames import pandas_notes
from imbalance_perturb.predictions.progress_file import progress_path, read_unfinished, rows_path
from imbalance_perturb.predictions.reading import iter_images, iter_rows
from imbalance_perturb.predictions.rows import RowLayout
from imbalance_perturb.predictions.run_differences import differences
from imbalance_perturb.predictions.run_file import PartEntry, RunFile, load_run_of, run_path
from imbalance_perturb.predictions.run_state import Tally
from imbalance_perturb.predictions.shards import Shard, list_sha256
from imbalance_perturb.predictions.writing import check_bom, open_rows


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How the merged file is written: ``bom`` begins a CSV with a byte-order mark, also where the parts do not."""

    bom: bool = False


@dataclass(frozen=True)
class MergeSummary:
    """The result of a merge: numbers of parts and images, the files written, and what is to be known about them."""

    parts: int
    total: int
    done: int
    failed: int
    changed: int
    predictions: str
    run: str
    agreement: Agreement | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """One part: its file, which part it is, and the run that made it."""

    path: Path
    shard: Shard
    run: RunFile

    @property
    def total(self) -> int:
        return self.run.images.total

    def iter_images(self) -> Iterator[str]:
        """Its images, each proved to be of this part and after the one before it."""
        count, before = 0, None
        for name in iter_images(self.path):
            if not self.shard.holds(name):
                raise MergeError(f"{self.path}: {printable(name)} is not in part {self.shard}; predict this part again")
            if before is not None and name <= before:
                raise MergeError(
                    f"{self.path}: {printable(name)} comes after {printable(before)}; every image stands once, in"
                    " sorted order"
                )
            count, before = count + 1, name
            yield name
        if count != self.total:
            raise MergeError(
                f"{self.path}: has {count:,} rows, but {run_path(self.path).name} tells of {self.total:,} images;"
                " predict this part again"
            )


def merge_predictions(
    parts: Sequence[str | Path], out: str | Path, options: MergeOptions | None = None
) -> MergeSummary:
    """Merge the files that ``predict --shard I/N`` wrote, all N of them, in any order.

    Everything is proved before anything is written: that each is whole and unchanged, that one run's settings made
    all of them, and that together they hold exactly the images that the run saw. Memory does not grow with the
    number of rows.

    Args:
        parts: the files, each with its run file beside it.
        out: the file to write, of the parts' format; its run file is written beside it.
        options: how it is written.

    Raises:
        SettingsError: if no part is given, or a byte-order mark is asked for where no CSV is written.
        PredictionsError: if a part or its run file cannot be used or was changed.
        MergeError: if they are not the parts of one run, or not all.
        OutputFileError: if ``out`` cannot be written.
    """
    out, bom = Path(out), (options or MergeOptions()).bom
    if not parts:
        raise SettingsError("no parts are given: imbperturb merge PART... -o OUT")
    paths = [Path(part) for part in parts]
    if bom:
        check_bom(out)
    _check_target(out, paths)
    found = [_load(path) for path in paths]
    _check_complete(found)
    found.sort(key=lambda part: part.shard.index)
    _check_one_run(found)
    _check_names(found)
    layout = found[0].run.layout
    layout = layout._replace(bom=bom or layout.bom)
    with open_rows(str(out), layout) as write:
        for row in heapq.merge(*(iter_rows(part.path, layout) for part in found), key=lambda row: row.image):
            write(row)
    run = _describe(found, out, layout)
    write_json(run_path(out), run.to_dict())
    return MergeSummary(
        parts=len(found),
        total=run.images.total,
        done=run.images.done,
        failed=run.images.failed,
        changed=run.images.changed,
        predictions=str(out),
        run=str(run_path(out)),
        agreement=run.agreement,
        notes=(*run.warnings, *_notes(found), *pandas_notes(run.class_counts.names, out.suffix)),
    )


def _check_target(out: Path, parts: Sequence[Path]) -> None:
    suffixes = sorted({path.suffix.lower() for path in (*parts, out)})
    if len(suffixes) > 1:
        listed = " and ".join(suffix or "no suffix" for suffix in suffixes)
        raise OutputFileError(f"{out}: parts and merged file must be of one format, but there are {listed}")
    check_output(out)
    check_writable(run_path(out))
    taken = {file.resolve() for path in parts for file in (path, run_path(path))}
    if {out.resolve(), run_path(out).resolve()} & taken:
        raise OutputFileError(f"{out}: is one of the parts, or its run file is; choose another place with -o")
    if read_unfinished(out) is not None:
        raise OutputFileError(
            f"{rows_path(out)}: holds rows of a run that did not end; finish it, or choose another place with -o"
        )


def _load(path: Path) -> _Part:
    if not path.is_file():
        hint = "predict it with --shard"
        if progress_path(path).is_file():
            hint = "its run did not end: the same command with --resume goes on"
        raise PredictionsError(f"{path}: no such file; {hint}")
    run = load_run_of(path, "get it anew, or predict it again")
    if run.images.shard is None:
        raise MergeError(f"{path}: is no part: it was predicted without --shard")
    return _Part(path, run.images.shard, run)


def _check_complete(parts: Sequence[_Part]) -> None:
    first, *others = parts
    for other in others:
        if other.shard.count != first.shard.count:
            raise MergeError(
                f"{other.path}: is part {other.shard}, but {first.path} is part {first.shard}; give the parts of one"
                " division"
            )
    seen: dict[int, _Part] = {}
    for part in parts:
        other_one = seen.setdefault(part.shard.index, part)
        if other_one is not part:
            raise MergeError(f"{part.path}: is part {part.shard}, and so is {other_one.path}; give each part once")
    missing = [f"{index}/{first.shard.count}" for index in range(1, first.shard.count + 1) if index not in seen]
    if missing:
        raise MergeError(
            f"{len(missing):,} of {first.shard.count:,} parts are not given: {first_few(missing, 10)}; predict them"
            " with --shard and give them all"
        )


def _check_one_run(parts: Sequence[_Part]) -> None:
    first, *others = parts
    for other in others:
        found = differences(first.run, other.run, part=False)
        if found:
            raise MergeError(
                f"{other.path}: is not of the run that {first.path} is of; different: {', '.join(found)}; predict the"
                " parts with the same settings"
            )


def _check_names(parts: Sequence[_Part]) -> None:
    images = parts[0].run.images
    total = sum(part.total for part in parts)
    if list_sha256(heapq.merge(*(part.iter_images() for part in parts))) != images.list_sha256:
        raise MergeError(
            f"{parts[0].path} and its other parts: their {total:,} images are not the {images.list_total:,} that the"
            " run saw; predict the parts again"
        )


def _notes(parts: Sequence[_Part]) -> Iterator[str]:
    """What to know of the merged file: last digits hang on the machine and on measured bounds."""
    used = [part for part in parts if part.total] or parts
    devices = _devices(used)
    if len(devices) > 1:
        yield f"the parts were computed on {' and '.join(devices)}: last digits may differ from one run's"
    if any(part.run.predictor.bounds != used[0].run.predictor.bounds for part in used):
        yield "the bounds of close calls were measured differently in the parts: last digits may differ from one run's"
    if not used[0].run.preprocessing.is_one_size:
        # Only batches of one size are filled up, so that an image's digits do not hang on its neighbours.
        yield "the images kept sizes of their own: last digits may differ from one run's"


def _devices(parts: Sequence[_Part]) -> list[str]:
    return sorted({part.run.execution.device_name for part in parts})


def _describe(parts: Sequence[_Part], out: Path, layout: RowLayout) -> RunFile:
    """The run file of all parts together: what was counted is summed, the rest is of the first part with images."""
    used = [part for part in parts if part.total] or parts
    run, runs = used[0].run, [part.run for part in parts]
    deep = DeepImages()
    for one in runs:
        deep.merge(one.images.deep)
    counted = {name: sum(getattr(one.images, name) for one in runs) for name in ("total", "done", "failed", "changed")}
    stages = dict.fromkeys(stage for part in used for stage in part.run.seconds)
    seconds = {stage: round(sum(one.seconds.get(stage, 0) for one in runs), 4) for stage in stages}
    ceilings = [part.run.execution.batch_ceiling for part in used]
    ceiling = min((most for most in ceilings if most is not None), default=None)
    agreements = [one.agreement for one in runs if one.agreement is not None]
    tallies = [vars(one.predictor.tally) for one in runs]
    tally = Tally(**{name: sum(one[name] for one in tallies) for name in tallies[0]})
    return replace(
        run,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        predictions=out.name,
        predictions_sha256=sha256(out),
        execution=replace(run.execution, device_name=", ".join(_devices(used)), batch_ceiling=ceiling),
        output=replace(run.output, bom=layout.bom),
        images=replace(run.images, **counted, shard=None, deep=deep),
        warnings=deep.warnings,
        agreement=Agreement.summed(agreements) if agreements else None,
        predictor=replace(run.predictor, tally=tally),
        seconds=seconds,
        images_per_second={name: round(counted["total"] / value, 2) for name, value in seconds.items() if value > 0},
        parts=tuple(_describe_part(part) for part in parts),
        engine=None,
    )


def _describe_part(part: _Part) -> PartEntry:
    return PartEntry(
        predictions=part.path.name,
        sha256=part.run.predictions_sha256,
        shard=part.shard,
        images=part.total,
        device_name=part.run.execution.device_name,
        # Bounds may have been measured on another machine: `verify` takes each part's own.
        predictor=part.run.predictor,
    )

"""The run file: one set of types writes and reads it, its schema holds, and an entry that is wrong is named."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from imbalance_perturb.errors import PredictionsError
from imbalance_perturb.evaluation.evaluation_files import evaluate_files
from imbalance_perturb.inference.verification import verify_run
from imbalance_perturb.predictions.merging import merge_predictions
from imbalance_perturb.predictions.resuming import recorded_batch_size
from imbalance_perturb.predictions.run_file import RUN_SCHEMA, load_run_file, parse_run
from imbalance_perturb.predictions.run_schema import run_schema
from tests.functional.conftest import SMALL, Workplace
from tests.functional.test_merge import predict, predict_parts, read_run
from tests.run_files import make_run

#: What each command reads a run file of ``part1.csv`` by.
READERS: dict[str, Callable[[], object]] = {
    "evaluate": lambda: evaluate_files("part1.csv", "labels.csv"),
    "merge": lambda: merge_predictions(["part1.csv", "part2.csv"], "merged.csv"),
    "verify": lambda: verify_run("part1.run.json"),
    "resume": lambda: recorded_batch_size("part1.csv"),
}

Keys = tuple[str | int, ...]

JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 10**30, 0.5, 1e300]),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def iter_keys(data: object, start: Keys = ()) -> Iterator[Keys]:
    """The way to every entry of JSON, however deep."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield (*start, key)
        yield from iter_keys(value, (*start, key))


def entry_name(keys: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)[1:]


def damage(data: dict[str, Any], keys: Keys, value: object) -> dict[str, Any]:
    """The JSON with another value of an entry; ``...`` takes it out."""
    damaged = copy.deepcopy(data)
    inside: Any = damaged
    for key in keys[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[keys[-1]]
    else:
        inside[keys[-1]] = value
    return damaged


@pytest.mark.parametrize(
    ("suffix", "more"),
    [
        (".csv", ()),
        (".jsonl", ("--probs", "--margin")),
        (".parquet", ("--preset", "none", "--crop", "none")),
        (".csv", ("--precision", "bf16", "--bom")),
        (".csv", ("--precision", "auto", "--close-calls-only")),
    ],
)
def test_run_files_are_as_their_schema_says(workplace: Workplace, suffix: str, more: tuple[str, ...]) -> None:
    """Run files of every kind validate, parts and merged ones, too, and come out as they went in."""
    Path("images/broken.png").write_bytes(b"no image")
    predict(workplace, f"out{suffix}", *more)
    parts = predict_parts(workplace, suffix, *more, n=2)
    assert workplace.run("merge", *parts, "-o", f"merged{suffix}").code == 3
    files = sorted(Path().glob("*.run.json"))
    assert len(files) == 4
    for path in files:
        text = path.read_text()
        Draft202012Validator(run_schema()).validate(json.loads(text))
        run = load_run_file(path)
        assert json.dumps(run.to_dict(), indent=2, ensure_ascii=False) + "\n" == text
        assert parse_run(run.to_dict(), path) == run


def test_an_entry_that_is_missing_or_wrong_is_named(workplace: Workplace) -> None:
    """Whatever entry of a run file is gone or mistyped: each command that reads it names the file and the entry."""
    rows = "".join(f"{path.relative_to('images').as_posix()},a\n" for path in Path("images").rglob("*.png"))
    Path("labels.csv").write_text("image,label\n" + rows)
    parts = predict_parts(workplace, ".csv", "--precision", "auto", "--close-calls-only", n=2)
    whole, out = read_run("part1.run.json"), Path("part1.run.json")
    assert workplace.run("merge", *parts, "-o", "m.csv").code == 0
    merged = read_run("m.run.json")
    validator = Draft202012Validator(run_schema())
    written = {"part": (whole, list(iter_keys(whole))), "merged": (merged, list(iter_keys(merged)))}
    assert len(written["part"][1]) > 150

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(draws: st.DataObject) -> None:
        data, entries = written[draws.draw(st.sampled_from(sorted(written)))]
        keys = draws.draw(st.sampled_from(entries))
        damaged = damage(data, keys, draws.draw(st.just(...) | JSON_VALUES))
        assume(not validator.is_valid(damaged))
        out.write_text(json.dumps(damaged))
        name = entry_name(keys[:-1] if isinstance(keys[-1], int) else keys)
        for command, read in READERS.items():
            with pytest.raises(PredictionsError) as refused:
                read()
            message = str(refused.value)
            assert message.startswith("part1.run.json: "), (command, message)
            assert name in message or "another version" in message, (command, message)
            assert "\n" not in message

    check()
    # As the others do, with the words.
    out.write_text(json.dumps(damage(whole, ("images", "total"), "x")))
    for read in READERS.values():
        with pytest.raises(
            PredictionsError, match=r"^part1\.run\.json: images\.total is 'x'; expected a whole number$"
        ):
            read()
    for keys, value, words in (
        (("images", "done"), ..., "images.done is missing; expected a whole number"),
        (("images", "more"), 1, "images.more is not known; expected source, total, "),
        (("images", "failed"), -1, "images.failed is -1; expected a whole number of at least 0"),
        (("images", "shard"), "3/2", "images.shard is '3/2'; expected I/N with I from 1 to N, such as 3/8"),
        (("seconds", "total"), ..., "seconds.total is missing; expected a number"),
        (("classes", 1, "index"), 2, "classes[1].index is 2; expected 1"),
        (("preprocessing", "crop"), [1], "preprocessing.crop is [1]; expected a list of 2"),
        (("model", "arch"), 1, "model.arch is 1; expected text or null"),
        (("settings", "debias", "eps"), "x", "settings.debias.eps is 'x'; expected a number, at least 0"),
        (("settings", "run", "workers"), ..., "settings.run.workers is missing; expected a whole number, at least 0"),
        (("execution", "batch_size"), 0, "execution.batch_size is 0; expected a whole number of at least 1"),
    ):
        out.write_text(json.dumps(damage(whole, keys, value)))
        assert f"part1.run.json: {words}" in workplace.fails("verify", "part1.run.json")


def test_bounds_that_close_calls_need_are_asked_for(workplace: Workplace) -> None:
    """A run file whose close calls have no bounds is refused by verify, which would have nothing to tell them by."""
    predict(workplace, "out.csv")
    data = read_run("out.run.json")
    data["predictor"]["close_calls_only"] = True
    Path("out.run.json").write_text(json.dumps(data))
    assert "out.run.json: predictor.bounds.reach is null; expected" in workplace.fails("verify", "out.run.json")


@pytest.mark.parametrize("schema", [RUN_SCHEMA - 1, RUN_SCHEMA + 1])
def test_a_run_file_of_another_schema_is_refused(workplace: Workplace, schema: int) -> None:
    """Every command that reads a run file refuses one of an older or newer layout in one line."""
    predict_parts(workplace, n=2)
    Path("part1.run.json").write_text(json.dumps(read_run("part1.run.json") | {"schema": schema, "images": None}))
    for read in READERS.values():
        with pytest.raises(
            PredictionsError, match=rf"is of another version of imbalance-perturb \(schema {schema}, this"
        ):
            read()


def test_a_progress_file_that_was_changed_is_named(workplace: Workplace) -> None:
    """--resume names the entry of the progress file that is missing or wrong, in its head or in its marks."""
    Path("images/9_broken.png").write_bytes(b"no image")
    command = ("predict", "model.pth", "counts.json", "images", *SMALL, "--batch-size", "1", "--workers", "0")
    assert workplace.run(*command, "--on-error", "fail", "-o", "cut.csv").code == 1
    path = Path("cut.csv.progress")
    first, *marks = path.read_text().splitlines()
    for keys, value, words in (
        (("made_by", "images", "total"), "x", "made_by.images.total is 'x'; expected a whole number"),
        (("made_by", "versions"), ..., "made_by.versions is missing; expected an object with entries"),
    ):
        head = json.dumps(damage(json.loads(first), keys, value))
        path.write_text("\n".join((head, *marks)) + "\n")
        assert f"cut.csv.progress: {words}" in workplace.fails(*command, "--resume", "-o", "cut.csv")
    for keys, value, words in (
        (("state", "deep"), ..., "state.deep is missing; expected an object with entries"),
        (
            ("state", "predictor", "bounds", "reach"),
            [1, "x"],
            "state.predictor.bounds.reach[1] is 'x'; expected a number",
        ),
        (("state", "standing", "done"), None, "state.standing.done is null; expected a whole number"),
    ):
        changed = [json.dumps(damage(json.loads(mark), keys, value)) for mark in marks]
        path.write_text("\n".join((first, *changed)) + "\n")
        assert f"cut.csv.progress: {words}" in workplace.fails(*command, "--resume", "-o", "cut.csv")
    path.write_text("\n".join((first, *marks)) + "\n")
    assert workplace.run(*command, "--resume", "-o", "cut.csv").code == 3


def test_the_names_of_entries_are_on_one_line() -> None:
    """A key with a line end or a terminal's command does not get out as it is."""
    with pytest.raises(PredictionsError, match=re.escape(r"p.run.json: a\n\x1b[2J is not known")):
        parse_run(make_run({"a": 2, "b": 1}).to_dict() | {"a\n\x1b[2J": 1}, Path("p.run.json"))

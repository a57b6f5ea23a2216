from __future__ import annotations

import json
from pathlib import Path

from jsonschema import Draft202012Validator

from imbalance_perturb.predictions.run_file import parse_run
from imbalance_perturb.predictions.run_schema import describe_entries, run_schema, write_docs
from tests.run_files import make_run

DOCS = Path(__file__).parents[3] / "docs"


def test_the_documented_schema_is_what_the_types_say(tmp_path: Path) -> None:
    """docs/run-file.schema.json and docs/run-file.md are made from the types as they are now."""
    write_docs(tmp_path)
    for name in ("run-file.schema.json", "run-file.md"):
        assert (DOCS / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")


def test_the_schema_is_one() -> None:
    """It is JSON Schema 2020-12, takes a run file, and refuses one with an entry gone, added or of another type."""
    schema = run_schema()
    Draft202012Validator.check_schema(schema)
    data = make_run({"a": 2, "b": 1}).to_dict()
    validator = Draft202012Validator(schema)
    validator.validate(data)
    wrong = [{key: value for key, value in data.items() if key != name} for name in data]
    wrong += [data | {name: {"x": []}} for name in data] + [data | {"more": 1}, data | {"schema": 2}]
    for one in wrong:
        assert not validator.is_valid(one)


def test_every_entry_is_told() -> None:
    """The page names every entry that a run file has, but those of the settings, which their own page has."""
    page = describe_entries()
    data = make_run({"a": 2, "b": 1}).to_dict()
    for name, value in data.items():
        assert f"| `{name}` |" in page
        for key in (
            value if isinstance(value, dict) and name not in ("settings", "seconds", "images_per_second") else ()
        ):
            assert f"| `{name}.{key}` |" in page


def test_a_run_file_comes_out_as_it_went_in() -> None:
    """What is read from what was written is equal, numbers as they were: a whole number of seconds stays one."""
    run = make_run({"a": 2, "b": 1})
    text = json.dumps(run.to_dict())
    assert parse_run(json.loads(text), Path("p.run.json")) == run
    assert json.dumps(parse_run(json.loads(text), Path("p.run.json")).to_dict()) == text

"""What others need to read run files: their JSON Schema and a page on each entry, made from the types.

After a change of the types: ``python -c "from imbalance_perturb.predictions.run_schema import write_docs;
write_docs('docs')"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from imbalance_perturb.config.allowed import Allowed, Flag, FlagOrHash, Number, PerChannel, Prior, Size, Text
from imbalance_perturb.config.declarations import Declaration, declarations
from imbalance_perturb.config.settings import TABLES, Settings
from imbalance_perturb.files.json_schema import schema_of
from imbalance_perturb.predictions.making import FORMS
from imbalance_perturb.predictions.run_file import RUN_SCHEMA, RunFile

_PAGE = """# The entries of a run file

`predict` and `merge` write a run file beside their predictions (`docs/outputs.md` says where). It is JSON in UTF-8;
`docs/run-file.schema.json` is its JSON Schema (2020-12). Every entry is there, unless it is said to be optional, and no
other: whatever adds, removes or changes one raises `schema`. `evaluate`, `merge`, `verify` and `predict --resume`
refuse a file of another `schema`, and one in which an entry is missing, not known or wrong, naming it. Where an entry
has two sizes, the height comes first. This page and the schema are made from the types in `predictions/making.py`,
`run_state.py` and `run_file.py`.

| Entry | Type | What it is |
|---|---|---|
"""


def run_schema() -> dict[str, Any]:
    """The JSON Schema of a run file."""
    forms = FORMS | {Settings: replace(FORMS[Settings], schema=_settings_schema())}
    schema = schema_of(RunFile, forms)
    schema["properties"]["schema"] |= {"const": RUN_SCHEMA}
    schema["properties"]["seconds"] |= {"required": ["total"]}
    return {"$schema": schema.pop("$schema"), "title": "Run file of imbalance-perturb"} | schema


def describe_entries() -> str:
    """The page on each entry, as Markdown."""
    schema = run_schema()
    lines = [f"| `{name}` | {kind} | {text} |\n" for name, kind, text in _iter_lines(schema, "", schema["$defs"], {})]
    return _PAGE + "".join(lines).replace("``", "`")


def write_docs(folder: str | Path) -> None:
    """Write both into the folder of the documentation."""
    Path(folder, "run-file.schema.json").write_text(json.dumps(run_schema(), indent=2) + "\n", encoding="utf-8")
    Path(folder, "run-file.md").write_text(describe_entries(), encoding="utf-8")


def _iter_lines(
    part: Mapping[str, Any], start: str, parts: Mapping[str, Any], seen: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    """The entries of an object, each with those inside it; what stood before is not told again."""
    for key, one in part["properties"].items():
        name, inside = f"{start}{key}", _inside(one)
        kind = _kind(one) + ("" if key in part["required"] else ", optional")
        if inside is None or inside in seen:
            yield (
                name,
                kind,
                one["description"] + ("" if inside is None else f" Its entries are those of `{seen[inside]}`."),
            )
            continue
        seen[inside] = name
        yield name, kind, one["description"]
        each = "[]" if "list" in kind else ""
        yield from _iter_lines(parts[inside], f"{name}{each}.", parts, seen)


def _inside(one: Mapping[str, Any]) -> str | None:
    """The part that an entry refers to, be it a list of it or perhaps null."""
    if "$ref" in one:
        return str(one["$ref"]).rpartition("/")[2]
    for option in (*one.get("anyOf", ()), one.get("items")):
        if isinstance(option, Mapping) and (found := _inside(option)):
            return found
    return None


def _kind(one: Mapping[str, Any]) -> str:
    if "anyOf" in one:
        return " or ".join(map(_kind, one["anyOf"]))
    if "$ref" in one:
        return "object"
    if one["type"] == "array":
        return f"list of {len(one['prefixItems'])}" if "prefixItems" in one else f"list of {_kind(one['items'])}"
    return str(one["type"])


def _settings_schema() -> dict[str, Any]:
    tables = {
        name: _object({key: _setting(one) for key, one in declarations(kind).items()}) for name, kind in TABLES.items()
    }
    return _object(tables)


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _setting(declared: Declaration) -> dict[str, Any]:
    allowed = _allowed(declared.allowed)
    return {"description": declared.help} | (
        allowed if declared.default is not None else {"anyOf": [allowed, {"type": "null"}]}
    )


def _allowed(allowed: Allowed) -> dict[str, Any]:
    if isinstance(allowed, Text):
        return {"type": "string"} | ({"enum": list(allowed.words)} if allowed.words and not allowed.pattern else {})
    if isinstance(allowed, FlagOrHash):
        return {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[0-9a-f]{64}$"}]}
    if isinstance(allowed, Flag):
        return {"type": "boolean"}
    if isinstance(allowed, Number):
        bounds = {"exclusiveMinimum": allowed.above, "minimum": allowed.at_least, "maximum": allowed.at_most}
        return {
            "type": "integer" if allowed.whole else "number",
            **{name: value for name, value in bounds.items() if value is not None},
        }
    if isinstance(allowed, PerChannel):
        return {"type": "array", "items": _allowed(allowed.number), "minItems": 1}
    if isinstance(allowed, Prior):
        shares = {"type": "object", "additionalProperties": _allowed(allowed.share), "minProperties": 1}
        return {"anyOf": [{"type": "string"}, shares]}
    if isinstance(allowed, Size):
        side = _allowed(allowed.side)
        pair = {"type": "array", "prefixItems": [side, side], "minItems": 2, "items": False}
        return {"anyOf": [side, pair, {"const": "none"}]}
    raise TypeError(f"{type(allowed).__name__} has no JSON Schema")

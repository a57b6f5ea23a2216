"""JSON Schema (2020-12) of dataclasses that :mod:`imbalance_perturb.files.typed_json` reads and writes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from imbalance_perturb.files.typed_json import Forms, entries, options

_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", NoneType: "null"}


def schema_of(kind: type[Any], forms: Forms) -> dict[str, Any]:
    """The schema of a dataclass; descriptions are those of the docstrings' attributes."""
    parts: dict[str, Any] = {}
    _schema(kind, forms, parts)
    whole = parts.pop(kind.__name__)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": dict(sorted(parts.items()))}


def meanings(kind: Any) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each entry."""
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(kind)):
        _, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*)$", attributes, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), text)
    for name in getattr(kind, "derived", ()):
        found[name] = inspect.getdoc(getattr(kind, name)) or ""
    return found


def _schema(hint: Any, forms: Forms, parts: dict[str, Any]) -> dict[str, Any]:
    wanted = options(hint)
    if len(wanted) > 1:
        return {"anyOf": [_schema(option, forms, parts) for option in wanted]}
    if hint in forms:
        return dict(forms[hint].schema)
    if isinstance(hint, type) and is_dataclass(hint):
        if hint.__name__ not in parts:
            parts[hint.__name__] = _describe(hint, forms, parts)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {"type": _TYPES[arguments[0]], "minimum": arguments[1].lowest}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1], forms, parts)}
    if origin is tuple and arguments[-1] is not ...:
        each = [_schema(one, forms, parts) for one in arguments]
        return {"type": "array", "prefixItems": each, "minItems": len(each), "items": False}
    if origin in (tuple, list):
        return {"type": "array", "items": _schema(arguments[0], forms, parts)}
    return {"type": _TYPES[hint]}


def _describe(kind: Any, forms: Forms, parts: dict[str, Any]) -> dict[str, Any]:
    known, says = entries(kind), meanings(kind)
    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__).splitlines()[0],
        "properties": {
            name: {"description": says[name]} | _schema(one.hint, forms, parts) for name, one in known.items()
        },
        "required": [name for name, one in known.items() if not one.optional],
        "additionalProperties": False,
    }

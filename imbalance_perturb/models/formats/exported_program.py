"""Check ``torch.export`` programs for operators, expressions and payloads, then read them."""

from __future__ import annotations

import ast
import io
import json
import logging
import pickle
import re
import zipfile
from typing import Any, BinaryIO

import torch

from imbalance_perturb.errors import ModelFileError, UntrustedModelError, first_line
from imbalance_perturb.models.formats.checkpoint import check_checkpoint
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import (
    FILE_OPERATORS,
    LOAD_ERRORS,
    TRUST_REMEDY,
    importable_from_here,
    named_globals,
    some_names,
    tensors_only,
    untrusted,
)

#: What an identifier or a dotted tensor name may look like: anything else could end up in generated source code.
_NAME = re.compile(r"[\w.:<>+\-]*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
#: Texts that a file was given beside its network, which torch hands out as they are: below the archive's own name, or
#: without it. Within the folders of networks and tensors there are none: torch would load a network from there.
_EXTRA = re.compile(r"extra/[^/]+|(?!(models|data)/)[^/]+/extra/[^/]+")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
#: Operators a graph may call. A dotted path below ``torch`` would otherwise reach any Python function.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prim|prims|quantized|quantized_decomposed|torchvision)\.(?!__)\w+(\.(?!_)\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|out_dtype|wrap|strict_mode"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast|invoke_subgraph|hints_wrapper|auto_functionalized(_v2)?)"
    r"|torch\.sym_\w+|torch\._sym_\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|getitem|lshift|rshift)"
    r"|math\.(ceil|floor|trunc|sqrt|log|log2|exp|pow)",
    re.ASCII,
)

_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
#: What symbolic shapes are written with: sympy's own classes and those of ``torch.utils._sympy.functions``.
_SYMPY_CALLS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Eq|Ne|Equality|Unequality|Lt|Le|Gt|Ge|StrictLessThan"
    r"|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|Piecewise|ExprCondPair|Tuple|FloorDiv|ModularIndexing|Where"
    r"|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv"
    r"|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_SYMPY_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load, ast.keyword,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_SYMPY_NAMES = re.compile(r"[suz]f?\d+|zuf\d+|True|False|true|false", re.ASCII)

#: Descriptions of where a node came from: read back, never run.
_INERT_KEYS = frozenset({"metadata", "guards_code", "as_string", "as_strings", "torch_version", "serialization_id"})

#: Parts of an exported program that torch reads as files of ``torch.save``, and those it may by their description.
_SAVED = re.compile(r"(.*/)?(data/(weights|constants|sample_inputs)/[^/]*|serialized_\w+)\.pt")
_PAYLOAD_PART = re.compile(r"(.*/)?data/(weights|constants)/(weight|tensor)_\d+")
#: How many times more than the archive's bytes its tensors may show, by sharing them.
_SOME_BYTES, _MOST_SHARED = 64 * 2**20, 8


def check_export(snapshot: Snapshot) -> None:
    """Refuse a ``torch.export`` archive holding anything but tensors and a graph of known operators.

    Raises:
        UntrustedModelError: naming what was found.
        ModelFileError: if the archive cannot be read.
    """
    path = snapshot.path
    archive = snapshot.archive
    if any("data/aotinductor/" in f"/{part.filename}" for part in archive.parts):
        raise untrusted(path, "holds compiled native code (AOTInductor)")
    if archive.has_twins:
        raise untrusted(path, "holds two parts of the same name")
    for name, record in archive.records(lambda part: part.endswith(".json") and not _EXTRA.fullmatch(part)):
        try:
            content = json.loads(record)
            reason = _unsafe_in_payload(content) if name.endswith("_config.json") else _unsafe_in_graph(content)
        except ValueError as error:
            raise ModelFileError(
                f"{path}: the part {name} of this torch.export file is not JSON; export it again"
            ) from error
        except RecursionError as error:
            raise ModelFileError(
                f"{path}: the part {name} of this torch.export file is nested too deeply; export it again"
            ) from error
        if reason:
            raise untrusted(path, reason)


def _unsafe_in_payload(content: Any) -> str | None:
    entries = content.get("config", {}) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        return "describes its tensors in an unknown way"
    for name, entry in entries.items():
        path_name = entry.get("path_name", "") if isinstance(entry, dict) else ""
        if not _PAYLOAD.fullmatch(str(path_name)):
            return f"stores {name!r} as a Python object ({path_name})"
        if not _NAME.fullmatch(name):
            return f"has a tensor named {name!r}"
    return None


def _unsafe_in_graph(content: Any, key: str = "") -> str | None:
    """Why a value of the graph's JSON, found under ``key``, may not be loaded; None if it may."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name in _INERT_KEYS and _is_plain_text(value):
                continue
            # A batch of twice a symbol has its limits under that expression, which torch looks up, never evaluates.
            if not _NAME.fullmatch(name) and not (key == "range_constraints" and _is_arithmetic(name)):
                return f"has a part named {name!r}"
            if reason := _unsafe_in_graph(value, name):
                return reason
        return None
    if isinstance(content, list):
        return next((reason for item in content if (reason := _unsafe_in_graph(item, key))), None)
    if not isinstance(content, str):
        return None
    match key:
        case "target" | "as_operator":
            known = _OPERATOR.fullmatch(content) and not FILE_OPERATORS.intersection(content.split("."))
            return None if known else f"calls {content!r}, which is not one of torch's own tensor operators"
        case "expr_str":
            return None if _is_arithmetic(content) else f"holds the expression {content!r}"
        case "in_spec" | "out_spec":
            return _unsafe_in_tree(content)
        case "name" | "as_name" | "forward_arg_names":
            # These become variable names in source code that torch generates.
            return None if not content or _IDENTIFIER.fullmatch(content) else f"has a node named {content!r}"
    return None if _NAME.fullmatch(content) else f"holds the text {content!r} where a name is expected"


def _is_plain_text(value: Any) -> bool:
    # A tensor may be *named* like an inert key; only text without structure is nothing but text.
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    return all(isinstance(item, str) or item is None for item in values)


def _is_arithmetic(text: str) -> bool:
    # torch hands these strings to sympify, which evaluates them as Python.
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    symbols = {id(n.args[0]) for n in nodes if isinstance(n, ast.Call) and n.args and _is_literal_call(n.func)}
    for node in nodes:
        match node:
            case ast.keyword(arg=None):
                return False
            case ast.Call(func=ast.Name(id=name)) if _SYMPY_CALLS.fullmatch(name):
                pass
            case ast.Name(id=name) if id(node) in called or _SYMPY_NAMES.fullmatch(name):
                pass
            case ast.Constant(value=str(value)) if id(node) in symbols and re.fullmatch(r"[\w.+-]+", value, re.ASCII):
                pass
            case ast.Constant(value=bool() | int() | float()):
                pass
            case _ if not isinstance(node, _SYMPY_NODES):
                return False
    return True


def _is_literal_call(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in {"Symbol", "Integer", "Float", "Rational"}


def _unsafe_in_tree(text: str) -> str | None:
    if not text:
        return None
    try:
        _, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return f"describes its inputs in an unknown way ({text[:40]!r})"
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or node.get("type") not in _TREE_TYPES or "__enum__" in str(node.get("context")):
            return (
                f"takes or returns a Python type of its own ({node.get('type') if isinstance(node, dict) else node!r})"
            )
        waiting.extend(node.get("children_spec", ()))
    return None


def _check_contents(snapshot: Snapshot) -> None:
    """Refuse an exported program that declares tensors far larger than the file, in itself or in its pickles.

    Raises:
        ModelFileError: naming what is wrong.
    """
    path, archive = snapshot.path, snapshot.archive
    archive.check()
    most = _SOME_BYTES + _MOST_SHARED * sum(part.file_size for part in archive.parts)
    for part, content in archive.records(lambda part: part.endswith("_config.json")):
        if (shown := _declared(content)) > most:
            raise ModelFileError(
                f"{path}: {part[:80]!r} declares tensors of {shown:,} bytes, far more than the file has;"
                " export the model again"
            )
    seen: set[str] = set()  # as the other parser sees it, too
    for part, content in archive.records(lambda part: _PAYLOAD_PART.fullmatch(part) or _SAVED.fullmatch(part)):
        saved = Snapshot(path, content, part)
        if content and (_SAVED.fullmatch(part) or content[:2] in (b"PK", b"\x80\x02")) and saved.sha256 not in seen:
            check_checkpoint(saved)
            seen.add(saved.sha256)


def _declared(content: bytes) -> int:
    """Add up the bytes that the tensors in a description take at most, if none shared its content."""
    try:
        entries = json.loads(content)["config"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0  # the check for code says what is wrong with it
    return sum(16 * _elements(entry) for entry in entries)


def _elements(entry: Any) -> int:
    product = 1
    try:
        for size in entry["tensor_meta"]["sizes"]:
            product *= abs(int(size["as_int"]))
    except (TypeError, KeyError, ValueError):
        return 0
    return product


def read_export(snapshot: Snapshot, *, trust: bool) -> torch.export.ExportedProgram:
    """Check a ``torch.export`` archive and read its program.

    Raises:
        UntrustedModelError: if it holds more than tensors and a graph, and ``trust`` is not given.
        ModelFileError: if it cannot be read.
    """
    path = snapshot.path
    _check_contents(snapshot)
    try:
        if trust:
            with importable_from_here():
                return _load_export(snapshot)
        check_export(snapshot)
        with tensors_only():
            return _load_export(snapshot)
    except pickle.UnpicklingError as error:
        raise UntrustedModelError(
            f"{path}: a part of this torch.export file is a pickle that needs code to load"
            f" ({some_names(named_globals(error))}); {TRUST_REMEDY}"
        ) from error
    except ModelFileError:
        raise
    except LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: this torch.export file cannot be read by torch {torch.__version__} ({first_line(error)});"
            " export it again with this version, or give the model's state_dict"
        ) from error


#: How a program says that a tensor, or what it makes, is on a GPU, and how that it is on the CPU.
_ON_GPU, _ON_CPU = re.compile(rb'"type": "cuda", "index": (null|[0-9]+)'), b'"type": "cpu", "index": null'


def _moved_to_cpu(snapshot: Snapshot) -> BinaryIO:
    """The file as if the program had been exported on the CPU, where it was on a GPU, which may not be here."""
    described = dict(snapshot.archive.records(lambda part: part.endswith(".json")))
    if not any(_ON_GPU.search(content) for content in described.values()):
        return snapshot.open()
    moved = io.BytesIO()
    with zipfile.ZipFile(snapshot.open()) as old, zipfile.ZipFile(moved, "w") as new:
        for name in old.namelist():
            content = _ON_GPU.sub(_ON_CPU, old.read(name)) if name.endswith(".json") else old.read(name)
            if content and _SAVED.fullmatch(name):
                saved = io.BytesIO()
                torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), saved)
                content = saved.getvalue()
            new.writestr(name, content)
    moved.seek(0)
    return moved


def _load_export(snapshot: Snapshot) -> torch.export.ExportedProgram:
    # torch logs the whole traceback of what it then also raises, or of a fallback that is fine.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return torch.export.load(_moved_to_cpu(snapshot))
    finally:
        logging.disable(before)

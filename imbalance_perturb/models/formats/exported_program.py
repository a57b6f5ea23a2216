"""Look through a TorchScript or ``torch.export`` archive for anything that would run code of the file's own.

Both formats describe a network as data, yet their loaders unpickle, evaluate strings and resolve dotted names
that stand in the file. What is checked here, before torch sees the file, is a list of what may stand there.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imbalance_perturb.errors import ModelFileError, UntrustedModelError
from imbalance_perturb.models.contents import records
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.zip_archive import read_parts

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
#: Operators of torch itself that read or write files.
_FILE_OPERATORS = frozenset({"save", "from_file", "load_tensor"})
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
#: TorchScript classes built into torch that hold packed parameters and nothing that acts.
_SCRIPT_CLASSES = frozenset({"quantized", "sparse", "xnnpack", "mkldnn", "onednn"})
#: Descriptions of where a node came from: read back, never run.
_INERT_KEYS = frozenset({"metadata", "guards_code", "as_string", "as_strings", "torch_version", "serialization_id"})


def check_torchscript(snapshot: Snapshot) -> None:
    """Refuse TorchScript that calls file operators or classes outside torch's own quantisation.

    Raises:
        UntrustedModelError: naming what was found.
        ModelFileError: if the archive cannot be read.
    """
    path = snapshot.path
    for name, record in _records(snapshot):
        text = record.decode("utf-8", "replace") if "/code/" in f"/{name}" or name.endswith(".pkl") else ""
        for space in set(re.findall(r"__torch__\.torch\.classes\.(\w+)", text)) - _SCRIPT_CLASSES:
            raise _untrusted(path, f"uses the native class torch.classes.{space}")
        if name.endswith(".py") and any(word in text for word in _FILE_OPERATORS):
            for called in _names_in_code(path, text) & _FILE_OPERATORS:
                raise _untrusted(path, f"calls the operator {called!r}, which reads or writes files")


def check_export(snapshot: Snapshot) -> None:
    """Refuse a ``torch.export`` archive holding anything but tensors and a graph of known operators.

    Raises:
        UntrustedModelError: naming what was found.
        ModelFileError: if the archive cannot be read.
    """
    path = snapshot.path
    if any("data/aotinductor/" in f"/{part.filename}" for part in read_parts(snapshot.open(), str(path))):
        raise _untrusted(path, "holds compiled native code (AOTInductor)")
    for name, record in _records(snapshot):
        if not name.endswith(".json") or _EXTRA.fullmatch(name):
            continue
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
            raise _untrusted(path, reason)


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside: every ``torch.load``, also those of torch's own loaders, refuses pickles that need code."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.get(name) for name in names}
    os.environ[names[0]] = "1"
    os.environ.pop(names[1], None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _untrusted(path: Path, reason: str) -> UntrustedModelError:
    return UntrustedModelError(
        f"{path}: this file {reason}, so loading it could run code that it brings along;"
        " if you trust where it comes from, pass --trust-model-file (trust_model_file=True)"
    )


def _records(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    path = snapshot.path
    names = [part.filename for part in read_parts(snapshot.open(), str(path))]
    if len(set(names)) != len(names):
        raise _untrusted(path, "holds two parts of the same name")
    yield from records(snapshot.open(), str(path), (".json", ".py", ".pkl"))


def _names_in_code(path: Path, text: str) -> set[str]:
    try:
        return {t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NAME}
    except (tokenize.TokenError, SyntaxError) as error:
        raise _untrusted(path, f"holds code that cannot be checked ({error})") from error


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
            if not _NAME.fullmatch(name):
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
            known = _OPERATOR.fullmatch(content) and not _FILE_OPERATORS.intersection(content.split("."))
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

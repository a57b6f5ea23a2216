"""Check TorchScript for nesting, pickles and operators, then read it."""

from __future__ import annotations

import io
import re
import tokenize
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from imbalance_perturb.errors import ModelFileError, first_line
from imbalance_perturb.models.formats.pickles import OddPickleError, UnknownOperationError, describe, odd_pickle
from imbalance_perturb.models.formats.snapshot import Snapshot
from imbalance_perturb.models.formats.trust import FILE_OPERATORS, LOAD_ERRORS, untrusted
from imbalance_perturb.models.formats.zip_archive import Archive

#: A statement of a thousand nested brackets or operators is read on a stack of 8 MB, one of ten thousand is not.
MOST_DEPTH = 500
#: A traced network of two thousand layers has some hundred classes inside one another at the very most.
_MOST_CHAIN = 200
_TOKENS = re.compile(
    r"(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|#[^\n]*)|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<part>,)"
    r"|(?P<end>\n[ ]*)|(?P<operator>\*\*|[-+*/%@<>=!&|^~.:]|\b(?:not|if|else|and|or|is|in|lambda)\b)"
)
_DEFINITION = re.compile(r"^(?:class|def) (\w+)(.*?)(?=^(?:class|def) |\Z)", re.ASCII | re.MULTILINE | re.DOTALL)
_MENTION = re.compile(r"__torch__(?:\.\w+)+", re.ASCII)

#: TorchScript classes built into torch that hold packed parameters and nothing that acts.
_SCRIPT_CLASSES = frozenset({"quantized", "sparse", "xnnpack", "mkldnn", "onednn"})


def code_depth(text: str) -> int:
    """Bound from above how deeply the expressions and blocks of source code are nested."""
    deepest, total, levels = 0, 1, [0]  # for each open bracket, operators since the last comma
    for token in _TOKENS.finditer(text):
        match token.lastgroup:
            case "open":
                levels.append(0)
                total += 1
            case "close" if len(levels) > 1:
                # The bracket's end may be called, indexed or added to in its turn: it counts as an operator.
                total -= levels.pop()
                levels[-1] += 1
            case "part":
                total -= levels[-1]
                levels[-1] = 0
            case "operator":
                levels[-1] += 1
                total += 1
            case "end" if len(levels) == 1:
                levels, total = [0], 1
                deepest = max(deepest, len(token[0]) - 1)
        deepest = max(deepest, total)
    return deepest


def text_depth(text: str) -> int:
    """Count how deeply the brackets of a type's name are nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\](){}]", text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest


def has_long_chain(files: Mapping[str, str]) -> bool:
    """Whether classes refer to one another in a circle or in a long chain, which are loaded each within the last.

    Args:
        files: source code by the dotted name of its module.
    """
    texts = {f"{module}.{name}": body for module, text in files.items() for name, body in _DEFINITION.findall(text)}
    mentions = {name: (set(_MENTION.findall(body)) & texts.keys()) - {name} for name, body in texts.items()}
    left = dict(mentions)
    for _ in range(_MOST_CHAIN):
        ready = [name for name, needs in left.items() if not needs & left.keys()]
        if not ready:
            break
        for name in ready:
            del left[name]
    return bool(left)


def _check_contents(archive: Archive) -> None:
    """Refuse TorchScript whose pickles or code its reader could not hold, or that reads beyond its tensors.

    Raises:
        ModelFileError: naming what is wrong.
    """
    archive.check()
    name = archive.name
    if "model.json" in archive.sizes:
        raise ModelFileError(f"{name}: this TorchScript file has the layout of before torch 1.2; script it again")
    code: dict[str, str] = {}
    for part, content in archive.records(lambda part: part.endswith((".py", "pkl"))):
        if part.endswith("traced_inputs.pkl"):
            continue  # of use to a debugger, not read here
        try:
            if part.endswith("pkl"):
                _check_script_pickle(archive, part, content)
                continue
        except (OddPickleError, UnknownOperationError) as error:
            raise odd_pickle(name, part, error) from error
        text = code[re.sub(r"^.*?/?code/|\.py$", "", part).replace("/", ".")] = content.decode("utf-8", "replace")
        if code_depth(text) > MOST_DEPTH:
            raise ModelFileError(f"{name}: the code in {part[:80]!r} is nested too deeply; script the model again")
    if has_long_chain(code):
        raise ModelFileError(f"{name}: its classes are made of one another without end; script the model again")


def _check_script_pickle(archive: Archive, part: str, content: bytes) -> None:
    found = describe(io.BytesIO(content), strict=True, size=archive.size)
    if any(text_depth(text) > 50 for text in found.texts):
        raise OddPickleError("it names a type that is nested too deeply")
    # The tensors of data.pkl are in data/, those of constants.pkl in constants/.
    archive.check_storages(found.storages, part.rpartition("/")[2].removesuffix(".pkl"))


def read_torchscript(snapshot: Snapshot, *, trust: bool) -> torch.jit.ScriptModule:
    """Check a TorchScript file and read its module, on the CPU.

    Raises:
        UntrustedModelError: if it uses more than tensor operators and ``trust`` is not given.
        ModelFileError: if it cannot be read.
    """
    path = snapshot.path
    _check_contents(snapshot.archive)
    if not trust:
        check_torchscript(snapshot)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")  # deprecated, but people's files are in it
            module: torch.jit.ScriptModule = torch.jit.load(snapshot.open(), map_location="cpu")  # type: ignore[no-untyped-call]
            return module
    except LOAD_ERRORS as error:
        raise ModelFileError(
            f"{path}: this TorchScript file cannot be read by torch {torch.__version__} ({first_line(error)});"
            " trace or script the model again, or give its state_dict"
        ) from error


def check_torchscript(snapshot: Snapshot) -> None:
    """Refuse TorchScript that calls file operators or classes outside torch's own quantisation.

    Raises:
        UntrustedModelError: naming what was found.
        ModelFileError: if the archive cannot be read.
    """
    path = snapshot.path
    if snapshot.archive.has_twins:
        raise untrusted(path, "holds two parts of the same name")
    for name, record in snapshot.archive.records(lambda part: part.endswith((".json", ".py", ".pkl"))):
        text = record.decode("utf-8", "replace") if "/code/" in f"/{name}" or name.endswith(".pkl") else ""
        for space in set(re.findall(r"__torch__\.torch\.classes\.(\w+)", text)) - _SCRIPT_CLASSES:
            raise untrusted(path, f"uses the native class torch.classes.{space}")
        if name.endswith(".py") and any(word in text for word in FILE_OPERATORS):
            for called in _names_in_code(path, text) & FILE_OPERATORS:
                raise untrusted(path, f"calls the operator {called!r}, which reads or writes files")


def _names_in_code(path: Path, text: str) -> set[str]:
    try:
        return {t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NAME}
    except (tokenize.TokenError, SyntaxError) as error:
        raise untrusted(path, f"holds code that cannot be checked ({error})") from error

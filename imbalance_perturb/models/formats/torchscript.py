"""How deeply TorchScript's source code is nested: its reader, in C++, follows any depth until its stack overflows."""

from __future__ import annotations

import re
from collections.abc import Mapping

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


def code_depth(text: str) -> int:
    """An upper bound of how deeply the expressions and blocks of source code are nested."""
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
    """How deeply the brackets of a type's name are nested."""
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

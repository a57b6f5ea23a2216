"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from hypothesis import strategies as st

from imbalance_perturb.config.allowed import Flag, Number, NumberOrAuto, PerChannel, Prior, Size, Text
from imbalance_perturb.config.declarations import Declaration

#: Training counts of 2 to 12 classes, not all equal.
imbalanced_counts = st.lists(st.integers(1, 10**6), min_size=2, max_size=12).filter(lambda c: len(set(c)) > 1)


@st.composite
def contests(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """(N,) labels of at least two classes, (N, K) predictions of the same images, and C: classes may be absent."""
    classes, images, candidates = draw(st.integers(2, 6)), draw(st.integers(2, 30)), draw(st.integers(1, 4))
    indices = st.integers(0, classes - 1)
    labels = draw(st.lists(indices, min_size=images, max_size=images).filter(lambda found: len(set(found)) > 1))
    columns = st.lists(indices, min_size=candidates, max_size=candidates)
    preds = draw(st.lists(columns, min_size=images, max_size=images))
    return np.array(labels), np.array(preds), classes


#: What a command line and a file of UTF-8 can hold.
_CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
_FILE_NAMES = st.text("abcäß .-_'\"[]#=/", min_size=1, max_size=12).filter(lambda name: name.strip("/. ") != "")


def allowed_values(entry: Declaration) -> st.SearchStrategy[Any]:
    """Values that a setting may have, as it was declared; among them 'not said' where it may be left out."""
    match entry.allowed:
        case Flag():
            values: st.SearchStrategy[Any] = st.booleans()
        case Text(words, pattern):
            patterned = st.from_regex(pattern, fullmatch=True, alphabet=_CHARACTERS) if pattern else st.nothing()
            anything = st.nothing() if words or pattern else _FILE_NAMES if entry.path else st.text(_CHARACTERS)
            if entry.path and pattern:
                patterned = _FILE_NAMES.map(lambda name: name + ".json")
            values = st.one_of(st.sampled_from(words) if words else st.nothing(), patterned, anything)
        case NumberOrAuto() as number:
            factors = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
            values = _numbers(number) | st.just("auto") | factors.map(lambda factor: f"auto*{factor!r}")
        case Number() as number:
            values = _numbers(number)
        case PerChannel(number):
            values = st.lists(_numbers(number), min_size=1, max_size=4).map(tuple)
        case Prior(share=share):
            by_name = st.dictionaries(st.text(_CHARACTERS), _numbers(share), min_size=1, max_size=4)
            values = st.just("balanced") | _FILE_NAMES.map(lambda name: name + ".json") | by_name
        case Size():
            side = st.integers(1, 10_000)
            values = st.one_of(st.just("none"), side, st.tuples(side, side))
        case other:
            raise TypeError(f"say here which values {other} allows")
    return values if entry.default is not None else st.none() | values


def _numbers(number: Number) -> st.SearchStrategy[Any]:
    if number.whole:
        least = number.at_least if number.above is None else number.above + 1
        return st.integers(least, number.at_most or 2**63 - 1)
    least = number.at_least if number.above is None else number.above
    return st.floats(least, number.at_most, exclude_min=number.above is not None, allow_nan=False, allow_infinity=False)


def _outside(number: Number) -> st.SearchStrategy[Any]:
    """Numbers of the right type beyond a number's bounds."""
    beyond: list[st.SearchStrategy[Any]] = []
    if number.above is not None or number.at_least is not None:
        most = number.above if number.above is not None else number.at_least - 1  # type: ignore[operator]
        beyond.append(st.integers(-(10**30), most))
        if not number.whole:
            below = most if number.above is not None else number.at_least
            beyond.append(st.floats(None, below, exclude_max=number.above is None, allow_infinity=False))
    if number.at_most is not None:
        beyond.append(st.integers(number.at_most + 1, 10**30))
    return st.one_of(*beyond)


def refused_values(entry: Declaration) -> st.SearchStrategy[Any]:
    """Values, of whatever type, that a setting must not have, as it was declared."""
    match entry.allowed:
        case Flag():
            return st.sampled_from([0, 1, 2.5, "yes", "true", "", (), (True,)])
        case Text():
            return st.sampled_from([True, 0, 2.5, (), ("auto",)]) | refused_texts(entry)
        case Number() as number:
            others = [True, False, "1", "", (), (1,), math.nan, math.inf, -math.inf, 10**400, -(10**400)]
            return _outside(number) | st.sampled_from([*others, *([1.0, 2.5] if number.whole else [])])
        case PerChannel(number):
            one = _outside(number) | st.sampled_from([True, "1", (1,), math.nan, math.inf, 10**400])
            among = st.tuples(st.lists(_numbers(number), max_size=2), one).map(lambda found: (*found[0], found[1]))
            return among | st.sampled_from([(), 0.5, "0.5", "none", True])
        case Prior(share=share):
            one = _outside(share) | st.sampled_from([True, "1", (1,), math.nan, math.inf, 10**400])
            return one.map(lambda found: {"a": 0.5, "b": found}) | st.sampled_from(["", "equal", "x.JSON", 1, True, {}])
        case Size():
            side = st.integers(-(10**30), 0) | st.sampled_from([True, 2.5, "1", math.inf])
            pair = st.tuples(st.integers(1, 9), side).map(lambda found: found[::-1] if found[1] == 0 else found)
            return side | pair | st.sampled_from([(), (64,), (1, 2, 3), "", "None", "big", False])
    raise TypeError(f"say here which values {entry.allowed} refuses")


def refused_texts(entry: Declaration) -> st.SearchStrategy[str]:
    """What the command line must not take for a setting; nothing where it takes any text."""
    match entry.allowed:
        case Text(words, pattern) if words or pattern:
            texts = st.text(_CHARACTERS, max_size=9) | st.sampled_from(
                ["", "Auto", "auto ", "a:b:c", "cuda:", "x.JSON"]
            )
            return texts.filter(
                lambda text: text not in words and not (pattern and re.fullmatch(pattern, text, re.DOTALL))
            )
        case Number() as number:
            return _outside(number).map(str) | st.sampled_from(
                ["", "x", "1,2", *(["1.5"] if number.whole else ["nan"])]
            )
        case PerChannel(number):
            return _outside(number).map(str) | st.sampled_from(["", "a", "1,,2", "1;2", "1,nan", "inf", "none"])
        case Prior():
            return st.sampled_from(
                ["", "equal", "x.JSON", "{}", '{"a": 0}', '{"a": "1"}', '{"a": NaN}', "{", '{"a": 1, "a": 1}']
            )
        case Size():
            return st.sampled_from(["", "0", "-1", "1,2,3", "1.5", "64,0", "64,", "big", "None", "1x2"])
    return st.nothing()

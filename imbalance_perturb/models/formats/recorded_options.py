"""Find what a checkpoint says of its network beside the tensors: the architecture's name, options of training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

#: Tables in which training scripts keep their options.
_TABLES = (
    "hyper_parameters",
    "hparams",
    "args",
    "opt",
    "config",
    "cfg",
    "meta",
    "model_args",
    "model_config",
    "model_kwargs",
)
#: Names of the entry that names an architecture, the clearest first.
_NAMES = ("arch", "architecture", "model_name", "model_arch", "arch_name", "backbone", "backbone_name", "encoder",
          "encoder_name", "base_model", "model", "network", "net")  # fmt: skip
_MOST_DEPTH = 3
_MOST_TEXT = 200


def find_hints(content: object) -> dict[str, str | bool | int]:
    """The plain values (text, numbers, true and false, None as ``"none"``) of such tables, by their dotted key."""
    if not isinstance(content, Mapping):
        return {}
    top = {key: value for key, value in content.items() if isinstance(key, str) and key.lower() in _NAMES}
    tables = {key: value for key, value in content.items() if isinstance(key, str) and key.lower() in _TABLES}
    hints = {key: value for key, value in top.items() if isinstance(value, str) and 0 < len(value) <= _MOST_TEXT}
    return {**hints, **{key: value for name, table in tables.items() for key, value in _iter_values(table, name, 1)}}


def _iter_values(table: object, path: str, depth: int) -> Iterator[tuple[str, str | bool | int]]:
    if isinstance(table, argparse.Namespace | SimpleNamespace):
        table = vars(table)
    if not isinstance(table, Mapping) or depth > _MOST_DEPTH:
        return
    for key, value in table.items():
        name = f"{path}.{key}"
        if value is None:
            yield name, "none"
        elif isinstance(value, bool | int) or (isinstance(value, str) and 0 < len(value) <= _MOST_TEXT):
            yield name, value
        elif isinstance(value, Mapping | argparse.Namespace | SimpleNamespace):
            yield from _iter_values(value, name, depth + 1)


def recorded_arch(hints: Mapping[str, str | bool | int]) -> str | None:
    """The architecture's name where the file records one: at the top, or in one of its tables."""
    for wanted in _NAMES:
        for key, value in hints.items():
            table, _, name = key.rpartition(".")
            # 'encoder' or 'net' in options may be anything; at the top of a file, 'arch' alone is known to be a name.
            if (
                name.lower() == wanted
                and isinstance(value, str)
                and value != "none"
                and (table or wanted in _NAMES[:5])
            ):
                return value
    return None

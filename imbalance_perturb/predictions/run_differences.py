"""What differs between two accounts of what makes a run's rows, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.settings import TABLES
from imbalance_perturb.predictions.making import Making

_LIST, _FILES = "the list of images", "the images (some file has another size)"

#: Entries that must be the same, too, for a run to go on.
_SAME_PART = {"execution.device_name": "the device", "execution.batch_size": "the batch size", "images.shard": "shard"}


def _compared(table: str) -> dict[str, str]:
    known = declarations(TABLES[table])
    return {f"settings.{table}.{name}": name for name, entry in known.items() if entry.compared}


#: Entries that must be the same for rows to be of one run, and how people call them. A table stands for its entries.
#: Of the settings of preprocessing what they come to is compared.
_SAME_RUN = {
    "versions.imbalance_perturb": "imbalance-perturb",
    "versions.torch": "torch",
    "versions.torchvision": "torchvision",
    "versions.pillow": "Pillow",
    "versions.numpy": "NumPy",
    "versions.pydicom": "pydicom",
    "versions.pillow_heif": "pillow-heif",
    "versions.tifffile": "tifffile",
    "versions.imagecodecs": "imagecodecs",
    "model.sha256": "the model file",
    "model.arch": "arch",
    "model.outputs": "outputs",
    **_compared("model"),
    "classes": "the class counts or p*",
    **_compared("debias"),
    **_compared("run"),
    "preprocessing": "",
    "execution.precision": "the precision",
    "execution.low_dtype": "the low precision",
    "output": "",
    "images.list_sha256": _LIST,
    "images.files_sha256": _FILES,
}


def differences(then: Making, now: Making, *, part: bool = True) -> list[str]:
    """What is not the same in two accounts and would show in the rows, in words; empty where nothing is.

    Args:
        then, now: what makes the rows.
        part: whether they are to be of the same part of a run; else of parts of one run, on whatever machine.
    """
    words = []
    then_is, now_is = ("then", "now") if part else ("there", "here")
    for name, one, other in _entries(then.to_dict(), now.to_dict(), _SAME_RUN | (_SAME_PART if part else {})):
        # Of another list the files are others anyway.
        if one != other and not (name == _FILES and _LIST in words):
            told = all(value is None or isinstance(value, str | int | float) for value in (one, other))
            told = told and not any(isinstance(value, str) and len(value) > 40 for value in (one, other))
            words.append(f"{name} ({_as_text(one)} {then_is}, {_as_text(other)} {now_is})" if told else name)
    return words


def _entries(
    then: Mapping[str, Any], now: Mapping[str, Any], wanted: Mapping[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    for entry, name in wanted.items():
        one, other = (_look_up(account, entry) for account in (then, now))
        if name:
            yield name, one, other
            continue
        for key in sorted({*one, *other}):
            yield key, one.get(key), other.get(key)


def _look_up(account: Any, entry: str) -> Any:
    for key in entry.split("."):
        account = account[key]
    return account


def _as_text(value: Any) -> str:
    return "none" if value is None else str(value)

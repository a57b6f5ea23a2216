"""Find the sets of weights in what people save: mappings from names to tensors, under whatever keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from imbalance_perturb.errors import ModelFileError

#: Where training scripts put the tensors, in the order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
#: What is no network's: an optimiser's averages have the parameters' names in some files.
_OTHERS = re.compile(r"optim|sched|scaler|rng", re.IGNORECASE)
_MOST_DEPTH = 4
#: Words for an average of the parameters that a training script keeps beside them, and for what it averages.
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|avg|shadow|momentum|teacher|polyak)(_|$)|^target_|encoder_k$")
_TRAINED = re.compile(r"(^|_)(online|student|current)(_|$)|encoder_q$")


class WeightSet(NamedTuple):
    """Tensors by name under a ``key`` of the file (dotted; empty for the file itself), with the entries that are none.

    ``averaged``: whether the file's layout, not the key, says that they are an average.
    """

    key: str
    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    averaged: bool = False


def is_averaged(names: str) -> bool:
    """Whether dotted names, of keys and modules, say that what is below them is an average of parameters."""
    for name in reversed(names.lower().split(".")):
        if _TRAINED.search(name):
            return False
        if _AVERAGED.search(name):
            return True
    return False


def unnamed_averages(content: object) -> list[str]:
    """Keys of averages that are lists of tensors without names, which no network can be filled from."""
    if not isinstance(content, Mapping):
        return []
    tables = {key: value for key, value in content.items() if isinstance(key, str) and is_averaged(key)}
    lists = {key: value.values() if isinstance(value, Mapping) else [value] for key, value in tables.items()}
    return [key for key, found in lists.items() if any(_is_list_of_tensors(value) for value in found)]


def _is_list_of_tensors(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Tensor) for item in value)


def find_sets(content: object, path: Path) -> list[WeightSet] | nn.Module | dict[str, nn.Module]:
    """Find the sets of weights in a loaded object; whole modules by key, or one alone, where those were saved.

    Raises:
        ModelFileError: if there are none.
    """
    if isinstance(content, nn.Module):
        return content
    if not isinstance(content, Mapping) or not content:
        raise ModelFileError(
            f"{path}: the file holds {_what(content)}; expected a state_dict:"
            " save it with torch.save(model.state_dict(), ...)"
        )
    found = list(_iter_found(content, "", 0))
    sets = [one for one in found if isinstance(one, WeightSet)]
    modules = dict(one for one in found if not isinstance(one, WeightSet))
    if modules and (not sets or not any(one.key.rpartition(".")[2] in WRAPPERS for one in sets)):
        return modules
    if not sets:
        raise _nothing(content, path)
    rank = {key: index for index, key in enumerate(WRAPPERS)}
    return sorted(sets, key=lambda one: rank.get(one.key.rpartition(".")[2], len(rank)))


def _iter_found(content: Mapping[Any, Any], key: str, depth: int) -> Iterator[WeightSet | tuple[str, nn.Module]]:
    if _is_state_dict(content):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        yield WeightSet(key, tensors, tuple(str(name) for name in content if str(name) not in tensors))
        return
    for name, value in content.items():
        if not isinstance(name, str) or _OTHERS.search(name):
            continue
        inner = f"{key}.{name}" if key else name
        if isinstance(value, nn.Module):
            yield inner, value
        elif isinstance(value, Mapping) and depth < _MOST_DEPTH:
            # Lightning's WeightAveraging keeps the average where the parameters were, and these beside it.
            swapped = name == "state_dict" and "current_model_state" in content
            for found in _iter_found(value, inner, depth + 1):
                yield found._replace(averaged=swapped) if isinstance(found, WeightSet) else found


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    # Some savers add a version or an epoch to the tensors; a wrapper may have a tensor beside the network's.
    return _mostly_tensors(content) and not any(
        isinstance(value, nn.Module) or (isinstance(value, Mapping) and _mostly_tensors(value))
        for value in content.values()
    )


def _mostly_tensors(content: Mapping[Any, Any]) -> bool:
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    return len(tensors) * 2 > len(content) and any(tensor.ndim >= 2 for tensor in tensors)


def _what(content: object) -> str:
    if isinstance(content, Tensor):
        return f"a single tensor of shape {tuple(content.shape)}"
    if isinstance(content, Sequence) and content and all(isinstance(value, Tensor) for value in content):
        return f"a {type(content).__name__} of {len(content)} tensors without names"
    return f"an empty {type(content).__name__}" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def _nothing(content: Mapping[Any, Any], path: Path) -> ModelFileError:
    if {"state", "param_groups"} <= set(content):
        return ModelFileError(
            f"{path}: the file holds the state of an optimiser, not a network; save that with"
            " torch.save(model.state_dict(), ...)"
        )
    for key, value in content.items():
        if _is_list_of_tensors(value):
            return ModelFileError(
                f"{path}: the {len(value)} tensors under {str(key)!r} have no names; save the network's with"
                " torch.save(model.state_dict(), ...)"
            )
    keys = ", ".join(repr(str(key)) for key in list(content)[:8])
    return ModelFileError(
        f"{path}: no state_dict found in the file (its keys: {keys}); save one with torch.save(model.state_dict(), ...)"
    )

"""List the ways to read a file's tensor names: which of the tensors are one network's, by the names it has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from imbalance_perturb.models.architectures.derived_tensors import compute_weights
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.formats.weight_sets import is_averaged

#: Modules around a network, or around a part of it, that torch's own wrappers add to names wherever they stand.
_AROUND = frozenset({
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_module",
    "_fpw_module",
})  # fmt: skip
#: What serves training or measuring only, by a module's name, ...
_LOSS = re.compile(r"criterion|loss|loss_fn|loss_func|\w+_loss|\w+_criterion|(\w+_)?metrics?|loss_\w+", re.IGNORECASE)
#: ... by a tensor's, and by one that shows its module to be a metric of torchmetrics.
_IDLE = frozenset({
    "num_batches_tracked", "n_averaged", "num_updates", "total_ops", "total_params", "class_weights", "class_weight",
    "pos_weight", "cls_weights", "loss_weight", "loss_weights", "epoch", "step", "initted", "decay",
})  # fmt: skip
_METRIC = frozenset({
    "tp", "fp", "tn", "fn", "confmat", "correct", "mean_value", "sum_value", "max_value", "min_value", "measure",
    "sum_squared_error", "preds", "target",
})  # fmt: skip
#: Tensors of a network itself that are in no module of it.
_TOKENS = frozenset({
    "class_token", "cls_token", "dist_token", "reg_token", "register_tokens", "mask_token", "pos_embed",
    "pos_embedding", "positional_embedding", "position_embedding", "absolute_pos_embed",
})  # fmt: skip
_MOST_READINGS = 200
#: Names nested in one another deeper than any network's.
_MOST_DEPTH = 30


class Reading(NamedTuple):
    """Tensors that may be one network's, by the names that it may have for them.

    Attributes:
        where: the prefix in the file that they stand under, ending in a dot, or nothing.
        place: the same with the key in the file, for messages.
        tensors: by name below that.
        outside: the file's other tensors, by the file's names.
        loose: of those below ``where``, by the file's names, what is no layer of a network: left out of ``tensors``.
        averaged: whether they are an average of parameters.
    """

    where: str
    place: str
    tensors: dict[str, Tensor]
    outside: dict[str, Tensor]
    loose: dict[str, Tensor]
    averaged: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def serves_training(names: Iterable[str]) -> set[str]:
    """Of dotted tensor names those that serve a loss, a metric or a counter, and no prediction."""
    names = list(names)
    metrics = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in _METRIC}
    return {
        name
        for name in names
        if name.rpartition(".")[2] in _IDLE
        or ("." in name and name.rpartition(".")[0] in metrics)
        or any(_LOSS.fullmatch(part) for part in name.split(".")[:-1])
    }


def clean(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors by names without those of torch's wrappers, weights in parts computed; with notes on both."""
    named, removed = dict(tensors), set[str]()
    for around in (_AROUND | {"module"}, _AROUND):  # as far as no two names become one
        parted = [(name.split("."), tensor) for name, tensor in tensors.items()]
        cleaned = {
            ".".join([*(part for part in parts[:-1] if part not in around), parts[-1]]): tensor
            for parts, tensor in parted
        }
        if len(cleaned) == len(tensors):
            named, removed = cleaned, {part for parts, _ in parted for part in parts[:-1] if part in around}
            break
    note = f"wrappers were removed from the tensors' names: {', '.join(sorted(removed))}"
    computed, notes = compute_weights(named)
    return computed, ((note, *notes) if removed else notes)


def find_readings(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], anchors: Iterable[str]) -> list[Reading]:
    """The readings in which a tensor of one of the names ``anchors`` is the network's.

    Args:
        tensors: of the checkpoint, by their names or by cleaned ones.
    """
    wanted = tuple(anchors)
    within = tuple(f".{name}" for name in wanted)
    wheres: dict[str, None] = {}
    for name in tensors:
        if name.startswith(wanted) or name.endswith(within):
            found = [name[: -len(anchor)] for anchor in wanted if name == anchor or name.endswith(f".{anchor}")]
            wheres.update(dict.fromkeys(found))
    # Parts of a network may have the names of another; the network itself stands less deep than they do.
    shallow = sorted(wheres, key=lambda where: where.count("."))[:_MOST_READINGS]
    return [read_below(checkpoint, tensors, where) for where in shallow]


def read_below(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], where: str, inner: Sequence[str] = ()) -> Reading:
    """The reading of what lies below a prefix, without what serves training and what lies below ``inner`` prefixes."""
    idle = serves_training(tensors)
    inside, outside, loose = {}, {}, {}
    for name, tensor in tensors.items():
        below = name.removeprefix(where)
        if not name.startswith(where) or any(name.startswith(other) for other in inner):
            outside[name] = tensor
        elif name in idle or ("." not in below and below not in _TOKENS):
            loose[name] = tensor
        else:
            inside[below] = tensor
    averages = [name.rpartition(".")[0] for name in checkpoint.tensors if name.rpartition(".")[2] == "n_averaged"]
    place = f"{checkpoint.key}.{where}".strip(".")
    return Reading(
        where,
        place,
        inside,
        outside,
        loose,
        is_averaged(place)
        or any(f"{place}.".startswith(f"{key}.") for key in checkpoint.averaged)
        or any(not module or where.startswith(f"{module}.") for module in averages),
    )


def trunk(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Reading:
    """The reading of last resort, to compare with: below every name that four in five of the tensors share."""
    where, names = "", list(tensors)
    for _ in range(_MOST_DEPTH):
        counts: dict[str, int] = {}
        for name in names:
            first, dot, _ = name[len(where) :].partition(".")
            if dot:
                counts[first] = counts.get(first, 0) + 1
        first = max(counts, key=lambda key: counts[key], default="")
        if not first or counts[first] * 5 < len(names) * 4 or is_part(first):
            break
        where = f"{where}{first}."
        names = [name for name in names if name.startswith(where)]
    return read_below(checkpoint, tensors, where)


def is_part(name: str) -> bool:
    """Whether a module of this name is a part of a network, not the network itself, in most that there are."""
    return bool(re.fullmatch(r"features|layers?\d*|blocks?\d*|stages?|\d+|trunk_output", name))


def siblings(reading: Reading, idle: set[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Modules beside a reading or beside one around it: their names in the file, and tensors below them.

    Args:
        idle: names to leave aside.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    around = reading.where.split(".")[:-1]
    for name, tensor in reading.outside.items():
        parts = name.split(".")
        same = next((i for i, (a, b) in enumerate(zip(parts, around, strict=False)) if a != b), len(around))
        if name in idle or same >= len(parts) - 1:
            continue
        groups.setdefault(".".join(parts[: same + 1]), {})[".".join(parts[same + 1 :])] = tensor
    for group, inside in groups.items():
        path = group
        for _ in range(_MOST_DEPTH):
            first = {name.partition(".")[0] for name in inside}
            if len(first) != 1 or not all("." in name for name in inside):
                break
            (child,) = first
            path, inside = f"{path}.{child}", {name.partition(".")[2]: tensor for name, tensor in inside.items()}
        yield path, inside


def numbered(reading: Reading, children: tuple[str, ...]) -> Reading:
    """The reading of ``nn.Sequential(*network.children())``, which numbers its modules, by the modules' own names.

    Args:
        children: of the network in their order, the head last; what comes at its number or later is in the head.
    """
    last = len(children) - 1
    tensors = {}
    for name, tensor in reading.tensors.items():
        first, _, rest = name.partition(".")
        number = int(first) if first.isascii() and first.isdecimal() and len(first) < 4 else None
        if number is not None:
            name = f"{children[number]}.{rest}" if number < last else f"{children[last]}.{first}.{rest}"
        tensors[name] = tensor
    return reading._replace(tensors=tensors)

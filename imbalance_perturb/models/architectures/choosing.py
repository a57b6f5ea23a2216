"""Choose among the readings of a file that fit a network, or refuse; say what of the file was left out."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError, first_few
from imbalance_perturb.models.architectures.filling import Built
from imbalance_perturb.models.architectures.readings import Reading, serves_training, siblings
from imbalance_perturb.models.architectures.recognition import Match
from imbalance_perturb.models.formats.checkpoint import Checkpoint

_FACTORY = "build the whole network with --factory package.module:function"
_NORMALISER = re.compile(r"norm|standardi[sz]|preproc|transform", re.IGNORECASE)
#: Names of tensors that say how training normalised its images.
_STATISTICS = re.compile(r"(\w+_)?(mean|std|stdev)")


class Fit(NamedTuple):
    """A reading that a network fits.

    ``tensors``: by the network's names; ``used``: of those outside of the reading, by the file's names, what is part
    of the network (its head); ``notes``: what was made of names.
    """

    reading: Reading
    network: Match | Built
    tensors: dict[str, Tensor]
    used: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Where it stands and what it is, for a message."""
        heads = sorted({name.rpartition(".")[0] for name in self.used})
        beside = f" with {first_few(heads, 1)}" if heads else ""
        return f"{_place(self)}{beside} ({self.network.arch}, {self.network.num_classes} classes)"


class Asked(NamedTuple):
    """What settles a choice: ``weights``, ``ema`` or ``model``, as the user says; C, where the caller knows it."""

    weights: str | None = None
    num_classes: int | None = None


class Remainder(NamedTuple):
    """What is said of the tensors that are not the network's, and a layer that stands in front of it."""

    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    front: nn.Module | None = None


class Normalise(nn.Module):
    """Subtract a mean from each channel and divide by a standard deviation, as the layer in front of a network does."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, C, H, W) images."""
        return (x - self.mean) / self.std


def choose(fits: Sequence[Fit], path: Path, asked: Asked) -> tuple[Fit, tuple[str, ...]]:
    """Choose the one reading that is meant, with notes on the others.

    Raises:
        ArchitectureError: if two remain whose tensors differ, or none of those asked for is there.
    """
    left, weights, num_classes = list(fits), asked.weights, asked.num_classes
    notes: list[str] = []
    if weights is not None:
        left = [fit for fit in left if fit.reading.averaged == (weights == "ema")]
        if not left:
            kind = "averaged weights" if weights == "ema" else "weights but averaged ones"
            raise ArchitectureError(
                f"{path}: --weights {weights}: the file has no {kind}; it has {_list(fits)}: leave the option out"
            )
        others = [fit for fit in fits if fit not in left]
        notes += [f"--weights {weights}: not used is {_list(others)}"] if others else []
    alike = [fit for fit in left if fit.network.num_classes == num_classes]
    if alike and len(alike) < len(left):
        others = [fit for fit in left if fit not in alike]
        notes.append(f"taken is what has {num_classes} classes, as COUNTS has; not used is {_list(others)}")
        left = alike
    first = next((fit for fit in left if not fit.reading.averaged), left[0])
    others = [fit for fit in left if fit is not first]
    if any(not _same(first, other) for other in others):
        raise ArchitectureError(f"{path}: the file holds more than one network: {_list(left)}; {_way_out(left)}")
    if others:
        notes.append(f"the same tensors stand twice in the file, in {_list([first, *others])}")
    elif first.reading.averaged and weights is None:
        where = f", under {first.reading.place!r}," if first.reading.place else ""
        notes.append(
            f"the weights{where} are called an average over training (ema, swa, teacher); the file has no others"
        )
    return first, tuple(notes)


def _place(fit: Fit) -> str:
    return repr(fit.reading.place) if fit.reading.place else "the file itself"


def _list(fits: Sequence[Fit]) -> str:
    return first_few([fit.title for fit in fits], 4)


def _way_out(fits: Sequence[Fit]) -> str:
    averaged = [fit for fit in fits if fit.reading.averaged]
    trained = [fit for fit in fits if not fit.reading.averaged]
    if averaged and trained:
        one, other = (_place(found[0]) for found in (averaged, trained))
        return f"say which is meant: --weights ema takes {one}, --weights model {other}"
    if len({fit.reading.where for fit in fits}) == 1:
        return f"give COUNTS, if that tells, or {_FACTORY}"
    return f"save the right one alone, or {_FACTORY}"


def _same(one: Fit, other: Fit) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor.shape == other.tensors[name].shape and torch.equal(tensor, other.tensors[name])
        for name, tensor in one.tensors.items()
    )


def remainder(fit: Fit, fits: Sequence[Fit], checkpoint: Checkpoint, path: Path, *, whole: bool) -> Remainder:
    """Say what of the file is not in the network, and refuse where that may change its predictions.

    Args:
        whole: whether the user's own function builds all of the network, so that nothing belongs in front of it.

    Raises:
        ArchitectureError: naming the tensors that may be layers before or after the network.
    """
    rivals = [other.reading.where for other in fits if not fit.reading.where.startswith(other.reading.where)]
    used = {name for other in fits if other.reading.where in rivals for name in other.used}
    one_set = next((key for key in checkpoint.sets if f"{fit.reading.where}".startswith(f"{key}.")), None)
    here = {
        name: tensor
        for name, tensor in {**fit.reading.outside, **fit.reading.loose}.items()
        if name not in fit.used | used
        and (one_set is None or name.startswith(f"{one_set}."))
        and not any(name.startswith(where) for where in rivals)
    }
    front, in_front = _find_front(fit, here)
    if front is not None and whole:
        raise ArchitectureError(
            f"{path}: a layer that normalises the input stands in front of the network ({first_few(in_front)}), which"
            " the network of --factory does not have; let it build that layer too"
        )
    here = {name: tensor for name, tensor in here.items() if name not in in_front}
    idle = serves_training(here)
    others = {name: tensor for name, tensor in here.items() if name not in idle}
    statistics = {name: t for name, t in others.items() if _is_statistic(name, t)}
    if not whole:
        _refuse_layers(fit, {name: t for name, t in others.items() if name not in statistics}, path)
    notes, assumptions = [], []
    named = [name for name in here if not name.endswith("num_batches_tracked") and name not in statistics]
    if named:
        tensor = "tensor" if len(named) == 1 else "tensors"
        notes.append(f"left out {len(named)} {tensor}: {first_few(named, 4)}")
    unknown = [name for name in named if name in others]
    if unknown and not whole:
        assumptions.append(
            f"{first_few(unknown)} beside the network {'was' if len(unknown) == 1 else 'were'} left out, as no part of"
            f" it; if the network uses them, {_FACTORY}"
        )
    if statistics:
        shown = "; ".join(f"{name} {_values(tensor)}" for name, tensor in list(statistics.items())[:4])
        assumptions.append(
            f"left out {len(statistics)} tensors beside the network: {shown}; they are taken for how training"
            " normalised its images, which --mean and --std say"
        )
    if front is not None:
        assumptions.append(
            f"the network normalises its input itself ({in_front[0].rpartition('.')[0]}: mean {_values(front.mean)},"
            f" std {_values(front.std)}); unless training normalised it once more, say --mean 0,0,0 --std 1,1,1"
        )
    return Remainder(tuple(notes), tuple(assumptions), front)


def where_notes(fit: Fit, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say under which key and prefix of the file the network's tensors stand."""
    key = next((key for key in checkpoint.sets if fit.reading.where.startswith(f"{key}.")), None)
    prefix = fit.reading.where.removeprefix(f"{key}.") if key else fit.reading.where
    unused = [
        other for other in checkpoint.sets if other != key and not any(n.startswith(f"{other}.") for n in fit.used)
    ]
    return (
        *([f"the tensors were taken from {key!r} of the file"] if key else []),
        *([f"not used are the tensors under {first_few(list(map(repr, unused)))}"] if unused and key else []),
        *([f"the prefix {prefix!r} was removed from the tensors' names"] if prefix else []),
        *fit.notes,
    )


def put_in_front(network: nn.Module, front: nn.Module | None) -> nn.Module:
    """The network behind a layer."""
    if front is None:
        return network
    return nn.Sequential(OrderedDict([("normalise", front), ("network", network)])).eval()


def _is_statistic(name: str, tensor: Tensor) -> bool:
    return bool(_STATISTICS.fullmatch(name.rpartition(".")[2])) and tensor.numel() <= 4 and tensor.is_floating_point()


def _values(tensor: Tensor) -> str:
    return ",".join(f"{value:.4g}" for value in tensor.flatten().tolist())


def _find_front(fit: Fit, here: Mapping[str, Tensor]) -> tuple[Normalise | None, list[str]]:
    """A layer with nothing but a mean and a std before the network: by its number, or by its name."""
    channels = fit.network.in_channels
    for path, inside in siblings(fit.reading, set()):
        mean, std = (next((key for key in inside if key.endswith(end)), "") for end in ("mean", "std"))
        if len(inside) != 2 or not (mean and std) or f"{path}.{mean}" not in here:
            continue
        parent, _, name = path.rpartition(".")
        rival = fit.reading.where.removeprefix(f"{parent}." if parent else "").partition(".")[0]
        numbers = name.isdecimal() and rival.isdecimal()
        if not (int(name) < int(rival) if numbers else _NORMALISER.search(name)):
            continue
        values = inside[mean], inside[std]
        wide = {1, channels} if channels else {1, 3, 4}
        if all(tensor.numel() in wide for tensor in values) and bool((values[1] > 0).all()):
            return Normalise(*values), [f"{path}.{mean}", f"{path}.{std}"]
    return None, []


def _refuse_layers(fit: Fit, others: Mapping[str, Tensor], path: Path) -> None:
    """Refuse where a layer beside the network takes what it gives, gives what it takes, or sees the image itself."""
    classes, channels = fit.network.num_classes, fit.network.in_channels
    for name, tensor in others.items():
        after = tensor.ndim == 2 and tensor.shape[1] == classes
        before = tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3] and channels in tensor.shape[:2]
        if "." in name.removeprefix(fit.reading.where) and (after or before):
            raise ArchitectureError(
                f"{path}: the tensors of {fit.title} are a whole network, but {name} of shape {tuple(tensor.shape)}"
                f" may be a layer {'after' if after else 'before'} it: if it is, {_FACTORY}; else save the network"
                " alone"
            )

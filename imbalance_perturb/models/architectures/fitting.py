"""Fit a torchvision architecture to each reading of a file's tensors, also with its head beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from imbalance_perturb.models.architectures.choosing import Fit
from imbalance_perturb.models.architectures.readings import (
    Reading,
    clean,
    find_readings,
    numbered,
    read_below,
    serves_training,
    siblings,
    trunk,
)
from imbalance_perturb.models.architectures.recognition import (
    Difference,
    Match,
    Shapes,
    canonical_names,
    family_key,
    is_auxiliary,
    likeness,
)
from imbalance_perturb.models.architectures.skeleton import is_counter, skeleton
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.formats.weight_sets import is_averaged

#: How to match shapes: an architecture of its own choice, or the one of this name.
Matcher = Callable[[Shapes, str | None], Match | tuple[str, Difference]]

#: For families that run their modules one after another, with flattening before the last: these modules.
_CHILDREN = {
    "layer1.": ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"),
    "trunk_output.": ("stem", "trunk_output", "avgpool", "fc"),
    "features.1.block.": ("features", "avgpool", "classifier"),  # MobileNetV3
    "features.1.0.block.": ("features", "avgpool", "classifier"),  # EfficientNet
    "features.0.weight": ("features", "avgpool", "classifier"),  # VGG, AlexNet
}
#: A head beside a network has no more tensors than this.
_MOST_HEAD = 60


class Closest(NamedTuple):
    """The architecture that is closest to a reading: what part is alike (2: all but the head), and what not."""

    likeness: float
    arch: str
    difference: Difference


class Fits(NamedTuple):
    """All readings that fit, or else what is closest to one of them.

    ``tensors``: all of the file, by cleaned names; ``notes``: what holds for every reading.
    """

    found: list[Fit]
    closest: Closest | None
    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def fit_readings(checkpoint: Checkpoint, names: list[str], match: Matcher) -> Fits:
    """Try each reading of a checkpoint.

    Args:
        names: of the architectures that are possible.
    """
    tensors, notes = clean(checkpoint.tensors)
    keys = list(dict.fromkeys(filter(None, map(family_key, names))))
    attempts: list[tuple[Reading, str | None]] = [
        (reading, None) for reading in find_readings(checkpoint, tensors, keys)
    ]
    fits, closest = _try_all(attempts, match)
    inner = [fit.reading.where for fit in fits]
    for reading, _ in attempts:
        # A network around another, such as an average of it that a callback keeps in the module itself.
        if any(where != reading.where and where.startswith(reading.where) for where in inner):
            fits += _try_all([(read_below(checkpoint, tensors, reading.where, inner), None)], match)[0]
    own = {fit.reading.where + name for fit in fits if not fit.used for name in fit.reading.tensors}
    fits = [fit for fit in fits if not fit.used & own]  # nothing is the head of two networks
    if not fits and (closest is None or not closest.difference.body_fits):
        by_number = list(_numbered_readings(checkpoint, tensors, keys))
        more, other = _try_all(by_number, match)
        fits = more
        if other is not None and (closest is None or other.likeness > closest.likeness):
            closest = other
    if not fits and closest is None:
        fits, closest = _try_all([(trunk(checkpoint, tensors), None)], match)
    return Fits(fits, None if fits else closest, tensors, notes)


def _numbered_readings(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], keys: list[str]
) -> Iterator[tuple[Reading, str | None]]:
    for key in keys:
        children = next((modules for start, modules in _CHILDREN.items() if key.startswith(start)), None)
        if children is None:
            continue
        first, _, rest = key.partition(".")
        for reading in find_readings(checkpoint, tensors, [f"{children.index(first)}.{rest}"]):
            yield numbered(reading, children), "its modules are numbered as in nn.Sequential(*network.children())"


def _try_all(attempts: list[tuple[Reading, str | None]], match: Matcher) -> tuple[list[Fit], Closest | None]:
    fits: list[Fit] = []
    closest: Closest | None = None
    for reading, note in attempts:
        found = _fit(reading, match)
        if isinstance(found, tuple):
            near = Closest(2.0 if found[1].body_fits else likeness(found[0], reading.shapes), *found)
            closest = near if closest is None or near.likeness > closest.likeness else closest
        else:
            fits += [fit._replace(notes=(note, *fit.notes)) for fit in found] if note else found
    return fits, closest


def _fit(reading: Reading, match: Matcher) -> list[Fit] | tuple[str, Difference]:
    """The ways in which an architecture fits: with the head that the reading has, with one beside it."""
    tensors = _by_canonical_name(reading.tensors)
    found = match(_shapes(tensors), None)
    if isinstance(found, Match):
        own = [Fit(reading, found, tensors)]
        name = found.arch
    elif found[1].body_fits:
        own, name = [], found[0]
    else:
        return _fit_with_foreign_head(reading, found, match)
    base = skeleton(name)
    if not own and any(key.startswith(f"{base.head}.") for key in tensors):
        return found  # type: ignore[return-value]
    body = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{base.container}.")}
    rest = {} if own else {key: tensor for key, tensor in tensors.items() if key not in body}
    place = base.head if rest else base.container
    beside, refused = _heads_beside(reading, {**body, **rest}, place, name, match)
    if own or beside:
        return own + beside
    return refused or found  # type: ignore[return-value]


def _fit_with_foreign_head(
    reading: Reading, found: tuple[str, Difference], match: Matcher
) -> list[Fit] | tuple[str, Difference]:
    """Fit the network where all that the closest architecture has no module for is its head by another name."""
    base = skeleton(found[0])
    own = {key.partition(".")[0] for key in base.shapes}
    foreign = {
        key
        for key in reading.tensors
        if key.partition(".")[0] not in own and not is_counter(key) and not is_auxiliary(key)
    }
    if not foreign or any(key.startswith(f"{base.head}.") for key in reading.tensors):
        return found
    body = {key: tensor for key, tensor in reading.tensors.items() if key not in foreign}
    if not any(key.startswith(tuple(f"{name}." for name in own)) for key in body):
        return found
    names = frozenset(reading.where + key for key in foreign)
    outside = {**reading.outside, **{reading.where + key: reading.tensors[key] for key in foreign}}
    fits = _fit(reading._replace(tensors=body, outside=outside), match)
    if isinstance(fits, tuple):
        return fits if fits[1].body_fits else found
    # Anything else in the module of the network itself is likely to be a part of it.
    return [fit for fit in fits if names <= fit.used] or found


def _heads_beside(
    reading: Reading, body: dict[str, Tensor], place: str, name: str, match: Matcher
) -> tuple[list[Fit], tuple[str, Difference] | None]:
    idle = serves_training(reading.outside)
    groups = {
        path: {key: tensor for key, tensor in inside.items() if not is_counter(key)}
        for path, inside in siblings(reading, idle)
        if len(inside) <= _MOST_HEAD and any(tensor.ndim > 1 for tensor in inside.values())
    }
    averaged = [path for path in groups if is_averaged(path)]
    if averaged and len(averaged) < len(groups):
        groups = {path: inside for path, inside in groups.items() if (path in averaged) == reading.averaged}
    trials = [([path], inside) for path, inside in groups.items()]
    if len(groups) > 1 and sum(map(len, groups.values())) <= _MOST_HEAD:
        # Layers of a head that the wrapper calls one after another.
        together = {
            f"{path.rpartition('.')[2]}.{key}": t for path, inside in groups.items() for key, t in inside.items()
        }
        trials.insert(0, (list(groups), together))
    fits: list[Fit] = []
    refused: tuple[str, Difference] | None = None
    for paths, inside in trials:
        if not any(key.rpartition(".")[2] == "weight" and tensor.ndim >= 2 for key, tensor in inside.items()):
            continue
        tensors = {**body, **{f"{place}.{key}": tensor for key, tensor in inside.items()}}
        found = match(_shapes(tensors), name)
        if isinstance(found, Match):
            used = frozenset(
                key for key in reading.outside if any(key.startswith(f"{path}.") for path in paths) and key not in idle
            )
            note = f"the head is {', '.join(map(repr, paths))} beside the network, and follows its pooled features"
            fits.append(Fit(reading, found, tensors, used, (note,)))
            if len(paths) > 1:
                break
        elif len(paths) > 1 and "--head-activation" in (found[1].remedy or ""):
            return [], found  # the layers follow one another, and only what stands between them is hidden
        elif refused is None or (found[1].remedy and not refused[1].remedy):
            refused = found
    return fits, refused


def _by_canonical_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[key] for key, name in canonical_names(tensors).items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

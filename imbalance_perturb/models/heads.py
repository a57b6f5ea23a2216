"""Rebuild a classification head that was replaced, from nothing but its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]

#: Modules that give a head its flat input: an architecture's own, which cannot be guessed when they are gone.
_SHAPING = (nn.Flatten, nn.AdaptiveAvgPool2d)


class Head(NamedTuple):
    """A rebuilt head: ``module`` has the file's tensor names below its own; ``note`` says what was assumed."""

    module: nn.Module
    num_classes: int
    note: str


class _Leaf(NamedTuple):
    name: str
    module: nn.Module
    position: int | None  # place in its Sequential, where names are numbers


def rebuild_head(shapes: Shapes, own: nn.Module, in_features: int, prefix: str) -> Head | str:
    """The head whose tensors are ``shapes`` (names relative to ``prefix``), or why it cannot be rebuilt.

    Args:
        shapes: of the file's tensors below the head.
        own: the architecture's own head, kept as far as the file agrees with it.
        in_features: length of the vector that a head of its own kind receives.
        prefix: the head's name, for messages.
    """
    if "weight" in shapes:
        leaf = _layer(shapes)
        if not isinstance(leaf, nn.Linear):
            return f"the head {prefix} is no Linear"
        return _checked(
            Head(leaf, leaf.out_features, f"the head {prefix} was replaced: {_describe([leaf])}"), leaf, in_features
        )
    kept = _agreeing(shapes, own)
    children = list(own.named_children()) if isinstance(own, nn.Sequential) else []
    if any(isinstance(module, _SHAPING) for _, module in children[len(kept) :]):
        return f"the head {prefix} was replaced together with the pooling or flattening before its Linear"
    rest = {name: shape for name, shape in shapes.items() if name.partition(".")[0] not in dict(kept)}
    leaves = _leaves(rest)
    if isinstance(leaves, str):
        return f"the head {prefix} has {leaves}"
    if not leaves or not isinstance(leaves[-1].module, nn.Linear):
        return f"the head {prefix} does not end in a Linear"
    modules, assumed = _with_activations(leaves, kept)
    replaced = [
        m for _, m in children[len(kept) :] if not isinstance(m, nn.Linear | nn.Dropout | nn.ReLU | nn.Identity)
    ]
    if assumed and replaced:
        own_activation = type(replaced[0]).__name__
        return f"the replaced head {prefix} does not show whether {own_activation} or ReLU stands between its Linears"
    head = nn.Sequential()
    for name, module in (*kept, *modules):
        _add(head, name, module)
    last = leaves[-1].module
    note = f"the head {prefix} was replaced: {_describe([module for _, module in modules])}"
    if assumed:
        note += "; a ReLU is assumed where a layer without tensors stands between two Linears"
    first = next((leaf.module for leaf in leaves if isinstance(leaf.module, nn.Linear)), None)
    before = [m for _, m in kept if isinstance(m, nn.Linear)]
    return _checked(Head(head, last.out_features, note), first, before[-1].out_features if before else in_features)


def _checked(head: Head, first: nn.Module | None, in_features: int) -> Head | str:
    if isinstance(first, nn.Linear) and first.in_features != in_features:
        return f"the head takes {first.in_features} features where the network gives {in_features}"
    return head


def _agreeing(shapes: Shapes, own: nn.Module) -> list[tuple[str, nn.Module]]:
    """The leading children of the architecture's own head that the file has unchanged."""
    kept: list[tuple[str, nn.Module]] = []
    if not isinstance(own, nn.Sequential):
        return kept
    for name, module in own.named_children():
        here = {key.partition(".")[2]: shape for key, shape in shapes.items() if key.partition(".")[0] == name}
        if here != {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}:
            break
        kept.append((name, module))
    return kept


def _leaves(shapes: Shapes, path: str = "") -> list[_Leaf] | str:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        child, _, rest = name.partition(".")
        if not rest:
            return f"a tensor of its own, {path}{name}"
        groups.setdefault(child, {})[rest] = shape
    # Numbers give the order; with names, the order in the file is the order of definition.
    names = sorted(groups, key=int) if all(name.isdecimal() for name in groups) else list(groups)
    leaves: list[_Leaf] = []
    for name in names:
        if "weight" not in groups[name]:
            inner = _leaves(groups[name], f"{path}{name}.")
            if isinstance(inner, str):
                return inner
            leaves += [leaf._replace(name=f"{name}.{leaf.name}", position=None) for leaf in inner]
            continue
        module = _layer(groups[name])
        if module is None:
            return f"a layer of unknown kind, {path}{name}"
        leaves.append(_Leaf(name, module, int(name) if name.isdecimal() else None))
    return leaves


def _layer(shapes: Shapes) -> nn.Module | None:
    """The layer with these tensors, on the device that is current; None if it is of no known kind."""
    weight, names = shapes.get("weight", ()), set(shapes) - {"num_batches_tracked"}
    if len(weight) == 2 and names <= {"weight", "bias"}:
        return nn.Linear(weight[1], weight[0], bias="bias" in names)
    if len(weight) == 1 and names == {"weight", "bias", "running_mean", "running_var"}:
        return nn.BatchNorm1d(weight[0])
    if len(weight) == 1 and names == {"weight", "bias"}:
        return nn.LayerNorm(weight[0])
    if weight == (1,) and names == {"weight"}:
        return nn.PReLU()
    return None


def _with_activations(
    leaves: list[_Leaf], kept: list[tuple[str, nn.Module]]
) -> tuple[list[tuple[str, nn.Module]], bool]:
    """The layers in order, with one ReLU in the first gap between each two Linears, and whether there was any."""
    modules: list[tuple[str, nn.Module]] = []
    active, assumed, index = True, False, None  # nothing stands before a first Linear but dropout
    for name, module in kept:
        if not isinstance(module, nn.Dropout):
            active = not isinstance(module, nn.Linear)
        index = int(name) if name.isdecimal() else None
    for leaf in leaves:
        adjacent = leaf.position is not None and index is not None and leaf.position == index + 1
        if not active and not adjacent:
            parent, _, name = leaf.name.rpartition(".")
            modules.append((f"{parent}.assumed_relu_{name}".lstrip("."), nn.ReLU()))
            assumed = active = True
        modules.append((leaf.name, leaf.module))
        if isinstance(leaf.module, nn.Linear):
            active = False
        elif isinstance(leaf.module, nn.PReLU):
            active = True
        index = leaf.position
    return modules, assumed


def _add(parent: nn.Module, name: str, module: nn.Module) -> None:
    first, _, rest = name.partition(".")
    if not rest:
        parent.add_module(first, module)
        return
    if not hasattr(parent, first):
        parent.add_module(first, nn.Sequential())
    _add(parent.get_submodule(first), rest, module)


def _describe(modules: list[nn.Module]) -> str:
    def one(module: nn.Module) -> str:
        name = type(module).__name__
        return f"Linear({module.in_features}→{module.out_features})" if isinstance(module, nn.Linear) else name

    return ", ".join(map(one, modules))

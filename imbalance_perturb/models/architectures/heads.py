"""Rebuild a classification head that was replaced, from its tensors' names and shapes and what the user says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from imbalance_perturb.config.settings import HEAD_ACTIVATIONS
from imbalance_perturb.models.architectures.head_layers import (
    Leaf,
    Shapes,
    find_order,
    is_number,
    make_layer,
    parse_layers,
)

#: Modules that give a head its flat input: an architecture's own, which cannot be guessed when they are gone.
_SHAPING = (nn.Flatten, nn.AdaptiveAvgPool2d)
#: Layers without tensors that do nothing when a network predicts.
_IDLE = (nn.Dropout, nn.Identity)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}
_CHOICES = "|".join(HEAD_ACTIVATIONS)
_FACTORY = "build the network with --factory package.module:function"
_SAY_IT = f"say it with --head-activation {_CHOICES}, or {_FACTORY}"


class HeadHints(NamedTuple):
    """What is known of a head beside its tensors' names and shapes.

    ``ordered``: whether the file lists them in the order of definition; ``activation``: what the user says stands
    between its Linears, one of ``HEAD_ACTIVATIONS``.
    """

    ordered: bool = False
    activation: str | None = None


class Head(NamedTuple):
    """A rebuilt head: ``module`` has the file's tensor names below its own, ``note`` says what it is.

    ``assumptions``: a sentence for what the file does not show, where another choice would change predictions.
    ``activated``: whether a layer without tensors had a place between its Linears.
    """

    module: nn.Module
    num_classes: int
    note: str
    assumptions: tuple[str, ...] = ()
    activated: bool = False


class Refusal(NamedTuple):
    """Why a head cannot be rebuilt, and what to do where it is something of its own."""

    reason: str
    remedy: str | None = None


class _Between(NamedTuple):
    """What stands between two consecutive Linears: places in ``leaves`` before which layers without tensors may be.

    ``shown``: of these the places that a missing number shows; ``hidden``: those that names, or the end of an inner
    Sequential, would not show.
    """

    shown: list[int]
    hidden: list[int]


def rebuild_head(
    shapes: Shapes, own: nn.Module, in_features: int, prefix: str, hints: HeadHints | None = None
) -> Head | Refusal:
    """The head whose tensors are ``shapes`` (names relative to ``prefix``), or why it cannot be rebuilt.

    Numbers are places in a Sequential: a missing one shows a layer without tensors, taken for a ReLU (the common
    case, stated as an assumption) unless the hints say otherwise. Names show neither order nor activations: the
    order is taken where shapes leave one, or where the file lists an order that they allow.

    Args:
        shapes: of the file's tensors below the head.
        own: the architecture's own head, kept as far as the file agrees with it.
        in_features: length of the vector that a head of its own kind receives.
        prefix: the head's name, for messages.
        hints: what else is known.
    """
    hints = hints or HeadHints()
    if "weight" in shapes:
        layer = make_layer(shapes)
        if not isinstance(layer, nn.Linear):
            return Refusal(f"the head {prefix} is no Linear", _FACTORY)
        if layer.in_features != in_features:
            return Refusal(f"the head takes {layer.in_features} features where the network gives {in_features}")
        return _finish(layer, [layer], prefix, (), activated=False)
    kept = _agreeing(shapes, own)
    children = list(own.named_children()) if isinstance(own, nn.Sequential) else []
    if any(isinstance(module, _SHAPING) for _, module in children[len(kept) :]):
        return Refusal(f"the head {prefix} was replaced together with the pooling or flattening before its Linear")
    rest = {name: shape for name, shape in shapes.items() if name.partition(".")[0] not in dict(kept)}
    nodes = parse_layers(rest)
    if isinstance(nodes, str):
        return Refusal(f"the head {prefix} has {nodes}")
    replaced = [module for _, module in children[len(kept) :]]
    if {node.name for node in nodes} - {name for name, _ in children}:
        # A Sequential of the user's own may begin with layers like the architecture's, and activate them otherwise.
        replaced += [module for _, module in kept if _activates(module)]
        kept = [(name, module) for name, module in kept if not _activates(module)]
    before = [Leaf((name,), module, own=True) for name, module in kept]
    widths = [leaf.module.out_features for leaf in before if isinstance(leaf.module, nn.Linear)]
    found = find_order(nodes, widths[-1] if widths else in_features, ordered=hints.ordered)
    if isinstance(found, str):
        return Refusal(f"the head {prefix} {found}", _FACTORY)
    return _assemble([*before, *found], replaced, prefix, hints.activation)


def _assemble(leaves: list[Leaf], replaced: list[nn.Module], prefix: str, activation: str | None) -> Head | Refusal:
    """The head of these layers in order, with activations between its Linears where there is room for one."""
    places: list[int] = []
    room = False
    for first, second in pairwise([i for i, leaf in enumerate(leaves) if isinstance(leaf.module, nn.Linear)]):
        between = _between(leaves, first, second)
        room = room or bool(between.shown or between.hidden)
        place = _place(between, leaves, first, second, prefix, activation)
        if isinstance(place, Refusal):
            return place
        places += [] if place is None else [place]
    assumptions: tuple[str, ...] = ()
    if places and activation is None:
        others = [module for module in replaced if _activates(module) and not isinstance(module, nn.ReLU)]
        if others:
            known = type(others[0]).__name__
            return Refusal(
                f"the replaced head {prefix} does not show whether {known} or ReLU stands between its Linears", _SAY_IT
            )
        assumptions = (
            f"the head {prefix} was replaced and does not show which activation stands between its Linears: ReLU, the"
            f" common one, is taken; --head-activation {_CHOICES} says which it is",
        )
    make = _ACTIVATIONS.get(activation or "relu")
    head, modules = nn.Sequential(), []
    for index, leaf in enumerate(leaves):
        if index in places and make is not None:
            modules.append(make())
            _add(head, (*leaf.path[:-1], f"activation_before_{leaf.path[-1]}"), modules[-1])
        _add(head, leaf.path, leaf.module)
        modules += [] if leaf.own else [leaf.module]
    return _finish(head, modules, prefix, assumptions, activated=room)


def _finish(
    head: nn.Module, modules: list[nn.Module], prefix: str, assumptions: tuple[str, ...], *, activated: bool
) -> Head:
    last = modules[-1]
    assert isinstance(last, nn.Linear)
    if last._parameters["bias"] is None:
        assumptions += (
            f"the head {prefix} has no bias and is taken for a plain Linear; a cosine classifier has the same tensors:"
            f" if it is one, {_FACTORY}",
        )
    if any(isinstance(module, nn.LayerNorm) for module in modules):
        assumptions += (
            f"the head {prefix} has a norm that is taken for LayerNorm; GroupNorm and norms of batches without running"
            f" statistics have the same tensors: if it is one, {_FACTORY}",
        )
    return Head(
        head, last.out_features, f"the head {prefix} was replaced: {_describe(modules)}", assumptions, activated
    )


def _activates(module: nn.Module) -> bool:
    return not isinstance(module, (*_IDLE, *_SHAPING)) and not module.state_dict()


def _between(leaves: Sequence[Leaf], first: int, second: int) -> _Between:
    between = _Between([], [])
    if any(isinstance(leaf.module, nn.PReLU) or _activates(leaf.module) for leaf in leaves[first + 1 : second]):
        return between  # an activation is there
    for place in range(first + 1, second + 1):
        shown, hidden = _unseen(leaves[place - 1], leaves[place])
        if shown or hidden:
            (between.shown if shown else between.hidden).append(place)
    return between


def _unseen(before: Leaf, after: Leaf) -> tuple[bool, bool]:
    """Whether layers without tensors stand between two layers by their numbers, and whether some may unseen."""
    level = next(i for i, (a, b) in enumerate(zip(before.path, after.path, strict=False)) if a != b)
    one, other = before.path[level], after.path[level]
    shown = hidden = False
    if is_number(one) and is_number(other):
        shown, hidden = int(other) - int(one) > 1, int(other) < int(one)
    elif not before.own:
        hidden = True
    if len(before.path) > level + 1:
        hidden = True  # an inner Sequential may end in anything without tensors
    for name in after.path[level + 1 :]:
        shown = shown or (is_number(name) and int(name) > 0)
        hidden = hidden or not is_number(name)
    return shown, hidden


def _place(
    between: _Between, leaves: Sequence[Leaf], first: int, second: int, prefix: str, activation: str | None
) -> int | Refusal | None:
    """Before which layer the activation between two Linears stands; None for no activation."""
    shown, hidden = between
    if activation == "none" or not (shown or hidden):
        return None
    if len(shown) + len(hidden) == 1 and (shown or activation is not None):
        return (shown or hidden)[0]
    what = f"the head {prefix} does not show %s between its Linears {leaves[first].name} and {leaves[second].name}"
    norms = ", ".join(type(leaf.module).__name__ for leaf in leaves[first + 1 : second])
    if shown:
        # Beside a norm there are two readings, such as Linear, ReLU, norm, Dropout: the user has to know of them.
        if activation is not None:
            return shown[0]
        after = type(leaves[shown[0] - 1].module).__name__
        return Refusal(
            what % f"on which side of {norms} an activation stands",
            f"--head-activation {_CHOICES} takes it right after the {after}, as the first layer without tensors; if it"
            f" stands elsewhere, {_FACTORY}",
        )
    if len(hidden) == 1:
        return Refusal(what % "which activation stands, if any,", _SAY_IT)
    return Refusal(
        what % f"whether an activation stands, and on which side of {norms},",
        f"{_FACTORY} (or say --head-activation none if there is none)",
    )


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


def _add(parent: nn.Module, path: tuple[str, ...], module: nn.Module) -> None:
    first, *rest = path
    if not rest:
        parent.add_module(first, module)
        return
    if first not in parent._modules:
        parent.add_module(first, nn.Sequential())
    _add(parent.get_submodule(first), tuple(rest), module)


def _describe(modules: list[nn.Module]) -> str:
    def one(module: nn.Module) -> str:
        name = type(module).__name__
        return f"Linear({module.in_features}→{module.out_features})" if isinstance(module, nn.Linear) else name

    return ", ".join(map(one, modules))

"""The layers of a head in the order that they follow one another, from their tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]

#: More than heads have: layers, and names nested in one another.
_MOST_LAYERS, _MOST_DEPTH = 100, 10
#: Orders are looked for until so many layers have been tried in a place.
_MOST_TRIES = 20_000


class Leaf(NamedTuple):
    """A layer with tensors, by the names on the way to it; ``own``: the architecture's, where that has it."""

    path: tuple[str, ...]
    module: nn.Module
    own: bool = False

    @property
    def name(self) -> str:
        """As the file has it, below the head's."""
        return ".".join(self.path)


class Node(NamedTuple):
    """A layer, or several below one name."""

    name: str
    inside: nn.Module | list[Node]


def parse_layers(shapes: Shapes, path: str = "") -> list[Node] | str:
    """The layers by name, nested as their names are: by number, else as the file lists them."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        child, _, rest = name.partition(".")
        if not rest:
            return f"a tensor of its own, {path}{name}"
        if name.count(".") > _MOST_DEPTH:
            return f"names nested in one another without end, {path}{name[:40]}"
        groups.setdefault(child, {})[rest] = shape
    nodes: list[Node] = []
    for name in sorted(groups, key=int) if all(map(is_number, groups)) else groups:
        inside = make_layer(groups[name]) if "weight" in groups[name] else parse_layers(groups[name], f"{path}{name}.")
        if inside is None:
            return f"a layer of unknown kind, {path}{name}"
        if isinstance(inside, str):
            return inside
        nodes.append(Node(name, inside))
    return nodes


def is_number(name: str) -> bool:
    """Whether a name is a place in a Sequential."""
    return name.isascii() and name.isdecimal() and len(name) < 10


def make_layer(shapes: Shapes) -> nn.Module | None:
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


def find_order(nodes: list[Node], width: int, *, ordered: bool) -> list[Leaf] | str:
    """The layers in the order in which they follow one another, from ``width`` features to a last Linear.

    Numbers are an order. Names are none, and safetensors files list them sorted: then there must be but one order
    in which shapes fit, or the file's own, where it means something (``ordered``), must be one of those. Else: why
    there is none, as a sentence without its subject.
    """
    listed = list(_flatten(nodes))
    linears = [leaf.module for leaf in listed if isinstance(leaf.module, nn.Linear)]
    if not linears or (_is_numbered(nodes) and not isinstance(listed[-1].module, nn.Linear)):
        return "does not end in a Linear"
    if len(listed) > _MOST_LAYERS:
        return f"has {len(listed):,} layers, more than can be put in order"
    try:
        orders = list(islice(_Orders().through(nodes, width), 2))
    except _TooManyOrdersError:
        orders = [[], []]
    if not orders:
        if not any(linear.in_features == width for linear in linears):
            return f"takes {linears[0].in_features} features where the network gives {width}"
        return "has layers that do not follow one another to a last Linear"
    if len(orders) == 1:
        return orders[0]
    if ordered and _follows(listed, width):
        return listed
    names = f"{', '.join(leaf.name for leaf in listed[:6])}{', …' if len(listed) > 6 else ''}"
    return f"has layers whose order neither names nor shapes tell ({names})"


def _is_numbered(nodes: list[Node]) -> bool:
    return all(
        is_number(node.name) and (not isinstance(node.inside, list) or _is_numbered(node.inside)) for node in nodes
    )


def _flatten(nodes: list[Node], path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    for node in nodes:
        if isinstance(node.inside, list):
            yield from _flatten(node.inside, (*path, node.name))
        else:
            yield Leaf((*path, node.name), node.inside)


def _follows(leaves: list[Leaf], width: int) -> bool:
    for leaf in leaves:
        after = _width_after(leaf.module, width)
        if after is None:
            return False
        width = after
    return isinstance(leaves[-1].module, nn.Linear)


def _width_after(module: nn.Module, width: int) -> int | None:
    """How many features a layer gives that receives ``width``; None if it does not take as many."""
    match module:
        case nn.Linear():
            return module.out_features if module.in_features == width else None
        case nn.BatchNorm1d():
            return width if module.num_features == width else None
        case nn.LayerNorm():
            return width if module.normalized_shape == (width,) else None
    return width


class _TooManyOrdersError(Exception):
    """More than need be tried: there is no single order among so many."""


class _Orders:
    """All orders of a head's layers in which each takes what the one before gives."""

    def __init__(self) -> None:
        self._tries = 0

    def through(self, nodes: list[Node], width: int) -> Iterator[list[Leaf]]:
        """Those that end in a Linear."""
        for leaves, _ in self._extend(nodes, width, ()):
            if isinstance(leaves[-1].module, nn.Linear):
                yield leaves

    def _extend(self, nodes: list[Node], width: int, path: tuple[str, ...]) -> Iterator[tuple[list[Leaf], int]]:
        if not nodes:
            yield [], width
            return
        numbered = all(is_number(node.name) for node in nodes)
        for index, node in enumerate(nodes[:1] if numbered else nodes):
            self._tries += 1
            if self._tries > _MOST_TRIES:
                raise _TooManyOrdersError
            for leaves, between in self._enter(node, width, path):
                for rest, after in self._extend(nodes[:index] + nodes[index + 1 :], between, path):
                    yield leaves + rest, after

    def _enter(self, node: Node, width: int, path: tuple[str, ...]) -> Iterator[tuple[list[Leaf], int]]:
        if isinstance(node.inside, list):
            yield from self._extend(node.inside, width, (*path, node.name))
        elif (after := _width_after(node.inside, width)) is not None:
            yield [Leaf((*path, node.name), node.inside)], after

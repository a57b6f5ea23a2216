"""Where a network can be cut in two, and the two parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from imbalance_perturb.errors import SettingsError, first_few, first_line
from imbalance_perturb.inference.acceleration.conversion import ARITHMETIC, LAYER
from imbalance_perturb.inference.hidden_stage.layer_graph import enclosing, run_noting, trace_layers
from imbalance_perturb.method.device_errors import pass_on_device_errors
from imbalance_perturb.method.module_state import frozen_eval, full_precision

#: Most of a forward pass that lies behind the layer that ``auto`` takes.
MOST_BEHIND = 0.3

#: Images of the trial; if another number of the graph is taken for theirs, the parts fail the check on other batches.
_IMAGES = 3

#: Largest difference of a logit, relative to the largest logit, of the two parts from the whole.
_TOLERANCE = 1e-4


class Cut(NamedTuple):
    """A layer behind which a network can be cut.

    ``layer``: its path, the outermost of those that end there; ``others``: the paths of the others. ``whole``: whether
    it holds layers of its own, as a block does and a convolution does not. ``behind``: the share of a forward pass's
    products that lies behind it. ``node``: whose value is its output. ``sizes``: those that are the number of images.
    """

    layer: str
    others: tuple[str, ...]
    whole: bool
    behind: float
    node: fx.Node
    sizes: frozenset[fx.Node]


class Staged(nn.Module):
    """A network cut in two: ``back`` of what ``front`` computes.

    Args:
        front: from images (N, C, H, W) to the output of ``layer``, (N, ...).
        back: from that to logits (N, K).
        layer: the path of the layer behind which it is cut.
        behind: the share of a forward pass's products that ``back`` has.
    """

    def __init__(self, front: nn.Module, back: nn.Module, layer: str, behind: float) -> None:
        super().__init__()
        self.front, self.back, self.layer, self.behind = front, back, layer, behind

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for x."""
        return self.back(self.front(x))  # type: ignore[no-any-return]


class Part(nn.Module):
    """One half, around its graph: a graph of layers, and none of operations as a file has it."""

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Return the half's output for x."""
        return self.layers(x)  # type: ignore[no-any-return]


def cut_network(network: nn.Module, at: str, x: Tensor) -> Staged:
    """Cut a network behind a layer.

    Args:
        network: frozen, in eval mode; it shares its parameters with the parts.
        at: the layer's path, as in the state_dict, or ``auto``: the first block behind which at most
            :data:`MOST_BEHIND` of a forward pass lies.
        x: one image (1, C, H, W) on the network's device.

    Raises:
        SettingsError: if it cannot be cut there, naming what can be had.
    """
    asked = f"perturb_at is {at}"
    try:
        graph = trace_layers(network)
        cuts = find_cuts(graph, x.expand(_IMAGES, *x.shape[1:]).contiguous())
    except Exception as error:  # tracing runs a network's own code on symbols, which raises anything
        pass_on_device_errors(error, x.device)
        raise SettingsError(
            f"{asked}, but this network cannot be cut in two: it does not run layer after layer for a tracer"
            f" ({first_line(error) or type(error).__name__}); use perturb_at input"
        ) from error
    cut = _choose(cuts, at, asked, graph)
    staged = Staged(*_part(graph, cut), cut.layer, cut.behind)
    _check(network, staged, x, asked)
    return staged


def find_cuts(graph: fx.GraphModule, x: Tensor) -> list[Cut]:
    """Find the layers behind which all that the rest needs of an image is their output, in the order of a forward pass.

    Args:
        graph: of :func:`trace_layers`.
        x: a batch (N, C, H, W) on its device.
    """
    found, cost = run_noting(graph, x)
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in order}
    of_images, ends = _of_images(graph), _last_nodes(order)
    sizes, told = _batch_sizes(found, of_images, len(x))
    crossing: set[fx.Node] = set()
    total, done, cuts = max(1, sum(cost.values())), 0, []
    paths = {enclosed for node in order for enclosed in list(enclosing(node.meta.get(LAYER, "")))[1:]}
    for node, index in order.items():
        done += cost.get(node, 0)
        if node in of_images and node not in told:
            crossing.add(node)
        crossing = {other for other in crossing if last_use[other] > index}
        layers = ends.get(node, [])
        if layers and crossing == {node} and _is_tensor_of_images(found[node], len(x)):
            layers.sort(key=len)
            whole = any(layer in paths for layer in layers)
            cuts.append(Cut(layers[0], tuple(layers[1:]), whole, 1 - done / total, node, sizes))
    return cuts


def _of_images(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on the input."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _last_nodes(order: dict[fx.Node, int]) -> dict[fx.Node, list[str]]:
    """For each node the layers whose last it is."""
    last: dict[str, fx.Node] = {}
    for node in order:
        if node.op not in ("placeholder", "output", "get_attr"):
            last |= dict.fromkeys(enclosing(node.meta.get(LAYER, "")), node)
    ends: dict[fx.Node, list[str]] = {}
    for layer, node in last.items():
        ends.setdefault(node, []).append(layer)
    return ends


def _is_tensor_of_images(shape: Any, images: int) -> bool:
    return isinstance(shape, torch.Size) and len(shape) > 1 and shape[0] == images


def _batch_sizes(
    found: dict[fx.Node, Any], of_images: set[fx.Node], images: int
) -> tuple[frozenset[fx.Node], set[fx.Node]]:
    """The nodes that are the number of images, and all that can be told from it: those, and arithmetic on them."""
    sizes = frozenset(node for node, value in found.items() if isinstance(value, int) and value == images)
    told = set(sizes)
    for node in found:  # in their order
        arithmetic = node.op == "call_function" and node.target in ARITHMETIC.values()
        if arithmetic and all(source in told or source not in of_images for source in node.all_input_nodes):
            told.add(node)
    return sizes, told


def _choose(cuts: list[Cut], at: str, asked: str, graph: fx.GraphModule) -> Cut:
    blocks = [cut for cut in cuts if cut.whole] or cuts
    if at == "auto":
        for cut in blocks:
            if cut.behind <= MOST_BEHIND:
                return cut
        raise SettingsError(
            f"{asked}, but this network has no block behind which at most {MOST_BEHIND:.0%} of a forward pass lies;"
            " use perturb_at input"
        )
    for cut in cuts:
        if at in (cut.layer, *cut.others):
            return cut._replace(layer=at)
    known = {layer for node in graph.graph.nodes for layer in enclosing(node.meta.get(LAYER, ""))}
    why = (
        "more than its output goes on behind that layer (a shortcut past it, or several values)"
        if at in known
        else "this network has no such layer"
    )
    names = first_few(sorted((cut.layer for cut in blocks), key=lambda layer: layer.count(".")), 12) or "none"
    raise SettingsError(f"{asked}, but {why}; it can be cut behind {names}, or use perturb_at input")


def _part(graph: fx.GraphModule, cut: Cut) -> tuple[Part, Part]:
    """The graph up to a node, and from there on."""
    nodes = list(graph.graph.nodes)
    at = nodes.index(cut.node) + 1
    front, back = fx.Graph(), fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in nodes[:at]:
        made[node] = front.node_copy(node, made.__getitem__)
    front.output(made[cut.node])
    stage = back.placeholder("h")
    again: dict[fx.Node, fx.Node] = {cut.node: stage}

    def fetched(node: fx.Node) -> fx.Node:
        """What the back needs of before the cut: the number of images, or what does not depend on them."""
        if node not in again:
            size = node in cut.sizes
            again[node] = back.call_method("size", (stage, 0)) if size else back.node_copy(node, fetched)
        return again[node]

    for node in nodes[at:]:
        if node.op == "output":
            back.output(fx.map_arg(node.args[0], fetched))
        else:
            again[node] = back.node_copy(node, fetched)
    return Part(_module(graph, front)), Part(_module(graph, back))


def _module(graph: fx.GraphModule, part: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(graph, part)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    return module


def _check(network: nn.Module, staged: Staged, x: Tensor, asked: str) -> None:
    """Refuse parts that are not the whole: a network may do other things in other batches than its trace says."""
    for images in (1, 2):
        batch = torch.cat([x, x.flip(3)])[:images]
        with torch.no_grad(), frozen_eval(network), frozen_eval(staged), full_precision(x.device):
            try:
                whole, parts = network(batch.clone()), staged(batch.clone())
            except Exception as error:  # whatever a graph fails on that was traced for another batch
                pass_on_device_errors(error, x.device)
                raise SettingsError(
                    f"{asked}, but the network cut in two there fails on a batch of {images}"
                    f" ({first_line(error)}); use perturb_at input"
                ) from error
        difference = float((whole - parts).abs().max() / whole.abs().max().clamp_min(1e-6))
        if not difference <= _TOLERANCE:
            raise SettingsError(
                f"{asked}, but cut in two there the network answers otherwise (by {difference:.2g} of the largest"
                " logit); use perturb_at input"
            )

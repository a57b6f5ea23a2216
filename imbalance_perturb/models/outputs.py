"""Find the logits in whatever a network returns: a tensor, or one of several in tuples, dicts and objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from imbalance_perturb.errors import ModelOutputError

#: What people call the logits beside other outputs, the clearest first.
_NAMES = ("logits", "out", "output", "preds")
#: How deep values are looked into, and how many: a list of a thousand hidden states is no list of logits.
_MOST_DEPTH, _MOST_TENSORS = 3, 200


class Attribute(str):
    """A step of a path that is an attribute's name, not a key."""

    __slots__ = ()


class Found(NamedTuple):
    """``path``: the steps (keys, positions, attributes) to the logits; ``note``: on it, where there is more beside."""

    path: tuple[Any, ...]
    note: str | None


class LogitsOf(nn.Module):
    """A network that returns more than logits, and of that the one tensor that was found to be them."""

    def __init__(self, network: nn.Module, path: tuple[Any, ...]) -> None:
        super().__init__()
        self.network, self.path = network, path

    def forward(self, x: Tensor) -> Tensor:
        """Return the (N, C) logits among the network's outputs."""
        return follow(self.network(x), self.path)


def follow(output: Any, path: tuple[Any, ...]) -> Tensor:
    """The tensor at a path that :func:`find_logits` found."""
    for step in path:
        output = getattr(output, step) if isinstance(step, Attribute) else output[step]
    return output  # type: ignore[no-any-return]


def find_logits(output: Any, images: int, num_classes: int | None = None) -> Found:
    """Find the tensor of logits in a network's output for so many images.

    Args:
        output: what it returned.
        images: N.
        num_classes: C where it is known: of several tensors with a row for each image, the one with C columns.

    Raises:
        ModelOutputError: if there is none, or nothing tells which; with the shapes.
    """
    if isinstance(output, Tensor):
        return Found((), None)
    tensors = list(_iter_tensors(output, (), 0))
    if not tensors:
        raise ModelOutputError(
            f"the model returned {_what(output)}; expected a tensor of (N, C) logits: wrap it so that it does"
        )
    candidates = {path: width for path, tensor in tensors if (width := _columns(tensor, images)) is not None}
    wide = {path: width for path, width in candidates.items() if width > 1} or candidates
    named = next((path for name in _NAMES for path in wide if path == (name,)), None)
    fitting = [path for path, width in wide.items() if width == num_classes]
    if named is not None and (num_classes is None or named in fitting):
        return Found(named, _note(output, named, wide[named]))
    chosen = fitting[0] if len(fitting) == 1 else named if not fitting else None
    if chosen is None and not fitting:
        only = list(wide) or [path for path, _ in tensors]
        chosen = only[0] if len(only) == 1 else None
    if chosen is None:
        raise ModelOutputError(_undecided(output, tensors, num_classes, len(fitting)))
    return Found(chosen, _note(output, chosen, wide.get(chosen)))


def _iter_tensors(output: Any, path: tuple[Any, ...], depth: int) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(output, Mapping):
        items = list(output.items())
    elif isinstance(output, Sequence) and hasattr(output, "_fields"):
        items = [(Attribute(name), getattr(output, name)) for name in output._fields]
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        items = list(enumerate(output))
    elif hasattr(output, "logits"):
        items = [(Attribute("logits"), output.logits)]
    if depth < _MOST_DEPTH:
        for step, value in items[:_MOST_TENSORS]:
            yield from _iter_tensors(value, (*path, step), depth + 1)


def _columns(tensor: Tensor, images: int) -> int | None:
    """C of a tensor that may be (N, C) logits: a row of numbers for each image."""
    rows = tensor.ndim >= 2 and len(tensor) == images and all(size == 1 for size in tensor.shape[2:])
    return tensor.shape[1] if rows and tensor.is_floating_point() else None


def _note(output: Any, path: tuple[Any, ...], width: int | None) -> str:
    *outer, last = path
    if outer:
        return f"the model returns values within values; {_show(path)} is taken as the logits"
    if isinstance(last, Attribute):
        return f"the model returns an object; its .{last} are taken"
    if isinstance(output, Mapping):
        return f"the model returns a dict; its {last!r} is taken as the logits"
    which = "first tensor" if last == 0 else f"tensor of {width} columns (number {last + 1})"
    values = f"{len(output)} values" if len(output) > 1 else "a tuple of one value"
    return f"the model returns {values}; the {which} is taken as the logits"


def _undecided(output: Any, tensors: list[tuple[tuple[Any, ...], Tensor]], classes: int | None, fitting: int) -> str:
    shown = ", ".join(f"{_show(path)} {tuple(tensor.shape)}" for path, tensor in tensors[:6])
    more = f" and {len(tensors) - 6} more" if len(tensors) > 6 else ""
    if fitting:
        why = f"{fitting} of them have a column for each of the {classes} classes"
    elif classes is not None:
        why = f"none of them has a column for each of the {classes} classes"
    else:
        why = "nothing tells which are the logits; give COUNTS, whose number of classes may, or"
    joint = " " if why.endswith("or") else "; "
    kind = "a dict" if isinstance(output, Mapping) else f"a {type(output).__name__}"
    return (
        f"the model returned {kind} with {shown}{more}: {why}{joint}wrap it so that it returns the (N, C) logits alone"
    )


def _show(path: tuple[Any, ...]) -> str:
    if len(path) == 1 and not isinstance(path[0], Attribute):
        return repr(path[0]) if isinstance(path[0], str) else f"number {path[0] + 1}"
    return "".join(f".{step}" if isinstance(step, Attribute) else f"[{step!r}]" for step in path)


def _what(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dict with {', '.join(map(repr, list(output)[:6])) or 'nothing in it'}, none of it a tensor"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {type(output).__name__} without a tensor in it"
    return type(output).__name__

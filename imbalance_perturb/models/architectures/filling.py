"""Put a file's tensors into a network, and say where they do not fit."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter

from imbalance_perturb.errors import ArchitectureError, ModelFileError, first_line
from imbalance_perturb.models.architectures.recognition import Difference, compare
from imbalance_perturb.models.architectures.skeleton import is_counter
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing

#: Parameters, and elements of them, that a small network may have beyond four times those in its file.
_MORE_PARAMETERS, _MORE_ELEMENTS = 1000, 2**24

#: What to do with a network that is not recognised.
OTHER_WAYS = (
    "name it with --arch (torchvision's name, or timm:NAME), or build it with --factory package.module:function"
)


class Built(NamedTuple):
    """A network with the file's tensors in it, in eval mode, and what is known of it.

    ``notes``: what was made of the file; ``assumptions``: what it does not show and would change predictions;
    ``preprocessing``: what is said of how images are prepared, where something is.
    """

    network: nn.Module
    kind: str
    arch: str
    num_classes: int
    in_channels: int | None
    fixed_size: tuple[int, int] | None
    notes: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
    preprocessing: OwnPreprocessing | None = None


@contextmanager
def in_proportion(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside: a network that a config describes is not built where it is far larger than its tensors in the file.

    Raises:
        RuntimeError: as soon as that is seen, before the parameters are filled.
    """
    left = [_MORE_PARAMETERS + 4 * len(tensors), _MORE_ELEMENTS + 4 * sum(t.numel() for t in tensors.values())]

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        left[0] -= 1
        left[1] -= 0 if parameter is None or isinstance(parameter, UninitializedParameter) else parameter.numel()
        if min(left) < 0:
            raise RuntimeError("its config describes a network far larger than the weights beside it")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def last_rows(checkpoint: Checkpoint, path: Path, preferred: tuple[str, ...] = ()) -> tuple[int, str]:
    """Find the number of classes, which are the rows of the head's weight, and that weight's name.

    Args:
        preferred: names that the head may have; by default it is the last layer that the network defines.

    Raises:
        ModelFileError: if the file has no layer.
    """
    layers = [name for name, tensor in checkpoint.tensors.items() if tensor.ndim in (2, 4) and name.endswith("weight")]
    named = [name for name in preferred if name in checkpoint.tensors]
    if not layers:
        raise ModelFileError(f"{path}: no layer in the file tells the number of classes; save the whole state_dict")
    head = (named or layers[-1:])[0]
    if not named and not checkpoint.ordered:
        head = _without_followers(checkpoint.tensors, layers)[-1]
    return checkpoint.tensors[head].shape[0], head


def _without_followers(tensors: dict[str, Tensor], layers: list[str]) -> list[str]:
    """Of layers in no order those that may be the head: no other takes as many features, or gives as many."""
    flat = [name for name in layers if tensors[name].ndim == 2]
    # Linears first and among themselves: three classes are no input of a convolution that takes three colours.
    for kind in (flat, layers):
        rows = Counter(tensors[name].shape[0] for name in kind)
        taken = {tensors[name].shape[1] for name in kind}
        ends = [name for name in kind if rows[tensors[name].shape[0]] == 1 and tensors[name].shape[0] not in taken]
        if ends:
            return ends
    return sorted(flat or layers)


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Load tensors into the network that must be theirs.

    Args:
        what: does not fit, for messages.

    Raises:
        ArchitectureError: if a tensor is left over, missing or of another shape.
    """
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items() if isinstance(t, Tensor)}
    difference = compare(
        {name: tuple(t.shape) for name, t in tensors.items() if not is_counter(name)},
        {name: shape for name, shape in expected.items() if not is_counter(name)},
    )
    if len(difference):
        raise mismatch(path, what, difference)
    try:
        put_tensors(network, tensors, assign=False)
    except RuntimeError as error:
        raise ArchitectureError(f"{path}: {what}: {first_line(error)}") from error


def put_tensors(network: nn.Module, tensors: dict[str, Tensor], *, assign: bool) -> None:
    """Load tensors whose names have been compared: all are there but counters, which eval mode does not read."""
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    # Some networks ask which version of themselves the names are of; it is the current one.
    state._metadata = getattr(network.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    network.load_state_dict(state, strict=False, assign=assign)


def mismatch(path: Path, what: str, difference: Difference, hint: str = "") -> ArchitectureError:
    """The error of tensors that do not fit a network, with what to do about it."""
    return ArchitectureError(f"{path}: {what} ({difference}); {hint}{difference.remedy or OTHER_WAYS}")


def named_error(error: BaseException) -> str:
    """What somebody else's code raised, for a message: its type and its first line."""
    return f"{type(error).__name__}: {first_line(error)}"

"""Build the network that a file's tensors belong to, by recognition, by name or by the user's own function."""

from __future__ import annotations

import difflib
import importlib
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError, ModelFileError, first_line
from imbalance_perturb.models.architectures.heads import HeadHints
from imbalance_perturb.models.architectures.recognition import (
    Difference,
    Match,
    canonical_names,
    compare,
    match_architecture,
    recognise,
)
from imbalance_perturb.models.architectures.skeleton import classification_names, is_counter
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.formats.trust import importable_from_here

_OTHER_WAYS = (
    "name it with --arch (torchvision's name, or timm:NAME), or build it with --factory package.module:function"
)
#: What a function of the user's or of another package may raise when it is called with wrong arguments.
_CALL_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    AssertionError,
    IndexError,
    OSError,
)
#: Of timm's builder: other files that it would load or download, unchecked.
_OTHER_FILES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class Built(NamedTuple):
    """A network with the file's tensors in it, in eval mode, and what is known of it.

    ``notes``: what was made of the file; ``assumptions``: what it does not show and would change predictions.
    """

    network: nn.Module
    kind: str
    arch: str
    num_classes: int
    in_channels: int | None
    fixed_size: tuple[int, int] | None
    notes: tuple[str, ...]
    assumptions: tuple[str, ...] = ()


def build_network(
    checkpoint: Checkpoint,
    path: Path,
    *,
    arch: str | None,
    factory: str | None,
    kind: str,
    head_activation: str | None = None,
) -> Built:
    """The network for a checkpoint's tensors.

    Args:
        arch: ``resnet50``, ``vit_b_16,image_size=384``, ``timm:NAME`` or None to recognise it.
        factory: ``package.module:function``, called with ``num_classes=``.
        kind: the file's format, to be named in the result.
        head_activation: what stands between the Linears of a replaced head, where the file does not show it.

    Raises:
        ArchitectureError: if there is no such network or the tensors do not fit it.
    """
    hints = HeadHints(checkpoint.ordered, head_activation)
    if factory is not None:
        return _noting_unused(_by_factory(checkpoint, path, factory), head_activation)
    if arch is None:
        return _by_recognition(checkpoint, path, kind, hints)
    name, options = parse_arch(arch)
    if name.startswith("timm:"):
        built = _by_timm(checkpoint, path, name.removeprefix("timm:"), options)
        return _noting_unused(built, head_activation)
    if name not in classification_names():
        close = difflib.get_close_matches(name, classification_names(), 3, 0.5)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"known are {', '.join(classification_names()[:5])}, ..."
        )
        raise ArchitectureError(f"--arch {name}: torchvision has no classification network of this name; {hint}")
    names = canonical_names(checkpoint.tensors)
    found = match_architecture(name, _shapes(checkpoint, names), hints, **options)
    if isinstance(found, Difference):
        raise _mismatch(path, f"the tensors do not fit --arch {name}", found)
    return _fill(found, checkpoint, names, path, kind, hints)


def _noting_unused(built: Built, head_activation: str | None) -> Built:
    if head_activation is None:
        return built
    note = f"--head-activation is of no use here: {built.arch} has no replaced head with layers that the file hides"
    return built._replace(notes=(*built.notes, note))


def parse_arch(text: str) -> tuple[str, dict[str, Any]]:
    """``name,key=value,...`` as name and builder arguments (numbers and true/false as such).

    Raises:
        ArchitectureError: if it is malformed.
    """
    name, *pairs = (part.strip() for part in text.split(","))
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"--arch {text}: {pair!r} is not key=value, as in vit_b_16,image_size=384")
        options[key] = _value(value)
    for key in ("num_classes", "weights", *_OTHER_FILES):
        if key in options:
            raise ArchitectureError(f"--arch {text}: leave out {key}, which the model file gives")
    return name, options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _by_recognition(checkpoint: Checkpoint, path: Path, kind: str, hints: HeadHints) -> Built:
    names = canonical_names(checkpoint.tensors)
    found = recognise(_shapes(checkpoint, names), hints)
    recorded = checkpoint.arch
    if not isinstance(found, Match):
        closest, difference = found
        hint = f"the file calls its network {recorded!r}: try --arch timm:{recorded}; otherwise " if recorded else ""
        raise _mismatch(path, f"the network is not recognised; the closest is {closest}", difference, hint)
    if recorded and recorded != found.arch:
        if _is_timm_name(recorded):
            # Some of timm's variants differ from torchvision's networks only in layers without tensors.
            raise ArchitectureError(
                f"{path}: the file calls its network {recorded!r}, but its tensors also fit torchvision's {found.arch};"
                f" say which it is: --arch timm:{recorded} or --arch {found.arch}"
            )
        found.notes.append(f"the file calls its network {recorded!r}")
    found.notes.insert(0, f"recognised as torchvision's {found.arch} from its tensors' names and shapes")
    return _fill(found, checkpoint, names, path, kind, hints)


def _fill(
    match: Match, checkpoint: Checkpoint, names: dict[str, str], path: Path, kind: str, hints: HeadHints
) -> Built:
    if match.unsettled is not None:
        arch, option = match.arch, match.unsettled
        raise ArchitectureError(
            f"{path}: {arch} has an option {option}, which changes predictions and which the file does not show; say"
            f" --arch {arch},{option}=true if training began from torchvision's pretrained parameters (weights=... or"
            f" pretrained=True switch it on), else --arch {arch},{option}=false"
        )
    tensors = {name: checkpoint.tensors[in_file] for in_file, name in names.items()}
    _put(match.network, tensors, assign=True)
    left = [name for name, t in (*match.network.named_parameters(), *match.network.named_buffers()) if t.is_meta]
    if left:
        raise ArchitectureError(f"the tensors {', '.join(left[:3])} of {match.arch} are not in the file; {_OTHER_WAYS}")
    dropped = [name for name in checkpoint.tensors if name not in names and not is_counter(name)]
    notes = list(match.notes)
    if dropped:
        notes.append("the auxiliary heads, which serve training only, were left out")
    notes = [*checkpoint.notes, *notes]
    built = Built(
        match.network,
        kind,
        match.arch,
        match.num_classes,
        match.in_channels,
        match.fixed_size,
        tuple(notes),
        match.assumptions,
    )
    return built if match.activated else _noting_unused(built, hints.activation)


def _by_factory(checkpoint: Checkpoint, path: Path, factory: str) -> Built:
    num_classes, head = _last_rows(checkpoint, path)
    module_name, _, function_name = factory.partition(":")
    if not module_name or not function_name:
        raise ArchitectureError(f"--factory {factory}: expected package.module:function")
    with importable_from_here():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ArchitectureError(
                f"--factory {factory}: module {error.name!r} is not found; it is looked for among the installed"
                " packages and then in the current folder"
            ) from error
        except Exception as error:
            raise ArchitectureError(f"--factory {factory}: importing {module_name} failed: {_named(error)}") from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ArchitectureError(f"--factory {factory}: {module_name} has no function {function_name!r}")
        try:
            network = function(num_classes=num_classes)
        except Exception as error:
            raise ArchitectureError(
                f"--factory {factory}: {function_name}(num_classes={num_classes}) failed: {_named(error)}"
            ) from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"--factory {factory}: it returned {type(network).__name__}; expected a torch.nn.Module"
        )
    _load_strictly(network, checkpoint.tensors, path, f"the tensors do not fit the network of --factory {factory}")
    notes = (
        *checkpoint.notes,
        f"built by {factory} with num_classes={num_classes}, the rows of {head}, taken for the last layer",
    )
    return Built(network.float().eval(), "factory", factory, num_classes, None, None, notes)


def _by_timm(checkpoint: Checkpoint, path: Path, name: str, options: dict[str, Any]) -> Built:
    try:
        import timm
    except ImportError as error:
        raise ArchitectureError(
            f"--arch timm:{name}: timm is not installed; pip install 'imbalance-perturb[timm]'"
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ArchitectureError(f"--arch timm:{name}: timm has no network of this name{hint}")
    tensors = checkpoint.tensors
    num_classes, head = _last_rows(checkpoint, path, _timm_heads(name))
    channels = _timm_channels(name, checkpoint)
    try:
        network = timm.create_model(
            name, **{"pretrained": False, "num_classes": num_classes, "in_chans": channels, **options}
        )
    except _CALL_ERRORS as error:
        raise ArchitectureError(f"--arch timm:{name}: timm cannot build it: {_named(error)}") from error
    _load_strictly(network, tensors, path, f"the tensors do not fit --arch timm:{name}")
    notes = (*checkpoint.notes, f"{num_classes} classes, the rows of {head}")
    return Built(network.eval(), "timm state_dict", f"timm:{name}", num_classes, channels, _timm_size(network), notes)


def _timm_heads(name: str) -> tuple[str, ...]:
    import timm

    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config is not None else None
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return tuple(f"{name}.weight" for name in names)


def _timm_channels(name: str, checkpoint: Checkpoint) -> int:
    """Channels of an input: of timm's first convolution, by name; else of the first in the file, if that has order."""
    import timm

    config = timm.get_pretrained_cfg(name)
    first = config.first_conv if config is not None else None
    tensors = checkpoint.tensors
    for stem in (first,) if isinstance(first, str) else tuple(first or ()):
        if f"{stem}.weight" in tensors:
            return tensors[f"{stem}.weight"].shape[1]
    found = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4] if checkpoint.ordered else []
    return found[0] if found else 3


def _timm_size(network: nn.Module) -> tuple[int, int] | None:
    patches = getattr(network, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if size is None or not getattr(patches, "strict_img_size", False):
        return None
    height, width = size
    return int(height), int(width)


def _is_timm_name(name: str) -> bool:
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name.partition(".")[0]))


def _last_rows(checkpoint: Checkpoint, path: Path, preferred: tuple[str, ...] = ()) -> tuple[int, str]:
    """Number of classes: rows of the head's weight, by default the last one that the network defines."""
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


def _load_strictly(network: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items() if isinstance(t, Tensor)}
    difference = compare(
        {name: tuple(t.shape) for name, t in tensors.items() if not is_counter(name)},
        {name: shape for name, shape in expected.items() if not is_counter(name)},
    )
    if len(difference):
        raise _mismatch(path, what, difference)
    try:
        _put(network, tensors, assign=False)
    except RuntimeError as error:
        raise ArchitectureError(f"{path}: {what}: {first_line(error)}") from error


def _put(network: nn.Module, tensors: dict[str, Tensor], *, assign: bool) -> None:
    """Load tensors whose names have been compared: all are there but counters, which eval mode does not read."""
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    # Some networks ask which version of themselves the names are of; it is the current one.
    state._metadata = getattr(network.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    network.load_state_dict(state, strict=False, assign=assign)


def _shapes(checkpoint: Checkpoint, names: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(checkpoint.tensors[in_file].shape) for in_file, name in names.items()}


def _mismatch(path: Path, what: str, difference: Difference, hint: str = "") -> ArchitectureError:
    return ArchitectureError(f"{path}: {what} ({difference}); {hint}{difference.remedy or _OTHER_WAYS}")


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def parameter_count(network: nn.Module) -> int:
    """Number of parameters of a network, each counted once."""
    return sum(parameter.numel() for parameter in network.parameters() if isinstance(parameter, torch.Tensor))

"""Build a network of timm's by its name."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import nn

from imbalance_perturb.errors import ArchitectureError, ModelFileError
from imbalance_perturb.models.architectures.filling import Built, last_rows, load_strictly, named_error
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.own_preprocessing import timm_preprocessing

#: What a function of the user's or of another package may raise when it is called with wrong arguments.
BUILD_ERRORS = (
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
OTHER_FILES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def build_by_timm(checkpoint: Checkpoint, path: Path, name: str, options: dict[str, Any]) -> Built:
    """Build timm's network of this name for a checkpoint's tensors.

    Args:
        options: of timm's builder.

    Raises:
        ArchitectureError: if timm is not installed, has no such network, or the tensors do not fit it.
    """
    timm = import_timm(f"--arch timm:{name}")
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ArchitectureError(f"--arch timm:{name}: timm has no network of this name{hint}")
    tensors = checkpoint.tensors
    try:
        config = _described(name)
        num_classes, head = last_rows(checkpoint, path, _heads(config))
        channels = options.get("in_chans", _channels(config, checkpoint))
        network = timm.create_model(
            name, **{"pretrained": False, "num_classes": num_classes, "in_chans": channels, **options}
        )
        own = timm_preprocessing(f"timm's {name}", timm_data_config(network, options.get("img_size")))
    except ModelFileError:
        raise
    except BUILD_ERRORS as error:
        raise ArchitectureError(f"--arch timm:{name}: timm cannot build it: {named_error(error)}") from error
    load_strictly(network, tensors, path, f"the tensors do not fit --arch timm:{name}")
    notes = (*checkpoint.notes, f"{num_classes} classes, the rows of {head}", own.note)
    size = timm_size(network)
    built = Built(network.eval(), "timm state_dict", f"timm:{name}", num_classes, channels, size, notes)
    return built._replace(preprocessing=own)


def import_timm(what: str) -> ModuleType:
    """Import timm, or say that ``what`` needs it.

    Raises:
        ArchitectureError: if it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ArchitectureError(f"{what}: timm is not installed; pip install 'imbalance-perturb[timm]'") from error
    module: ModuleType = timm
    return module


def timm_data_config(network: nn.Module, img_size: object = None) -> dict[str, Any]:
    """What timm's own evaluation of a network that it built does to images, to those of ``img_size`` where given."""
    from timm.data import resolve_data_config

    said = {"img_size": img_size} if isinstance(img_size, int) else {}
    found: dict[str, Any] = resolve_data_config(said, model=network)
    return found


def _described(name: str) -> Any:
    """What timm has on a network of its own: of names that have changed, it is on the network alone."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is not None:
        return config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the name has changed
        return SimpleNamespace(**timm.create_model(name, pretrained=False).pretrained_cfg)


def _heads(config: Any) -> tuple[str, ...]:
    classifier = getattr(config, "classifier", None)
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return tuple(f"{name}.weight" for name in names)


def _channels(config: Any, checkpoint: Checkpoint) -> int:
    """Channels of an input: of timm's first convolution, by name; else of the first in the file, if that has order."""
    first = getattr(config, "first_conv", None)
    tensors = checkpoint.tensors
    for stem in (first,) if isinstance(first, str) else tuple(first or ()):
        if f"{stem}.weight" in tensors:
            return tensors[f"{stem}.weight"].shape[1]
    found = [tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4] if checkpoint.ordered else []
    return found[0] if found else 3


def timm_size(network: nn.Module) -> tuple[int, int] | None:
    """The only (height, width) that a network of timm's takes."""
    patches = getattr(network, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if size is None or not getattr(patches, "strict_img_size", False):
        return None
    height, width = size
    return int(height), int(width)


def is_timm_name(name: str) -> bool:
    """Whether timm is installed and has a network of this name."""
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name.partition(".")[0]))

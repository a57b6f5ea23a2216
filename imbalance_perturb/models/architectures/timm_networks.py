"""Build a network of timm's by its name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.filling import Built, last_rows, load_strictly, named_error
from imbalance_perturb.models.formats.checkpoint import Checkpoint

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
OTHER_FILES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def build_by_timm(checkpoint: Checkpoint, path: Path, name: str, options: dict[str, Any]) -> Built:
    """Build timm's network of this name for a checkpoint's tensors.

    Args:
        options: of timm's builder.

    Raises:
        ArchitectureError: if timm is not installed, has no such network, or the tensors do not fit it.
    """
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
    num_classes, head = last_rows(checkpoint, path, _timm_heads(name))
    channels = _timm_channels(name, checkpoint)
    try:
        network = timm.create_model(
            name, **{"pretrained": False, "num_classes": num_classes, "in_chans": channels, **options}
        )
    except _CALL_ERRORS as error:
        raise ArchitectureError(f"--arch timm:{name}: timm cannot build it: {named_error(error)}") from error
    load_strictly(network, tensors, path, f"the tensors do not fit --arch timm:{name}")
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


def is_timm_name(name: str) -> bool:
    """Whether timm is installed and has a network of this name."""
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name.partition(".")[0]))

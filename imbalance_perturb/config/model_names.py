"""How a model is named: a file or folder, ``local-dir:FOLDER`` as timm writes it, or a name on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from imbalance_perturb.errors import ModelFileError, printable

_LOCAL = "local-dir:"
#: timm's spelling, and its older one.
_HUB = ("hf-hub:", "hf_hub:")
_PART = "[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_NAME = re.compile(rf"(?P<repository>{_PART}(?:/{_PART})?)(?:@(?P<revision>{_PART}(?:/{_PART})*))?")


class HubName(NamedTuple):
    """A repository on the Hugging Face Hub, and a branch, tag or commit of it; ``None`` is its main branch."""

    repository: str
    revision: str | None

    def at(self, commit: str) -> str:
        """Write the name of one commit."""
        return f"{_HUB[0]}{self.repository}@{commit}"


def is_hub_name(model: str) -> bool:
    """Whether a model is named as one of the Hugging Face Hub, not as a file."""
    return model.startswith(_HUB)


def parse_hub_name(model: str) -> HubName:
    """Parse ``hf-hub:owner/name@revision``.

    Raises:
        ModelFileError: if it is written otherwise.
    """
    found = _HUB_NAME.fullmatch(model.partition(":")[2])
    if found is None:
        raise ModelFileError(f"{printable(model)}: expected hf-hub:owner/name or hf-hub:owner/name@revision")
    return HubName(found["repository"], found["revision"])


def place_of(model: str) -> str:
    """Return the path of a model that is no name on the hub: without ``local-dir:``."""
    return model.removeprefix(_LOCAL)


def with_place(model: str, change: Callable[[str], str]) -> str:
    """Write a model's name with another path, which ``change`` makes of its own; a name on the hub has none."""
    if is_hub_name(model):
        return model
    prefix = _LOCAL if model.startswith(_LOCAL) else ""
    return prefix + change(place_of(model))

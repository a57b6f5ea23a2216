"""Models on the Hugging Face Hub: the folder in its cache that a name and a revision stand for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from imbalance_perturb.config.model_names import HubName, parse_hub_name
from imbalance_perturb.errors import ModelFileError, first_line, printable

#: What is asked for: never a repository's code, nor the same weights in other programs' formats.
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")

#: The hub's client raises its own errors, its network library's and the system's.
_HUB_ERRORS = (Exception,)


class HubFolder(NamedTuple):
    """A folder with a commit's files, and ``name``: that commit by its hash, as MODEL could name it."""

    folder: Path
    name: str
    notes: tuple[str, ...]


def find_on_hub(model: str) -> HubFolder:
    """Download what ``hf-hub:owner/name@revision`` has of a model, or find it in the cache.

    Raises:
        ModelFileError: if it is not there, not to be had, or ``huggingface_hub`` is not installed.
    """
    name = parse_hub_name(model)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelFileError(
            f"{printable(model)}: huggingface_hub is not installed; it comes with pip install"
            " 'imbalance-perturb[timm]' and 'imbalance-perturb[transformers]'"
        ) from error
    try:
        folder = Path(
            snapshot_download(name.repository, revision=name.revision, allow_patterns=[*_CONFIGS, *_SAFETENSORS])
        )
        if not any(folder.glob("model*.safetensors")):
            folder = Path(
                snapshot_download(name.repository, revision=folder.name, allow_patterns=[*_CONFIGS, *_PICKLES])
            )
    except _HUB_ERRORS as error:
        raise _explain(model, name, error) from error
    commit = folder.name
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise ModelFileError(f"{printable(model)}: the hub's cache has it without a commit's hash ({folder}); empty it")
    revision = name.revision or "main"
    notes = () if revision == commit else (f"revision {revision!r} of {name.repository} is commit {commit}",)
    return HubFolder(folder, name.at(commit), notes)


def _explain(model: str, name: HubName, error: Exception) -> ModelFileError:
    """Write what went wrong with a download, and what to do, in one line."""
    from huggingface_hub import errors

    revision = name.revision or "main"
    if isinstance(error, errors.GatedRepoError):
        what = "its owner lets in only people who accepted the terms; accept them on its page, then run hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"there is no revision {revision!r}; give a branch, a tag or a commit of it"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "there is no such model on the hub; check the name, or run hf auth login if it is private"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        what = (
            f"revision {revision!r} is not, or not whole, in the cache and the hub is not reached (no network, or"
            " HF_HUB_OFFLINE is set); run it once with a network, or download it elsewhere and give the folder"
        )
    else:
        what = f"the hub does not give it ({first_line(error)}); try again, or download it and give the folder"
    return ModelFileError(f"{printable(model)}: {what}")

"""Build the network of a folder that timm wrote, with timm's builder and the folder's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from imbalance_perturb.errors import ArchitectureError, ModelFileError, brief, first_few
from imbalance_perturb.models.architectures.choosing import Asked
from imbalance_perturb.models.architectures.filling import Built, in_proportion, load_strictly, named_error
from imbalance_perturb.models.architectures.network_fitting import fill_network, fit_network
from imbalance_perturb.models.architectures.timm_networks import (
    OTHER_FILES,
    import_timm,
    timm_data_config,
    timm_size,
)
from imbalance_perturb.models.folders.model_folder import ModelFolder
from imbalance_perturb.models.formats.checkpoint import Checkpoint
from imbalance_perturb.models.formats.trust import LOAD_ERRORS
from imbalance_perturb.models.own_preprocessing import OwnPreprocessing, timm_preprocessing

#: Of a pretrained config: where timm would look for weights, and in which foreign format.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
#: Of a builder's arguments: what makes something else than a classifier, or loads other files.
_REFUSED = (*OTHER_FILES, "features_only", "feature_cfg", "pretrained_model_args", "pretrained_filter_fn")


def build_timm_folder(folder: ModelFolder, checkpoint: Checkpoint, asked: Asked) -> Built:
    """Build the network that the config names, as ``timm.create_model("local-dir:FOLDER")`` does, and fill it.

    Raises:
        ArchitectureError: if timm is not installed, cannot build it, or the tensors do not fit it.
        ModelFileError: if the config is not as timm writes it.
    """
    what = f"the network {brief(folder.config['architecture'])} of its config.json"
    timm = import_timm(f"{folder.path}: {what}")
    name, arguments = _arguments(folder)
    if not timm.is_model(name):
        raise ArchitectureError(f"{folder.path}: timm {timm.__version__} does not have {what}; a newer one may")
    try:
        with in_proportion(checkpoint.tensors):
            network = timm.create_model(name, pretrained=False, **arguments)
        data = timm_data_config(network)
        rows = int(network.num_classes)
    except LOAD_ERRORS as error:
        raise ArchitectureError(f"{folder.path}: timm cannot build {what}: {named_error(error)}") from error
    own = timm_preprocessing(f"{folder.path}'s config.json", data)
    channels, size = int(data["input_size"][0]), timm_size(network)
    built = Built(network.eval(), "timm folder", f"timm:{name}", rows, channels, size, (), preprocessing=own)
    misfit = f"the tensors do not fit {what}"
    fits, nearest, computed = fit_network(network, checkpoint, built)
    if not fits:
        given = checkpoint.tensors if nearest is None else nearest.tensors
        load_strictly(network, given, folder.path, misfit)
    told, rest = fill_network(network, fits, checkpoint, folder.path, asked, misfit)
    built_by = f"built by timm as its config.json says: {name}, {rows} classes"
    notes = (*checkpoint.notes, *computed, *told, built_by, own.note, *rest.notes)
    return built._replace(notes=notes, assumptions=rest.assumptions)


def read_timm_preprocessing(folder: ModelFolder) -> OwnPreprocessing:
    """Read how images are prepared from the config alone; an :class:`ArchitectureError` says if timm is not there."""
    import_timm(f"{folder.path}: its config.json")
    from timm.data import resolve_data_config
    from timm.models import PretrainedCfg

    _, arguments = _arguments(folder)
    cfg = PretrainedCfg(**arguments["pretrained_cfg"]).to_dict()
    return timm_preprocessing(f"{folder.path}'s config.json", resolve_data_config({}, pretrained_cfg=cfg))


def _arguments(folder: ModelFolder) -> tuple[str, dict[str, Any]]:
    """Parse the network's name and its builder's arguments, in the layouts that timm reads, with its own repairs."""
    from timm.models import PretrainedCfg

    config = dict(folder.config)
    cfg = config.get("pretrained_cfg", config)
    more = config.get("model_args") or {}
    if not isinstance(cfg, dict) or not isinstance(more, dict):
        raise ModelFileError(
            f"{folder.path}: pretrained_cfg and model_args of its config.json are no objects with entries"
        )
    refused = [name for name in _REFUSED if name in more]
    if refused:
        raise ModelFileError(f"{folder.path}: its config.json has {first_few(refused)} in model_args; take it out")
    known = {one.name for one in fields(PretrainedCfg)} - {*_SOURCES, "label_names", "label_descriptions"}
    cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items() if key in known}
    cfg |= {key: config[key] for key in ("num_classes",) if key in config}
    _repair(cfg, more)
    return str(config["architecture"]), {**more, "pretrained_cfg": cfg}


def _repair(cfg: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Let the builder's arguments win over what the config says of the input, as timm does."""
    if more.get("dynamic_img_size") or more.get("strict_img_size") is False or more.get("use_naflex"):
        cfg["fixed_input_size"] = False
    size = cfg.get("input_size", (3, 224, 224))
    if more.get("in_chans") is not None:
        cfg["input_size"] = size = (more["in_chans"], *size[1:])
    side = more.get("img_size")
    if side is not None and cfg.get("fixed_input_size", False):
        cfg["input_size"] = (size[0], side, side) if isinstance(side, int) else (size[0], *side)

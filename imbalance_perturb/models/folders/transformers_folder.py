"""Build the network of a folder that transformers wrote, of the classes that the installed library has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError, ModelFileError, brief
from imbalance_perturb.models.architectures.filling import Built, in_proportion, named_error
from imbalance_perturb.models.architectures.recognition import Difference
from imbalance_perturb.models.folders.image_processors import Prepared, read_processor
from imbalance_perturb.models.folders.model_folder import ModelFolder
from imbalance_perturb.models.formats.trust import LOAD_ERRORS
from imbalance_perturb.models.own_preprocessing import SAY_IT, OwnPreprocessing

#: Entries that say how a network is computed, not which it is: the library's own choice is taken, which downloads none.
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
#: Entries that turn the network into another one when it is loaded.
_REFUSED = ("quantization_config", "fusion_config", "adapters")
#: What single-label classification is called; other problems have other outputs.
_PROBLEMS = (None, "single_label_classification")


class Logits(nn.Module):
    """A network of transformers as one that takes images (N, C, H, W) and returns logits (N, classes).

    Args:
        network: takes ``pixel_values`` and returns an object with ``.logits``.
        bgr: whether it takes blue, green and red in that order.
    """

    def __init__(self, network: nn.Module, bgr: bool) -> None:
        super().__init__()
        self.network, self.bgr = network, bgr

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.network(pixel_values=x.flip(1) if self.bgr else x, return_dict=True).logits
        return logits


def build_transformers_folder(folder: ModelFolder, tensors: Any, notes: tuple[str, ...]) -> Built:
    """Build the network that the config names and fill it with tensors that must be its own.

    Args:
        folder: of which the config has been read.
        tensors: by name, as the weights have them.
        notes: on how these were read.

    Raises:
        ArchitectureError: if transformers is not installed, cannot build it, or the tensors do not fit it.
        ModelFileError: if the config asks for something else than a classifier of images.
    """
    tensors = _only_tensors(folder, tensors)
    config = _checked_config(folder)
    with _quiet(), torch.random.fork_rng(devices=[]):
        cls, settings = _find_class(folder, config)
        what = f"the {cls.__name__} of its config.json"
        try:
            with in_proportion(tensors):
                # Names of older versions become those of this one in here; nothing is read from a file or the hub.
                network, told = cls.from_pretrained(
                    None,
                    config=settings,
                    state_dict=tensors,
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                )
        except LOAD_ERRORS as error:
            raise ArchitectureError(f"{folder.path}: transformers cannot build {what}: {named_error(error)}") from error
    difference = _difference(told)
    if len(difference):
        raise ArchitectureError(
            f"{folder.path}: the tensors do not fit {what} ({difference}); copy or download all of the folder again, or"
            " build the network with --factory"
        )
    own, bgr = read_preprocessing(folder)
    others = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32})
    if others:
        notes = (*notes, f"tensors stored as {', '.join(others)} were converted to float32")
    notes = (*notes, f"built by transformers as its config.json says: {cls.__name__}, {settings.num_labels} classes")
    notes = (*notes, own.note)
    if bgr:
        notes = (*notes, "its image processor gives the network blue, green and red in that order: so does this one")
    channels = getattr(getattr(settings, "vision_config", settings), "num_channels", None)
    return Built(
        network=Logits(network.eval(), bgr),
        kind="transformers folder",
        arch=cls.__name__,
        num_classes=int(settings.num_labels),
        in_channels=channels if isinstance(channels, int) else None,
        fixed_size=None,
        notes=notes,
        preprocessing=own,
    )


def read_preprocessing(folder: ModelFolder) -> Prepared:
    """Read how a folder's images are prepared."""
    source = f"{folder.path}'s preprocessor_config.json"
    if folder.processor is None:
        missing = f"{folder.path}: there is no preprocessor_config.json beside its config.json, so how its images are"
        return Prepared(
            OwnPreprocessing("the folder", None, f"{missing} prepared is not known; put it there, or {SAY_IT}")
        )
    default = None
    if not any(key in folder.processor for key in ("image_processor_type", "feature_extractor_type")):
        from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

        names = IMAGE_PROCESSOR_MAPPING_NAMES.get(folder.config.get("model_type"))
        names = tuple(names.values()) if isinstance(names, dict) else names
        default = next((name for name in names or () if name), None)
    return read_processor(folder.processor, default, source)


def _only_tensors(folder: ModelFolder, tensors: Any) -> dict[str, Tensor]:
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ModelFileError(f"{folder.path}: its weights are not tensors by name, as save_pretrained writes them")
    if any(t.is_quantized or t.layout != torch.strided for t in tensors.values()):
        raise ModelFileError(f"{folder.path}: its tensors are quantised or sparse; give the float32 model of before")
    return {str(name): tensor for name, tensor in tensors.items()}


def _checked_config(folder: ModelFolder) -> dict[str, Any]:
    """The config without what it has no say in.

    Raises:
        ModelFileError: if it asks for another kind of network.
    """
    refused = [name for name in _REFUSED if folder.config.get(name)]
    if refused:
        raise ModelFileError(
            f"{folder.path}: its config.json has {refused[0]}, which makes another network of it; give the float32"
            " model of before"
        )
    problem = folder.config.get("problem_type")
    if problem not in _PROBLEMS:
        raise ModelFileError(
            f"{folder.path}: its config.json says problem_type {brief(problem)}: not one class for each image, which"
            " this method is for"
        )
    found: dict[str, Any] = _without_implementations(folder.config)
    return found


def _without_implementations(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = {key: one for key, one in value.items() if not key.removesuffix("_internal").endswith(_IMPLEMENTATIONS)}
    return {key: _without_implementations(one) for key, one in kept.items()}


def _find_class(folder: ModelFolder, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of the network, one of the installed library's classifiers of images, and its config as an object."""
    path, model_type = folder.path, config["model_type"]
    try:
        from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, __version__
    except ImportError as error:
        raise ArchitectureError(
            f"{path}: this is a folder of transformers, which is not installed; pip install"
            " 'imbalance-perturb[transformers]'"
        ) from error
    try:
        kind = CONFIG_MAPPING[model_type]
        found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[kind]
    except (KeyError, ValueError):
        raise ArchitectureError(
            f"{path}: transformers {__version__} has no classifier of images for model_type {brief(model_type)}"
        ) from None
    classes = {cls.__name__: cls for cls in (found if isinstance(found, list | tuple) else (found,))}
    named = config.get("architectures")
    wanted = named[0] if isinstance(named, list) and named else next(iter(classes))
    if wanted not in classes:
        raise ArchitectureError(
            f"{path}: its config.json says that this is a {brief(wanted)}; expected {' or '.join(classes)}, a"
            " classifier of images"
        )
    cls = classes[wanted]
    if cls.main_input_name != "pixel_values":
        raise ArchitectureError(f"{path}: {wanted} takes {cls.main_input_name}, not images; this method is for images")
    try:
        return cls, kind.from_dict(dict(config))
    except LOAD_ERRORS as error:
        raise ArchitectureError(f"{path}: transformers cannot read its config.json: {named_error(error)}") from error


def _difference(told: Mapping[str, Any]) -> Difference:
    reshaped = [f"{name} {list(theirs)} instead of {list(ours)}" for name, theirs, ours in told["mismatched_keys"]]
    return Difference(sorted(told["missing_keys"]), sorted(told["unexpected_keys"]), sorted(reshaped))


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside: transformers writes neither progress nor reports, which are told by what it returns."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield  # whoever needs it says so
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

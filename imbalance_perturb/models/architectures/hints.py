"""What a file says of its network beside the tensors, held against the network that these fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from imbalance_perturb.errors import ArchitectureError
from imbalance_perturb.models.architectures.recognition import Match
from imbalance_perturb.models.architectures.skeleton import classification_names
from imbalance_perturb.models.architectures.timm_networks import is_timm_name
from imbalance_perturb.models.formats.checkpoint import Checkpoint

#: Said of every network that was told by its tensors.
UNSEEN = (
    "layers without tensors (activations, pooling) and strides leave no trace in a file: they are taken as torchvision"
    " has them"
)

_FALSE = ("none", "no", "false", "off", "identity", "0", "")
#: Options that change layers without tensors, and the values under which they change none of torchvision's.
_OPTIONS = (
    (re.compile(r"(max_?pool|stem_pool|first_pool|use_max_?pool)", re.I), ("true", "1", "max", "maxpool", "max_pool")),
    (re.compile(r"((no|remove)_max_?pool|cifar(_?(stem|style|resnet))?|small_(images?|inputs?|stem)|low_res)", re.I),
     _FALSE),
    (re.compile(r"(aa_layer|anti_?alias(ed|ing)?|blur_?pool(ing)?)", re.I), _FALSE),
    (re.compile(r"(global_?pool|pool(ing)?(_?(type|layer|mode|method|head))?)", re.I),
     ("avg", "average", "mean", "gap", "true", "1", "adaptive_avg", "adaptiveavgpool2d", "global_average", "none",
      "avgpool", "global_avg")),
    (re.compile(r"(replace_stride_with_dilation|output_stride|dilated)", re.I), (*_FALSE, "32")),
)  # fmt: skip
#: Activations after the last layer, which a state_dict's network leaves to its caller.
_LAST = ("softmax", "log_softmax", "logsoftmax", "sigmoid", "linear", "logits")
_ACTIVATION = re.compile(r"(act|activation|act_layer|act_fn|activation_fn|activation_layer|non_?linearity)", re.I)


def check_hints(match: Match, checkpoint: Checkpoint, path: Path) -> list[str]:
    """Notes on the name that the file has for its network.

    Raises:
        ArchitectureError: where the file names another network with the same tensors, or an option that torchvision's
            does not have; ``--arch`` settles it.
    """
    recorded, notes = checkpoint.arch, []
    # A tag of timm's says which data the network was trained on.
    if recorded and recorded.partition(".")[0].removeprefix("tv_").removeprefix("timm/") != match.arch:
        if is_timm_name(recorded) and recorded not in classification_names():
            # Some of timm's variants differ from torchvision's networks only in layers without tensors.
            raise ArchitectureError(
                f"{path}: the file calls its network {recorded!r}, but its tensors also fit torchvision's {match.arch};"
                f" say which it is: --arch timm:{recorded} or --arch {match.arch}"
            )
        notes.append(f"the file calls its network {recorded!r}")
    for key, value in checkpoint.hints.items():
        name, text = key.rpartition(".")[2], str(value).strip().lower()
        if _contradicts(name, text, match.network):
            raise ArchitectureError(
                f"{path}: the file says {key} = {value!r}, which torchvision's {match.arch} does not have, though the"
                f" tensors fit it; build the network with --factory package.module:function, or say --arch {match.arch}"
                f" if that is no option of it{' (--head-activation, if it is of its head)' if match.activated else ''}"
            )
    return notes


def _contradicts(name: str, value: str, network: nn.Module) -> bool:
    if _ACTIVATION.fullmatch(name):
        known = {type(module).__name__.lower() for module in network.modules()}
        plain = re.sub(r"[_\-]|\(.*", "", value.rpartition(".")[2])
        return value not in (*_FALSE, *_LAST) and {"swish": "silu"}.get(plain, plain) not in known
    return any(pattern.fullmatch(name) and value not in harmless for pattern, harmless in _OPTIONS)


def explain(tensors: Mapping[str, Tensor]) -> str:
    """Why tensors fit no network, where their names tell that they are of something else: a sentence for a message."""
    names = list(tensors)
    for what, pattern in _FOREIGN:
        if any(pattern.search(name) for name in names):
            return f"{what}; otherwise "
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        return "some tensors are empty, as DeepSpeed's ZeRO-3 saves them: run its zero_to_fp32.py; otherwise "
    return ""


_FOREIGN = (
    (
        "the file has adapters (LoRA), which are part of a network: merge_and_unload() it and save its state_dict",
        re.compile(r"(^|\.)lora_(A|B|down|up|embedding)|\.base_layer\.|\.modules_to_save\."),
    ),
    (
        "the tensors are quantised: give the float32 state_dict of before",
        re.compile(
            r"_packed_params|fake_quant|(^|[._])zero_point$|\.SCB$|\.(absmax|quant_map|quant_state)|activation_post_process"
        ),
    ),
    (
        "the tensors are flattened by FSDP: save with StateDictType.FULL_STATE_DICT",
        re.compile(r"(^|\.)_?flat_param"),
    ),
    (
        "some weights are parametrised: torch.nn.utils.parametrize.remove_parametrizations them before saving",
        re.compile(r"\.parametrizations\.|\.weight_(orig|mask|g|v|u)$"),
    ),
)

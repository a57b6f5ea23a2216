"""Folders of timm, and the preprocessing that goes with timm's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.preprocessing import make_geometry, select_preprocessing
from imbalance_perturb.errors import ArchitectureError, ModelFileError
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.own_preprocessing import timm_preprocessing
from tests.model_folders import change_json, write_images, write_timm

timm = pytest.importorskip("timm")

DATA = {
    "input_size": (3, 33, 33),
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.3, 0.2, 0.1),
    "crop_pct": 0.9,
    "crop_mode": "center",
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"interpolation": "nearest", "crop_pct": 1.0},
        {"interpolation": "hamming"},
        {"crop_mode": "squash", "input_size": (3, 30, 41)},
    ],
)
def test_images_are_prepared_as_timm_does(change: dict[str, Any], tmp_path: Path) -> None:
    """What is made of timm's data config is what its ``create_transform`` does, to the last bit."""
    from PIL import Image

    data = DATA | change
    own = timm_preprocessing("it", data)
    preprocessing = select_preprocessing(PreprocessSettings(), 3, own.settings)
    geometry, transform = make_geometry(preprocessing), timm.data.create_transform(**data, is_training=False)
    for path in write_images(tmp_path):
        with Image.open(path) as image:
            assert torch.equal(preprocessing.normalise(geometry(image)[None])[0], transform(image))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"crop_mode": "border"}, "border"),
        ({"input_size": (3, 30, 41)}, "not square"),
        ({"interpolation": "random"}, "'random'"),
        ({"std": (0.1, 0.2, 0.0)}, "std is"),
        ({"crop_pct": "abc"}, "not as timm writes them"),
        ({"crop_pct": 1e-320}, "not as timm writes them"),
        ({"input_size": (33, 33)}, "not as timm writes them"),
        ({"mean": 0.5}, "not as timm writes them"),
        ({"mean": ("0.5",) * 3}, "mean is"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], what: str) -> None:
    """Borders and their like are not left out in silence."""
    own = timm_preprocessing("it", DATA | change)
    assert own.settings is None
    assert what in own.refusal
    assert "--preset none" in own.refusal


def test_layouts_of_the_config(tmp_path: Path) -> None:
    """The older layout, transformers' wrapper of timm and builder's arguments give the same network."""
    network = write_timm(tmp_path / "m")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
    config = tmp_path / "m" / "config.json"
    content = json.loads(config.read_text())
    flat = {"architecture": content["architecture"], **content["pretrained_cfg"], "num_classes": 3}
    wrapped = {"model_type": "timm_wrapper", "label_names": None, "id2label": {"0": "x", "1": "y", "2": "z"}}
    for changed, names in (
        (content, ("nv", "mel", "bcc")),
        (flat | {"labels": ["a", "b", "c"]}, ("a", "b", "c")),
        (content | wrapped, ("x", "y", "z")),
        (content | {"model_args": {"drop_rate": 0.1}}, ("nv", "mel", "bcc")),
    ):
        config.write_text(json.dumps(changed))
        loaded = load_classifier(tmp_path / "m")
        torch.testing.assert_close(loaded(x), expected)
        assert loaded.info.classes == names
        assert (loaded.info.format, loaded.info.arch, loaded.info.in_channels) == ("timm folder", "timm:test_resnet", 3)
        assert loaded.preprocessing is not None
        assert loaded.preprocessing.settings is not None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architecture": "no_such_net"}, "does not have the network 'no_such_net'"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "pretrained"),
        ({"model_args": {"no_such": 1}}, "timm cannot build"),
        ({"model_args": {"layers": [1, 1, 1, 5000]}}, "far larger than the weights"),
        ({"num_classes": 7, "model_args": None}, "do not fit the network"),
    ],
)
def test_odd_configs(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    """A config that asks for other files, another network or a boundless one is refused in one line."""
    write_timm(tmp_path / "m")
    change_json(tmp_path / "m" / "config.json", entries=change)
    with pytest.raises((ArchitectureError, ModelFileError), match=what):
        load_classifier(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}), ("test_convnext", {}), ("test_vit", {}), ("test_mambaout", {}), ("test_nfnet", {}),
        ("test_efficientnet", {}), ("test_byobnet", {}), ("mobilenetv3_small_050", {}), ("regnetx_002", {}),
        ("deit_tiny_patch16_224", {"img_size": 32}), ("levit_128s", {"img_size": 64}), ("ghostnet_050", {}),
        ("vit_tiny_patch16_224", {"img_size": 32}), ("eva02_tiny_patch14_224", {"img_size": 28}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [3, 1])
def test_channels_in_safetensors(name: str, options: dict[str, Any], channels: int, tmp_path: Path) -> None:
    """Families of timm in safetensors, which are in no order: channels come from timm's first convolution."""
    from safetensors.torch import save_file

    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    network = timm.create_model(name, num_classes=3, in_chans=channels, **options)
    save_file(network.state_dict(), tmp_path / "m.safetensors")
    arch = ",".join([f"timm:{name}", *(f"{key}={value}" for key, value in options.items())])
    loaded = load_classifier(tmp_path / "m.safetensors", arch=arch)
    assert (loaded.info.in_channels, loaded.info.num_classes) == (channels, 3)
    assert loaded.preprocessing is not None
    if options and loaded.preprocessing.settings is not None:
        assert loaded.preprocessing.settings.crop == (options["img_size"],) * 2


def test_channels_that_are_said(tmp_path: Path) -> None:
    """``,in_chans=1`` wins over what the tensors seem to say, and is what preprocessing goes by."""
    write_timm(tmp_path / "m")
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "w.safetensors")
    with pytest.raises(ArchitectureError, match=r"conv1.* instead of"):
        load_classifier(tmp_path / "w.safetensors", arch="timm:test_resnet,in_chans=1")
    assert load_classifier(tmp_path / "w.safetensors", arch="timm:test_resnet,in_chans=3").info.in_channels == 3

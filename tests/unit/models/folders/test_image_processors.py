"""What transformers' image processors do, read from their config: checked against the processors themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.preprocessing import make_geometry, select_preprocessing
from imbalance_perturb.models.folders.image_processors import read_processor

SQUARE = {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViT", {"size": SQUARE}),
        ("ViT", {"size": 36}),
        ("ViT", {"size": {"height": 36, "width": 44}, "do_center_crop": True, "crop_size": 33}),
        ("Beit", {"size": SQUARE, "do_rescale": False, "resample": 0}),
        ("Bit", {"size": {"shortest_edge": 40}, "crop_size": SQUARE, "resample": 1}),
        ("CLIP", {"size": 40, "crop_size": SQUARE}),
        ("ConvNext", {"size": {"shortest_edge": 29}, "crop_pct": 0.9}),
        ("ConvNext", {"size": 384}),
        ("DeiT", {"size": {"height": 40, "width": 37}, "crop_size": SQUARE}),
        ("EfficientNet", {"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
        ("EfficientNet", {"size": SQUARE, "include_top": False, "image_std": [0.5, 0.25, 0.125]}),
        ("EfficientNet", {"size": SQUARE, "do_normalize": False, "image_std": [0.5, 0.25, 0.125]}),
        ("Levit", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
        ("MobileNetV2", {"size": {"shortest_edge": 40}, "crop_size": {"height": 31, "width": 36}}),
        ("MobileViT", {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
        ("PoolFormer", {"size": {"shortest_edge": 36}, "crop_pct": 0.9, "crop_size": SQUARE}),
        ("Siglip", {"size": SQUARE, "do_normalize": False, "image_mean": [0.1, 0.2, 0.3]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_processor_is_read_as_it_works(name: str, options: dict[str, Any]) -> None:
    """Each kind of processor, with what its config can say, gives what its Pillow version gives."""
    transformers = pytest.importorskip("transformers")
    module = transformers.models.auto.image_processing_auto
    processor = module.get_image_processor_class_from_name(f"{name}ImageProcessorPil")(**options)
    config = json.loads(processor.to_json_string()) | {"size": options["size"]}
    found, bgr = read_processor(config, None, "it")
    assert found.settings is not None, found.refusal
    preprocessing = select_preprocessing(PreprocessSettings(), 3, found.settings)
    pixels = np.random.default_rng(0).integers(0, 256, (43, 58, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    made = preprocessing.normalise(make_geometry(preprocessing)(image)[None])
    expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"]).float()
    torch.testing.assert_close(made.flip(1) if bgr else made, expected, rtol=2e-6, atol=2e-6)
    assert bgr == (name == "MobileViT")


VIT = {
    "image_processor_type": "ViTImageProcessor",
    "size": SQUARE,
    "resample": 2,
    "image_mean": [0.5],
    "image_std": [0.5],
}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "DonutImageProcessor' does is not known"),
        ({"do_pad": True}, "no such thing here as its do_pad"),
        ({"crop_pct": 0.9}, "no such thing here as its crop_pct"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "its size is"),
        ({"size": None}, "its size is None"),
        ({"size": {"height": -1, "width": 3}}, "resize is"),
        ({"resample": None}, "its resample is None"),
        ({"resample": 17}, "its resample is 17"),
        ({"image_std": [0.0]}, "std is"),
        ({"image_mean": "0.5"}, "its image_mean is '0.5'"),
        ({"image_mean": None}, "its image_mean is None"),
        ({"rescale_factor": 0}, "its rescale_factor is 0"),
        ({"do_center_crop": True}, "its crop_size is None"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "its size has no shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 32}, "its crop_pct is None"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_a_processor_says_and_cannot_be_done_is_refused(change: dict[str, Any], what: str) -> None:
    """Nothing of a config is passed over: one line says what cannot be done and how to say it by options."""
    found = read_processor(VIT | change, None, "it").preprocessing
    assert found.settings is None
    assert what in found.refusal
    assert "--preset none" in found.refusal


def test_older_names_and_missing_ones() -> None:
    """Feature extractors and fast processors are those of today; without a name the network's own is taken."""
    without = {key: value for key, value in VIT.items() if key != "image_processor_type"}
    named = [{"feature_extractor_type": "ViTFeatureExtractor"}, {"image_processor_type": "ViTImageProcessorFast"}]
    found = [read_processor(without | one, None, "it").preprocessing.settings for one in named]
    found.append(read_processor(without, "ViTImageProcessor", "it").preprocessing.settings)
    assert found[0] is not None
    assert found[0] == found[1] == found[2]

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.transforms import v2

from imbalance_perturb.config.settings import PreprocessSettings
from imbalance_perturb.data.preprocessing import Preprocessing, make_geometry, select_preprocessing
from imbalance_perturb.errors import ImageError, SettingsError


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def apply(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    return preprocessing.normalise(make_geometry(preprocessing)(image)[None])[0]


@pytest.mark.parametrize(
    ("preset", "weights"),
    [
        ("imagenet", ResNet18_Weights.IMAGENET1K_V1),
        ("ResNet50_Weights.IMAGENET1K_V2", ResNet50_Weights.IMAGENET1K_V2),
        ("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", None),
    ],
)
def test_presets_equal_torchvisions_own_transforms(preset: str, weights: object) -> None:
    """A preset gives the tensor that torchvision's transforms of those weights give."""
    from torchvision.models import get_weight

    theirs = (weights or get_weight(preset)).transforms()  # type: ignore[attr-defined]
    image = noise(300, 451)
    ours = apply(select_preprocessing(PreprocessSettings(preset=preset)), image)
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-6)


def test_options_override_the_preset() -> None:
    """Single options win over the preset's entries; the rest of the preset stays."""
    p = select_preprocessing(
        PreprocessSettings(resize=(64, 80), crop="none", mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    )
    assert p == Preprocessing((64, 80), None, (0.1, 0.2, 0.3), (0.229, 0.224, 0.225), "bicubic", "rgb")
    image = noise(90, 70)
    pil = v2.Resize((64, 80), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)(image)
    expected = v2.Normalize(p.mean, p.std)(v2.ToDtype(torch.float32, scale=True)(v2.PILToTensor()(pil)))
    torch.testing.assert_close(apply(p, image), expected, rtol=0, atol=1e-6)
    assert p.size == (64, 80)


def test_preset_none_leaves_pixels_as_they_are() -> None:
    """none means no resize, no crop and [0, 1], whatever the size."""
    p = select_preprocessing(PreprocessSettings(preset="none"))
    image = noise(13, 7)
    torch.testing.assert_close(apply(p, image), torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert p.size is None
    assert p.describe() == "RGB -> [0, 1]"


def test_grayscale_models() -> None:
    """A one-channel model makes gray the default and needs one mean and std; one number serves all channels."""
    settings = PreprocessSettings(mean=(0.5,), std=(0.25,), resize=8, crop=8)
    gray = select_preprocessing(settings, in_channels=1)
    assert (gray.color, gray.channels, gray.mean, gray.std) == ("gray", 1, (0.5,), (0.25,))
    assert select_preprocessing(settings).mean == (0.5, 0.5, 0.5)
    assert apply(gray, noise(10, 10).convert("L")).shape == (1, 8, 8)
    with pytest.raises(SettingsError, match=r"mean has 3 numbers \(in preset imagenet\) for 1 channel"):
        select_preprocessing(PreprocessSettings(), in_channels=1)
    with pytest.raises(SettingsError, match=r"color is rgb \(3 channels\) but the model takes 1"):
        select_preprocessing(PreprocessSettings(color="rgb"), in_channels=1)


def test_sixteen_bit_keeps_its_fractions() -> None:
    """A float image keeps fractions through resizing and serves three channels."""
    p = select_preprocessing(PreprocessSettings(preset="none", resize=(4, 4)))
    image = Image.fromarray(np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8))
    x = apply(p, image)
    assert x.shape == (3, 4, 4)
    assert torch.equal(x[0], x[2])
    assert len(torch.unique(x[0])) == 16
    assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("size", [(40, 50), (200, 300)])
def test_sixteen_bit_is_resized_as_eight_bits_are(interpolation: str, size: tuple[int, int]) -> None:
    """The same picture as one 8-bit image or as three float images makes the same input but for the rounding."""
    p = select_preprocessing(PreprocessSettings(preset="none", resize=size, interpolation=interpolation))
    array = np.random.default_rng(0).integers(100, 156, (90, 110, 3)).astype(np.uint8)
    red, green, blue = (Image.fromarray(array[..., channel].astype(np.float32)) for channel in range(3))
    deep, plain = make_geometry(p)((red, green, blue)), make_geometry(p)(Image.fromarray(array))
    assert (deep.dtype, plain.dtype, deep.shape) == (torch.float32, torch.uint8, plain.shape)
    torch.testing.assert_close(deep, plain.to(torch.float32), rtol=0, atol=2)  # 8 bits are rounded in each direction
    # Black and white edges make wide filters overshoot: float pixels too stay within the range.
    edges = make_geometry(p)(Image.fromarray(np.where(array > 128, np.float32(255), np.float32(0))[..., 0]))
    assert 0 <= edges.min() <= edges.max() <= 255


def test_eps_and_bounds_in_pixels() -> None:
    """pixel eps and clip bounds are those of [0, 1] pixels, channel by channel."""
    p = select_preprocessing(PreprocessSettings())
    low, high = p.bounds()
    torch.testing.assert_close(low, p.normalise(torch.zeros(1, 3, 1, 1)))
    torch.testing.assert_close(high, p.normalise(torch.full((1, 3, 1, 1), 255.0)))
    moved = p.normalise(torch.full((1, 3, 1, 1), 100.0)) + p.pixel_eps(0.1)
    torch.testing.assert_close(moved, p.normalise(torch.full((1, 3, 1, 1), 125.5)))


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        (PreprocessSettings(preset="resnet"), "preset 'resnet' is not known"),
        (PreprocessSettings(resize=200), "crop 224,224 is larger than resize leaves"),
        (PreprocessSettings(mean=(0.1, 0.2)), "mean has 2 numbers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: PreprocessSettings, cause: str) -> None:
    """Unknown presets and entries that contradict each other are errors with the remedy."""
    with pytest.raises(SettingsError, match=cause):
        select_preprocessing(settings)


def test_an_image_that_cannot_be_fitted_says_so() -> None:
    """An image smaller than the crop, or too long and thin to resize, is an error of that image."""
    crop_only = make_geometry(select_preprocessing(PreprocessSettings(resize="none", crop=50)))
    with pytest.raises(ImageError, match="40 x 60 pixels is smaller than the crop"):
        crop_only(noise(40, 60))
    with pytest.raises(ImageError, match="too long and thin"):
        make_geometry(select_preprocessing(PreprocessSettings()))(Image.new("L", (1, 20000)))
    with pytest.raises(ImageError, match="too long and thin"):
        make_geometry(select_preprocessing(PreprocessSettings()))(Image.new("RGB", (20000, 1)))


def test_the_description_says_everything_in_order() -> None:
    """describe() is one line naming each thing done to an image."""
    assert select_preprocessing(PreprocessSettings()).describe() == (
        "RGB -> shorter side to 256 (bilinear, antialiased) -> centre crop 224 x 224 -> [0, 1]"
        " -> minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)"
    )


def test_the_description_names_what_is_off_by_default() -> None:
    """Orientation by EXIF and the value of white are part of what is done, recorded with the rest."""
    p = replace(select_preprocessing(PreprocessSettings(preset="none")), max_value=4095, exif_orientation=True)
    assert p.describe() == "upright by EXIF -> RGB -> [0, 1] (above 8 bits: 4095 is 1)"
    assert (p.to_dict()["max_value"], p.to_dict()["exif_orientation"]) == (4095, True)


def test_the_least_size_of_a_reduced_jpeg_is_twice_what_is_made_of_it() -> None:
    """By the shorter side or by both; upright pictures may lie on their side in the file; whole unless asked for."""

    def size(**options: Any) -> tuple[int, int] | None:
        return select_preprocessing(PreprocessSettings(**options)).draft_size(3000, 4000)

    assert size() is None
    assert size(jpeg_draft=True) == (512, 683)
    assert size(jpeg_draft=True, resize=(100, 50), crop="none") == (200, 100)
    assert size(jpeg_draft=True, resize=(100, 50), crop="none", exif_orientation=True) == (200, 200)
    with pytest.raises(SettingsError, match="jpeg_draft decodes JPEGs smaller before they are resized, but resize is"):
        size(jpeg_draft=True, resize="none", crop=50)
    described = select_preprocessing(PreprocessSettings(jpeg_draft=True)).describe()
    assert described.startswith("large JPEGs decoded at reduced size -> RGB -> shorter side to 256")


def test_an_odd_rest_beside_the_crop() -> None:
    """``crop_rounding`` says where a crop lies that leaves an odd number of pixels: as torchvision, or towards 0."""
    columns = Image.fromarray(np.tile(np.arange(11, dtype=np.uint8)[None, :, None], (4, 1, 3)))

    def first(rounding: str | None, width: int) -> int:
        settings = PreprocessSettings(preset="none", crop=(4, width), crop_rounding=rounding)
        return int(make_geometry(select_preprocessing(settings))(columns)[0, 0, 0])

    # 11 - 8 = 3: 1.5 is rounded to the even 2; 11 - 6 = 5: 2.5 to 2; 11 - 4 = 7: 3.5 to 4.
    assert [first(None, width) for width in (8, 6, 4, 5)] == [2, 2, 4, 3]
    assert [first("down", width) for width in (8, 6, 4, 5)] == [1, 2, 3, 3]
    assert "rounded down" in select_preprocessing(PreprocessSettings(crop_rounding="down")).describe()

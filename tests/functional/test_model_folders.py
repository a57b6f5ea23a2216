"""A stranger's model folder, at the first try: network, preprocessing and class names come from it."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.functional.conftest import Workplace
from tests.model_folders import CLASSES, change_json, write_images, write_timm, write_transformers

CPU = ("--device", "cpu", "--workers", "0")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Workplace:
    """A folder with images and counts."""
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, capsys)


def by_transformers(folder: Path) -> Callable[[Image.Image], Tensor]:
    """Probabilities by transformers itself.

    Its processors resize by Pillow or by torchvision's tensors. The first is what this package does, to the last bit
    but rounding; the second differs by a level or so of a pixel, and probabilities by some 1e-3.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return lambda image: network(**processor(image, return_tensors="pt")).logits.softmax(1)[0]


def by_timm(folder: Path) -> Callable[[Image.Image], Tensor]:
    """Probabilities by timm itself."""
    import timm
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    return lambda image: network(transform(image)[None]).softmax(1)[0]


def check(place: Workplace, own: Callable[[Image.Image], Tensor], out: str = "predictions.csv") -> None:
    """The plain predictions of a run are those of the library."""
    rows = list(csv.DictReader(Path(out).read_text().splitlines()))
    assert len(rows) == 4
    for row in rows:
        with Image.open(Path("images") / row["image"]) as image, torch.no_grad():
            expected = own(image)
        found = torch.tensor([float(row[f"base_p_{name}"]) for name in CLASSES])
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        assert row["base_pred"] == CLASSES[int(expected.argmax())]
    assert len({row["base_confidence"] for row in rows}) == 4


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "mobilevit"])
def test_transformers_folder(kind: str, place: Workplace) -> None:
    """`predict FOLDER COUNTS IMAGES` alone gives the predictions of transformers, for each way of preparing images."""
    write_transformers(Path("model"), kind)
    finished = place.run("predict", "model", "counts.json", "images", "--probs", *CPU)
    assert finished.code == 0, finished.err
    check(place, by_transformers(Path("model")))
    run = json.loads(Path("predictions.run.json").read_text())
    assert run["model"]["format"] == "transformers folder"
    assert run["model"]["classes"] == list(CLASSES)
    assert any("preprocessor_config.json" in note for note in run["model"]["notes"])
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    lines = "".join(f"{sha256(Path('model', name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert run["model"]["sha256"] == sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("spelling", "data"),
    [
        ("model", {}),
        ("local-dir:model", {"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"}),
        ("model/model.safetensors", {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "crop_pct": 0.9}),
    ],
)
def test_timm_folder(spelling: str, data: dict[str, object], place: Workplace) -> None:
    """The same for timm, by each spelling: crop, squeeze, mean and interpolation come from its config."""
    write_timm(Path("model"), input_size=[3, 33, 33], **data)
    finished = place.run("predict", spelling, "counts.json", "images", "--probs", *CPU)
    assert finished.code == 0, finished.err
    check(place, by_timm(Path("model")))


@pytest.mark.parametrize("how", ["shards", "pickle", "pickle shards"])
def test_other_weights_of_transformers(how: str, place: Workplace) -> None:
    """Weights in parts, and in ``pytorch_model.bin``, give the same as those in one safetensors file."""
    network = write_transformers(Path("model"), "resnet", **({} if how == "pickle" else {"max_shard_size": "8KB"}))
    own = by_transformers(Path("model"))
    if how != "shards":
        from safetensors.torch import load_file

        for path in Path("model").glob("model*.safetensors"):
            torch.save(load_file(path), Path("model", f"pytorch_{path.stem}.bin"))
            path.unlink()
    if how == "pickle shards":
        index = Path("model/model.safetensors.index.json")
        text = index.read_text().replace(".safetensors", ".bin").replace('"model-', '"pytorch_model-')
        Path("model/pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    assert isinstance(network, nn.Module)
    finished = place.run("predict", "model", "counts.json", "images", "--probs", *CPU)
    assert finished.code == 0, finished.err
    assert ("put together" in finished.err) == ("shards" in how)
    check(place, own)


def test_options_win_over_what_a_folder_says(place: Workplace) -> None:
    """A preset takes the place of the folder's preprocessing, and a single option that of one entry."""
    write_timm(Path("model"), input_size=[3, 32, 32], crop_pct=1.0, interpolation="bicubic")
    shown = []
    for options in ((), ("--mean", "0.5"), ("--preset", "imagenet"), ("--preset", "none", "--resize", "40,40")):
        finished = place.run("inspect", "model", *options, "--json", *CPU[:2])
        assert finished.code == 0, finished.err
        shown.append(json.loads(finished.out)["preprocessing"])
    assert (shown[0]["resize"], shown[0]["crop"], shown[0]["interpolation"]) == (32, [32, 32], "bicubic")
    assert shown[1] == shown[0] | {"mean": [0.5, 0.5, 0.5]}
    assert (shown[2]["resize"], shown[2]["crop"], shown[2]["interpolation"]) == (256, [224, 224], "bilinear")
    assert (shown[3]["resize"], shown[3]["mean"]) == ([40, 40], [0, 0, 0])


def test_class_names_of_a_folder(place: Workplace) -> None:
    """Names are held against COUNTS, given to a bare list, and placeholders are no names."""
    write_transformers(Path("model"))
    Path("other.json").write_text(json.dumps({"mel": 100, "nv": 600, "bcc": 20}))
    assert "order" in place.fails("predict", "model", "other.json", "images", *CPU)
    Path("bare.json").write_text("[600, 100, 20]")
    assert place.run("predict", "model", "bare.json", "images", "--probs", *CPU).code == 0
    assert "p_bcc" in Path("predictions.csv").read_text()
    labels = {str(index): f"LABEL_{index}" for index in range(3)}
    change_json(Path("model/config.json"), id2label=labels, label2id={name: int(i) for i, name in labels.items()})
    assert place.run("predict", "model", "other.json", "images", "-o", "other.csv", *CPU).code == 0


def test_recipe_resume_shards_and_verify_with_a_folder(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is named from the recipe's own, and is told by its hash where files are told by theirs."""
    Path("models").mkdir()
    write_transformers(Path("models/vit"))
    assert place.run("init", "local-dir:models/vit", "counts.json", "-o", "models/imbperturb.toml", *CPU).code == 0
    recipe = tomllib.loads(Path("models/imbperturb.toml").read_text())
    assert recipe["model"]["model"] == "local-dir:vit"
    assert recipe["preprocess"]["mean"] == [0.5, 0.5, 0.5]
    with_recipe = ("--recipe", "models/imbperturb.toml", "--probs")
    for part in ("1/2", "2/2"):
        assert place.run("predict", "images", *with_recipe, "--shard", part, "-o", f"{part[0]}.csv").code == 0
    assert place.run("predict", "images", *with_recipe, "--resume").code == 0
    check(place, by_transformers(Path("models/vit")))
    assert place.run("merge", "1.csv", "2.csv", "-o", "merged.csv").code == 0
    assert Path("merged.csv").read_bytes() == Path("predictions.csv").read_bytes()
    assert place.run("verify", "predictions.run.json").code == 0
    shutil.move("models/vit", "moved")
    assert "say where with --model" in place.fails("verify", "predictions.run.json")
    assert place.run("verify", "predictions.run.json", "--model", "moved").code == 0
    change_json(Path("moved/config.json"), hidden_act="relu")
    assert "SHA-256 differs" in place.fails("verify", "predictions.run.json", "--model", "moved")


def test_timm_by_name_prepares_images_as_timm_does(place: Workplace) -> None:
    """``--arch timm:NAME`` on tensors alone takes timm's mean, std, crop and interpolation, and says so."""
    write_timm(Path("model"))
    shutil.move("model/model.safetensors", "weights.safetensors")
    finished = place.run("inspect", "weights.safetensors", "--arch", "timm:test_resnet", *CPU[:2])
    assert finished.code == 0, finished.err
    text = " ".join(finished.out.split())
    assert "the preprocessing of timm's test_resnet is taken" in text
    assert "shorter side to 168 (bilinear, antialiased) -> centre crop 160 x 160" in text
    assert "minus (0.5, 0.5, 0.5), over (0.5, 0.5, 0.5)" in text


def test_a_folder_that_does_not_say_how_images_are_prepared(place: Workplace) -> None:
    """Nothing is assumed: the run is refused with what to say, and does once a preset or every entry is said."""
    write_transformers(Path("model"), "resnet")
    Path("model/preprocessor_config.json").unlink()
    run = ("predict", "model", "counts.json", "images", *CPU)
    assert "--preset none with --resize" in place.fails(*run)
    assert "--preset none with --resize" in place.fails(*run, "--resize", "32,32", "--crop", "none")
    said = ("--resize", "32,32", "--crop", "none", "--mean", "0.5", "--std", "0.5", "--interpolation", "bicubic")
    assert place.run(*run, *said).code == 0
    every = Path("predictions.csv").read_bytes()
    assert place.run(*run, *said, "--preset", "imagenet", "-o", "again.csv").code == 0
    assert Path("again.csv").read_bytes() == every

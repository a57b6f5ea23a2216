"""``imbperturb export``: the files, what they say of themselves, and who reads them."""

from __future__ import annotations

import csv
import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import imbalance_perturb as ip
from imbalance_perturb.cli.app import main
from tests.functional.conftest import Workplace

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve_onnx.py"

#: How images are prepared for the network below, and the correction; nothing of it is the default.
OPTIONS = ("--resize", "20", "--crop", "16", "--mean", "0.4,0.5,0.6", "--std", "0.2,0.3,0.4", "--eps", "0.1")


def network() -> nn.Module:
    """Every layer that a small network of images has, and more parameters than all else in a file."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    head = [nn.Conv2d(8, 64, 3, 1, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, *head, nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 4)).eval()
    # An untrained network answers every image alike: centre and stretch the logits, so that images differ.
    with torch.no_grad():
        logits = model(nn.functional.interpolate(torch.randn(64, 3, 2, 2), 16, mode="bicubic"))
        model[-1].weight /= logits.std(0).mean()
        model[-1].bias.copy_((model[-1].bias - logits.mean(0)) / logits.std(0).mean())
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``model.pt`` (TorchScript), counts, images, both files of it, and the model's own predictions."""
    folder = tmp_path_factory.mktemp("exported")
    torch.jit.save(torch.jit.trace(network(), torch.randn(2, 3, 16, 16)), folder / "model.pt")
    (folder / "counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 3}))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        small = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
        small.resize((30 + index, 41), Image.Resampling.BICUBIC).save(folder / "images" / f"{index:02d}.png")
    before = Path.cwd()
    os.chdir(folder)
    run("predict", "model.pt", "counts.json", "images", *OPTIONS, "--precision", "fp32", "-o", "own.csv")
    run("export", "model.pt", "counts.json", *OPTIONS, "-o", "debiased.pt2")
    run("export", "model.pt", "counts.json", *OPTIONS, "-o", "debiased.onnx")
    yield folder
    os.chdir(before)


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--quiet"])
    assert not ended.value.code


def labels(path: Path, *columns: str) -> list[tuple[str, ...]]:
    with path.open(newline="") as stream:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(stream)]


def test_predict_takes_the_files_own_correction(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows are those of the model with its options, which the file brings: nothing is corrected twice."""
    with pytest.raises(SystemExit) as ended:
        main(["predict", "debiased.pt2", "counts.json", "images", "-o", "again.csv"])
    assert not ended.value.code
    said = capsys.readouterr().err
    assert "correction: eps 0.1 in units of the model input" in said
    assert "nothing is added" in said
    assert said.count("network: as the file has it\n") == 1
    assert labels(exported / "again.csv", "image", "base_pred", "pred") == labels(
        exported / "own.csv", "image", "base_pred", "pred"
    )
    assert any(changed == "1" for (changed,) in labels(exported / "own.csv", "changed"))
    for columns in ("confidence", "base_confidence"):
        own, again = ([float(v) for (v,) in labels(exported / f"{f}.csv", columns)] for f in ("own", "again"))
        assert again == pytest.approx(own, abs=1e-5)
    settings = json.loads((exported / "again.run.json").read_text())["settings"]
    assert (settings["debias"]["eps"], settings["run"]["precision"]) == (0.1, "fp32")
    run("verify", "again.run.json")


def test_torch_alone_opens_the_program(exported: Path) -> None:
    """``torch.export.load(...).module()`` returns logits and base logits for any batch, without autograd."""
    module = torch.export.load(exported / "debiased.pt2").module()
    for n in (1, 3, 7):
        x = torch.randn(n, 3, 16, 16)
        with torch.inference_mode():
            logits, base = module(x)
        torch.testing.assert_close(base, network()(x), rtol=1e-4, atol=1e-4)
        counts = ip.load_class_counts(exported / "counts.json")
        expected = ip.PerturbedClassifier(network(), counts, eps=0.1)(x)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_the_program_moves_to_another_device(exported: Path) -> None:
    """No constant of the graph stays on the CPU: on a device without memory any would be in the way."""
    model = ip.load_classifier(exported / "debiased.pt2", input_shape=(3, 16, 16))
    model.place_on(torch.device("meta"))
    assert model(torch.empty(3, 3, 16, 16, device="meta")).shape == (3, 4)


@pytest.mark.parametrize("name", ["debiased.pt2", "debiased.onnx"])
def test_a_file_says_what_it_is(exported: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes, counts, p*, correction, preprocessing, versions and the model's hash; parameters stand in it once."""
    with pytest.raises(SystemExit):
        main(["inspect", name, "counts.json", "--json"])
    card = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in card["classes"]] == ["a", "b", "c", "d"]
    target = ip.target_distribution(ip.load_class_counts(exported / "counts.json"))
    assert [one["target"] for one in card["classes"]] == pytest.approx(target.tolist())
    assert (card["correction"]["eps"], card["correction"]["temperature"]) == (0.1, 1000.0)
    assert card["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert card["model"]["sha256"] == ip.load_classifier(exported / "model.pt", input_shape=(3, 16, 16)).info.sha256
    assert card["input"] == {"name": "images", "dtype": "float32", "shape": ["batch", 3, 16, 16]}
    assert card["outputs"] == ["logits", "base_logits"]
    with pytest.raises(SystemExit):
        main(["inspect", name])
    assert "made from" in capsys.readouterr().out
    parameters = 4 * sum(p.numel() for p in network().parameters())
    assert (exported / name).stat().st_size < 1.5 * parameters
    assert str(exported) not in (exported / name).read_bytes().decode("latin-1")


def test_the_example_needs_no_torch(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime, numpy and Pillow give the labels of ``predict``, also where normalising is in the graph."""
    run("export", "model.pt", "counts.json", *OPTIONS, "--with-preprocessing", "-o", "pixels.onnx")
    assert ip.read_card(exported / "pixels.onnx").input.dtype == "uint8"  # type: ignore[union-attr]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch", None)
        for name in ("debiased.onnx", "pixels.onnx"):
            runpy.run_path(str(EXAMPLE))["main"](name, "images")
    rows = list(
        csv.DictReader(capsys.readouterr().out.replace("image,pred\r\n", "", 1).splitlines(), ["image", "pred"])
    )
    found = [(Path(row["image"]).name, row["pred"]) for row in rows if row["image"] != "image"]
    assert found == 2 * labels(exported / "own.csv", "image", "pred")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("predict", "debiased.pt2", "counts.json", "images", "--eps", "0.3"), 2, "corrected already"),
        (("predict", "debiased.pt2", "other.json", "images"), 1, "other counts than debiased.pt2 was corrected for"),
        (("predict", "debiased.pt2", "counts.json", "images", "--precision", "bf16"), 2, "in float32"),
        (("tune-eps", "debiased.pt2", "counts.json", "--val", "images", "--labels", "l.csv"), 2, "corrected already"),
        (("export", "debiased.pt2", "counts.json", "-o", "twice.pt2"), 2, "corrected already"),
        (("export", "model.pt", "counts.json", "-o", "images"), 1, "the suffix names no format"),
        (("export", "model.pt", "counts.json", "-o", "folder.onnx"), 1, "is a folder"),
        (("export", "model.pt", "counts.json", "--eps", "auto", "-o", "a.pt2"), 2, "eps is auto"),
        (("export", "model.pt", "counts.json", "--precision", "bf16", "-o", "a.pt2"), 2, "in float32"),
        (("export", "maxima.pt", "counts.json", *OPTIONS, "-o", "a.pt2"), 1, "adaptive_max_pool2d"),
    ],
)
def test_what_cannot_be_is_refused(
    exported: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that names it, before a file is written."""
    (exported / "folder.onnx").mkdir(exist_ok=True)
    (exported / "other.json").write_text(json.dumps({"a": 901, "b": 90, "c": 30, "d": 3}))
    (exported / "l.csv").write_text("image,label\n" + "".join(f"{i:02d}.png,{'abcd'[i % 4]}\n" for i in range(12)))
    maxima = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    torch.jit.save(torch.jit.trace(maxima.eval(), torch.randn(2, 3, 16, 16)), exported / "maxima.pt")
    before = sorted(exported.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == code
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("imbperturb: error: ")
    assert message in last
    assert sorted(exported.iterdir()) == before


def test_a_damaged_card_is_refused(exported: Path) -> None:
    """An ONNX file that is cut off, and a card of another version, say so."""
    content = (exported / "debiased.onnx").read_bytes()
    (exported / "cut.onnx").write_bytes(content[:-40])
    with pytest.raises(ip.ModelFileError, match="cut off"):
        ip.read_card(exported / "cut.onnx")
    (exported / "old.onnx").write_bytes(content.replace(b"imbperturb export 1", b"imbperturb export 0"))
    with pytest.raises(ip.ModelFileError, match="schema is 'imbperturb export 0'"):
        ip.read_card(exported / "old.onnx")
    assert ip.read_card(exported / "model.pt") is None


def test_three_steps_in_a_recipe(workplace: Workplace) -> None:
    """A recipe's settings are the file's: several steps, clipping and tau, from an exported program."""
    program = torch.export.export(network(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, "model.pt2")
    Path("imbperturb.toml").write_text(
        '[model]\nmodel = "model.pt2"\ncounts = "counts.json"\n'
        '[preprocess]\nresize = [16, 16]\ncrop = "none"\n'
        "[debias]\nsteps = 3\neps = 0.01\nclip = true\ntau = 0.5\n"
    )
    finished = workplace.run("export", "-o", "three.pt2", "--json")
    assert finished.code == 0, finished
    assert json.loads(finished.out)["card"]["correction"]["steps"] == 3
    assert "proved on batches of 5, 2, 1 random images" in finished.err

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import imbalance_perturb as ip
from tests.functional.conftest import SMALL, Workplace


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


def predict(workplace: Workplace, *more: str) -> list[dict[str, str]]:
    finished = workplace.run("predict", "model.pth", "counts.json", "images", *SMALL, *more)
    assert finished.code == 0, finished.err
    return rows("predictions.csv")


def test_predictions_and_run_file(workplace: Workplace) -> None:
    """One row for each image in sorted order, and a run file that holds all that made them."""
    found = predict(workplace, "--eps", "0.05", "--probs")
    names = sorted(path.relative_to("images").as_posix() for path in Path("images").rglob("*.png"))
    assert [row["image"] for row in found] == names
    assert list(found[0])[7:] == ["p_a", "p_b", "p_c", "p_d", "base_p_a", "base_p_b", "base_p_c", "base_p_d"]
    assert not list(Path().glob("*.partial"))
    run = json.loads(Path("predictions.run.json").read_text())
    assert run["model"]["sha256"] == hashlib.sha256(Path("model.pth").read_bytes()).hexdigest()
    assert run["counts"]["sha256"] == hashlib.sha256(Path("counts.json").read_bytes()).hexdigest()
    assert run["model"]["arch"] == "shufflenet_v2_x0_5"
    assert [c["name"] for c in run["classes"]] == ["a", "b", "c", "d"]
    assert [c["count"] for c in run["classes"]] == [900, 90, 30, 3]
    assert sum(c["target"] for c in run["classes"]) == pytest.approx(1)
    assert run["settings"]["debias"]["eps"] == 0.05
    assert run["preprocessing"] == {
        "resize": 32,
        "crop": [32, 32],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "color": "rgb",
        "max_value": None,
        "exif_orientation": False,
        "jpeg_draft": False,
    }
    assert run["images"]["total"] == run["images"]["done"] == 9
    assert run["images"]["changed"] == sum(int(row["changed"]) for row in found)
    assert run["versions"]["torch"] == torch.__version__
    assert run["versions"]["torchvision"] == torchvision.__version__
    assert run["versions"]["numpy"] == np.__version__
    assert "pydicom" in run["versions"]
    assert run["execution"]["precision"] == "fp32"
    assert {"decode", "gradient pass", "final pass", "write", "total"} <= run["seconds"].keys()


def test_predictions_are_those_of_the_library(workplace: Workplace) -> None:
    """The command's labels and confidences are those of the module on torchvision's own transforms."""
    found = predict(workplace, "--eps", "0.05")
    counts = ip.load_class_counts("counts.json")
    debiased = ip.PerturbedClassifier(ip.load_classifier("model.pth"), counts, eps=0.05)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    transform = weights.transforms(crop_size=32, resize_size=32)
    from PIL import Image

    x = torch.stack([transform(Image.open(Path("images") / row["image"]).convert("RGB")) for row in found])
    base, logits = debiased.predict_both(x)
    assert [row["base_pred"] for row in found] == [counts.names[i] for i in base.argmax(1)]
    assert [row["pred"] for row in found] == [counts.names[i] for i in logits.argmax(1)]
    confidences = [float(row["confidence"]) for row in found]
    assert confidences == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
    assert any(row["changed"] == "1" for row in found)


def test_batch_sizes_and_workers_give_the_same_labels(workplace: Workplace) -> None:
    """Batch sizes 1 and 64, with and without worker processes, give the same labels for every image."""
    labels = []
    for options in (("--batch-size", "1"), ("--batch-size", "64"), ("--batch-size", "2", "--workers", "2")):
        labels.append([(row["image"], row["base_pred"], row["pred"]) for row in predict(workplace, *options)])
    assert labels[0] == labels[1] == labels[2]


def test_eps_zero_gives_the_base_predictions(workplace: Workplace) -> None:
    """With --eps 0 prediction and confidence are the base ones to the last digit."""
    for row in predict(workplace, "--eps", "0"):
        assert (row["pred"], row["confidence"], row["changed"]) == (row["base_pred"], row["base_confidence"], "0")


def test_the_command_says_what_it_will_do(workplace: Workplace) -> None:
    """Before it starts the command prints the model, what is done to an image, and the correction."""
    finished = workplace.run(
        "predict", "model.pth", "counts.json", "images", *SMALL, "--eps", "0.01", "--eps-space", "pixel", "--clip"
    )
    assert finished.out == ""
    assert "shufflenet_v2_x0_5, 4 classes" in finished.err
    assert "each image: RGB -> shorter side to 32 (bilinear, antialiased) -> centre crop 32 x 32" in finished.err
    assert "correction: eps 0.01 in units of the [0, 1] pixels, clipped to [0, 1] pixels, T 1000" in finished.err
    assert "9 predicted" in finished.err


def test_streams_and_formats(workplace: Workplace) -> None:
    """-o - puts the CSV alone on stdout, .jsonl writes JSON Lines, --quiet is silent, --json sums up."""
    script = ["predict", "model.pth", "counts.json", "images", *SMALL]
    command = [sys.executable, "-m", "imbalance_perturb", *script, "-o", "-"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True, cwd=workplace.folder)
    assert piped.stdout.startswith("image,base_pred,")
    assert len(piped.stdout.splitlines()) == 10
    assert "9 predicted" in piped.stderr
    quiet = workplace.run(*script, "-o", "out.jsonl", "--quiet", "--json")
    assert quiet.err == ""
    assert json.loads(quiet.out)["done"] == 9
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == [
        row["image"] for row in csv.DictReader(piped.stdout.splitlines())
    ]
    assert Path("out.run.json").is_file()


def test_an_unreadable_image_has_its_own_row(workplace: Workplace) -> None:
    """A broken image ends in its own row and exit code 3, everything else is predicted as without it."""
    whole = predict(workplace)
    Path("images/0_broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a whole JPEG")
    Path("images/notes.txt").write_text("not an image")
    finished = workplace.run("predict", "model.pth", "counts.json", "images", *SMALL)
    assert finished.code == 3
    assert "1 other files left aside: 1 .txt" in finished.err
    assert "failed: 0_broken.jpg: " in finished.err
    found = rows("predictions.csv")
    assert [row for row in found if not row["error"]] == whole
    (broken,) = [row for row in found if row["error"]]
    assert (broken["image"], broken["pred"], broken["changed"]) == ("0_broken.jpg", "", "")


def test_one_image_and_a_list(workplace: Workplace) -> None:
    """One image or a CSV of images gives the same predictions as the folder."""
    whole = {row["image"]: row["pred"] for row in predict(workplace)}
    assert workplace.run("predict", "model.pth", "counts.json", "images/0.png", *SMALL).code == 0
    assert [(row["image"], row["pred"]) for row in rows("predictions.csv")] == [("0.png", whole["0.png"])]
    Path("images/list.csv").write_text("image\nsub/3.png\n2.png\nmissing.png\n")
    assert workplace.run("predict", "model.pth", "counts.json", "images/list.csv", *SMALL).code == 3
    found = rows("predictions.csv")
    assert [row["image"] for row in found] == ["2.png", "missing.png", "sub/3.png"]
    assert [row["pred"] for row in found if not row["error"]] == [whole["2.png"], whole["sub/3.png"]]
    assert found[1]["error"] == "no such file or directory"


def test_images_of_several_sizes_without_resizing(workplace: Workplace) -> None:
    """With --preset none images keep their own sizes and each still gets its own prediction."""
    from PIL import Image

    Image.new("RGB", (50, 64), (200, 10, 10)).save("images/9.png")
    finished = workplace.run("predict", "model.pth", "counts.json", "images", "--preset", "none")
    assert finished.code == 0, finished.err
    alone = workplace.run("predict", "model.pth", "counts.json", "images/9.png", "--preset", "none", "-o", "alone.csv")
    assert alone.code == 0
    assert rows("alone.csv")[0]["pred"] == rows("predictions.csv")[5]["pred"]
    assert rows("predictions.csv")[5]["image"] == "9.png"


def test_every_option_of_the_correction_reaches_the_model(workplace: Workplace) -> None:
    """Each option of the correction changes the confidences, as it does in the library."""
    plain = predict(workplace, "--eps", "0.05")
    Path("target.json").write_text(json.dumps({"a": 0.7, "b": 0.1, "c": 0.1, "d": 0.1}))
    for option in (
        ("--eps", "0.06"),
        ("--temperature", "0.5"),
        ("--target", "inverse"),
        ("--target-m", "100000"),
        ("--target", "target.json"),
        ("--eps-space", "pixel"),
        ("--steps", "3"),
        ("--tau", "0.5"),
    ):
        other = predict(workplace, "--eps", "0.05", *option)
        assert [row["base_confidence"] for row in other] == [row["base_confidence"] for row in plain]
        assert [row["confidence"] for row in other] != [row["confidence"] for row in plain], option
    # At T = 1000 the losses differ little; at T = 1 they do not agree.
    by_loss = {
        loss: predict(workplace, "--temperature", "1", "--loss", loss) for loss in ("cross-entropy", "mse", "focal")
    }
    assert len({tuple(row["confidence"] for row in found) for found in by_loss.values()}) == 3


def test_deterministic_repeats_bit_for_bit(workplace: Workplace) -> None:
    """Two runs with --deterministic write the same bytes."""
    predict(workplace, "--deterministic", "--probs")
    first = Path("predictions.csv").read_bytes()
    predict(workplace, "--deterministic", "--probs")
    assert Path("predictions.csv").read_bytes() == first

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import imbalance_perturb as ip
from imbalance_perturb.errors import OutputFileError
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
    files = "".join(f"{name}\0{Path('images', name).stat().st_size}\0" for name in names)
    assert run["images"]["files_sha256"] == hashlib.sha256(files.encode()).hexdigest()
    assert run["images"]["changed"] == sum(int(row["changed"]) for row in found)
    assert run["versions"]["torch"] == torch.__version__
    assert run["versions"]["torchvision"] == torchvision.__version__
    assert run["versions"]["numpy"] == np.__version__
    assert "pydicom" in run["versions"]
    assert run["execution"]["precision"] == "fp32"
    assert {"decode", "gradient pass", "final pass", "write", "total"} <= run["seconds"].keys()


def test_margins_are_of_the_two_largest_probabilities(workplace: Workplace) -> None:
    """--margin adds a column after the error: how far the corrected label is before the next; empty where it failed."""
    Path("images/broken.png").write_bytes(b"no image")
    assert workplace.run("predict", "model.pth", "counts.json", "images", *SMALL, "--margin", "--probs").code == 3
    good = rows("predictions.csv")
    failed = good.pop(5)
    assert list(failed)[5:9] == ["changed", "error", "margin", "p_a"]
    assert (failed["image"], failed["margin"]) == ("broken.png", "")
    for row in good:
        first, second = sorted((float(row[f"p_{name}"]) for name in "abcd"), reverse=True)[:2]
        assert float(row["margin"]) == pytest.approx(first - second, abs=1e-7)
        assert float(row["confidence"]) == pytest.approx(first, abs=1e-7)
    assert json.loads(Path("predictions.run.json").read_text())["output"]["margin"] is True
    assert workplace.run("predict", "model.pth", "counts.json", "images", *SMALL).code == 3
    assert "margin" not in rows("predictions.csv")[0]


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
    assert Path("out.jsonl.run.json").is_file()


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


COMMAND = ("predict", "model.pth", "counts.json", "images", *SMALL)


def test_a_finished_run_is_finished_whatever_is_measured_now(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume on a finished run measures nothing and does nothing; what is asked for and differs is refused."""
    monkeypatch.setattr("imbalance_perturb.inference.pipeline.MEASURED_FROM", 9)
    measured: list[int] = []

    def measure(*arguments: object) -> int:
        measured.append(8 * 2 ** len(measured))
        return measured[-1]

    monkeypatch.setattr("imbalance_perturb.inference.pipeline.measure_batch_size", measure)
    predict(workplace)
    before = {path: path.read_bytes() for path in Path().glob("predictions.*")}
    finished = workplace.run(*COMMAND, "--resume")
    assert finished.code == 0, finished.err
    assert "9 of 9 images had been done before" in finished.err
    assert measured == [8]
    assert {path: path.read_bytes() for path in Path().glob("predictions.*")} == before
    message = workplace.fails(*COMMAND, "--resume", "--batch-size", "16")
    assert "different: the batch size (8 then, 16 now);" in message


def test_a_finished_run_is_finished_on_every_machine(workplace: Workplace) -> None:
    """What was left to the machine may come out otherwise on the next one; what is asked for may not."""
    predict(workplace)
    run = json.loads(Path("predictions.run.json").read_text())
    run["execution"] |= {"device_name": "NVIDIA H100", "precision": "auto", "low_dtype": "bf16"}
    Path("predictions.run.json").write_text(json.dumps(run))
    finished = workplace.run(*COMMAND, "--resume")
    assert finished.code == 0, finished.err
    message = workplace.fails(*COMMAND, "--resume", "--device", "cpu")
    assert "different: the device (NVIDIA H100 then, CPU now);" in message
    assert "different: precision (auto then, fp32 now)" in workplace.fails(*COMMAND, "--resume", "--precision", "fp32")


def test_an_image_that_was_replaced_is_noticed(workplace: Workplace) -> None:
    """--resume on a run whose images have other sizes in bytes now is refused; the other images are not told apart."""
    predict(workplace)
    Path("images/2.png").write_bytes(Path("images/2.png").read_bytes() + b"more")
    assert "different: the images (some file has another size);" in workplace.fails(*COMMAND, "--resume")
    Path("images/2.png").unlink()
    assert "different: the list of images;" in workplace.fails(*COMMAND, "--resume")


def test_predictions_in_several_formats_stand_side_by_side(workplace: Workplace) -> None:
    """Each has its own run file, and none orphans another's."""
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert workplace.run(*COMMAND, "-o", f"results{suffix}").code == 0
    names = {path.name for path in Path().glob("results*")}
    assert names == {
        *("results.csv", "results.jsonl", "results.parquet"),
        *("results.run.json", "results.jsonl.run.json", "results.parquet.run.json"),
    }
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert workplace.run(*COMMAND, "-o", f"results{suffix}", "--resume").code == 0
        assert workplace.run("verify", f"results{suffix}").code == 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc/self/fd")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_are_closed_before_they_are_renamed_or_removed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """As Windows demands: in a whole run, one cut off, one resumed, and one cut off before its run file."""
    calls: list[str] = []

    def refusing(name: str) -> None:
        real = getattr(os, name)

        def checked(*paths: str | Path, **more: object) -> None:
            calls.append(name)
            opened = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
            for path in paths:
                if os.path.realpath(path) in opened:
                    raise PermissionError(13, "The process cannot access the file", str(path))
            real(*paths, **more)

        monkeypatch.setattr(os, name, checked)

    for name in ("unlink", "replace", "rename", "remove"):
        refusing(name)
    out = f"out{suffix}"
    Path("images/9_broken.png").write_bytes(b"no image")
    command = (*COMMAND, "--batch-size", "1", "--workers", "0", "-o", out)
    assert workplace.run(*command).code == 3
    whole = Path(out).read_bytes()
    cut = workplace.run(*command, "--on-error", "fail")
    assert cut.code == 1
    assert "9_broken.png: " in cut.err
    assert workplace.run(*command, "--resume").code == 3
    with monkeypatch.context() as patched:

        def full(path: Path, data: object) -> None:
            raise OutputFileError(f"{path}: writing stopped")

        patched.setattr("imbalance_perturb.inference.folder_prediction.write_json", full)
        assert "run.json: writing stopped" in workplace.run(*command).err
    assert workplace.run(*command, "--resume").code == 3
    assert Path(out).read_bytes() == whole
    assert {"unlink", "replace"} <= set(calls)
    assert not [path.name for path in Path().iterdir() if path.suffix in (".partial", ".progress", ".tmp")]

"""The checkpoints on the paper's data set: MCR, SCR and accuracy at the paper's eps, from the real commands.

    python examples/skin7/reproduce.py SHARED

SHARED holds `data/skin7` (images, labels.csv) and `models` (the checkpoints). Counts come from the training folds 2-4,
predictions are of fold 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

CLASSES = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
NORMALISE = ("--mean", "0.7626,0.5453,0.5714", "--std", "0.1404,0.1519,0.1685")
MODELS = {
    "skin7_efficientnet_lite0.torchscript.pt": ("--resize", "112,112", "--crop", "none"),
    "skin7_resnet18.pth": ("--resize", "64", "--crop", "64"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Reproduce the checkpoints' figures on Skin7.")
    parser.add_argument("shared", type=Path, help="folder with data/skin7 and models")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.001, 0.005])
    args = parser.parse_args()
    with (args.shared / "data" / "skin7" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    images = (args.shared / "data" / "skin7" / "images").resolve()
    train = Counter(row["label"] for row in rows if row["fold"] in "234")
    fold = {str(images / row["image"]): row["label"] for row in rows if row["fold"] == "0"}
    print(f"{'model':42}{'eps':>8}{'MCR':>8}{'SCR':>8}{'acc.':>8}{'changed':>9}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "counts.json").write_text(json.dumps({label: train[label] for label in CLASSES}))
        (work / "fold0.csv").write_text("\n".join(["image", *fold]) + "\n")
        for model, options in MODELS.items():
            for eps in args.eps:
                found = predict(args.shared.resolve() / "models" / model, work, [*options, *NORMALISE], eps)
                truth = [fold[row["image"]] for row in found]
                if eps == args.eps[0]:
                    show(model, "base", truth, [row["base_pred"] for row in found], 0.0)
                changed = sum(int(row["changed"]) for row in found) / len(found)
                show(model, f"{eps:g}", truth, [row["pred"] for row in found], changed)


def predict(model: Path, work: Path, options: list[str], eps: float) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "imbalance_perturb", "predict", str(model), "counts.json", "fold0.csv"]
    subprocess.run([*command, *options, "--eps", str(eps), "--quiet"], cwd=work, check=True)
    with (work / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def show(model: str, eps: str, truth: list[str], preds: list[str], changed: float) -> None:
    scr = recall_score(truth, preds, labels=["df"], average=None)[0]
    mcr, accuracy = balanced_accuracy_score(truth, preds), accuracy_score(truth, preds)
    print(f"{model:42}{eps:>8}{mcr:8.4f}{scr:8.4f}{accuracy:8.4f}{changed:9.2%}")


if __name__ == "__main__":
    main()

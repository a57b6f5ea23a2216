"""The whole job in Python: choose eps on some labelled images, predict others, and see what it was worth.

    python examples/digits_in_python.py FOLDER

FOLDER, new or empty, receives the demonstration's images, counts and model (scikit-learn's handwritten digits), and
the results. Put your own model, counts and folders in their place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imbalance_perturb.config.recipe import merge_settings
from imbalance_perturb.data.demo_files import write_demo
from imbalance_perturb.data.image_files import find_images
from imbalance_perturb.data.labels import find_labelled_images
from imbalance_perturb.evaluation.evaluation_files import evaluate_files
from imbalance_perturb.inference.folder_prediction import predict_folder
from imbalance_perturb.inference.pipeline import load_pipeline
from imbalance_perturb.selection.comparison.method_comparison import ComparisonFiles, compare_methods
from imbalance_perturb.selection.tuning.eps_tuning import TuningOptions, tune


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tune, predict, evaluate and compare, in Python.")
    parser.add_argument("folder", type=Path, help="new or empty folder to work in")
    folder = parser.parse_args(argv).folder
    write_demo(folder)

    # The same tables as a recipe has; what is left out takes its default.
    tables = {
        "model": {"model": str(folder / "model.safetensors"), "counts": str(folder / "counts.json")},
        "preprocess": {"preset": "none", "resize": 64, "mean": (0.5,), "std": (0.5,)},
        "run": {"device": "cpu"},
    }
    settings = merge_settings(tables)
    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    val = find_labelled_images(folder / "val", folder / "val.csv", classes)
    tuning = tune(
        load_pipeline(settings, val.images, exact=True), val, TuningOptions(eps_grid=(0.001, 0.005, 0.01, 0.02, 0.05))
    )
    print("tuning:", *tuning.summary, sep="\n  ")

    images = find_images(folder / "images")
    chosen = merge_settings(tables, {"debias": {"eps": tuning.choice.eps}})
    predict_folder(load_pipeline(chosen, images), images, str(folder / "predictions.csv"))

    evaluation = evaluate_files(folder / "predictions.csv", folder / "labels.csv")
    mcr = evaluation.differences["mcr"]
    interval = "" if mcr.interval is None else f" ({mcr.interval.low:+.4f} to {mcr.interval.high:+.4f})"
    print(f"MCR {evaluation.base.mcr:.4f} -> {evaluation.perturbed.mcr:.4f}: {mcr.value:+.4f}{interval}")

    files = ComparisonFiles(*(str(folder / name) for name in ("val", "val.csv", "images", "labels.csv")))
    print("comparison:", compare_methods(settings, files).advice.sentence)


if __name__ == "__main__":
    main()

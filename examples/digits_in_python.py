"""The whole job in Python: choose eps on some labelled images, predict others, and see what it was worth.

    python examples/digits_in_python.py FOLDER

FOLDER, new or empty, receives the demonstration's images, counts and model (scikit-learn's handwritten digits), and
the results. Put your own model, counts and folders in their place.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import imbalance_perturb as ip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tune, predict, evaluate and compare, in Python.")
    parser.add_argument("folder", type=Path, help="new or empty folder to work in")
    folder = parser.parse_args(argv).folder
    ip.write_demo(folder)

    # The same tables as a recipe has; what is left out takes its default.
    settings = ip.Settings(
        model=ip.ModelSettings(model=str(folder / "model.safetensors"), counts=str(folder / "counts.json")),
        preprocess=ip.PreprocessSettings(preset="none", resize=64, mean=(0.5,), std=(0.5,)),
        run=ip.RunSettings(device="cpu"),
    )
    val, val_labels, images, labels = (folder / name for name in ("val", "val.csv", "images", "labels.csv"))

    tuning = ip.tune(settings, val, val_labels, ip.TuningOptions(eps_grid=(0.001, 0.005, 0.01, 0.02, 0.05)))
    print("tuning:", *tuning.summary, sep="\n  ")

    chosen = replace(settings, debias=ip.DebiasSettings(eps=tuning.choice.eps))
    ip.predict_folder(chosen, images, folder / "predictions.csv")

    evaluation = ip.evaluate_files(folder / "predictions.csv", labels)
    mcr = evaluation.differences["mcr"]
    interval = "" if mcr.interval is None else f" ({mcr.interval.low:+.4f} to {mcr.interval.high:+.4f})"
    print(f"MCR {evaluation.base.mcr:.4f} -> {evaluation.perturbed.mcr:.4f}: {mcr.value:+.4f}{interval}")

    files = ip.ComparisonFiles(val=val, labels=val_labels, test=images, test_labels=labels)
    print("comparison:", ip.compare_methods(settings, files).advice.sentence)


if __name__ == "__main__":
    main()

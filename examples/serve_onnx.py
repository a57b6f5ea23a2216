"""Predict images with a model that ``imbperturb export`` wrote, by onnxruntime, numpy and Pillow alone.

    pip install onnxruntime numpy pillow
    python serve_onnx.py debiased.onnx IMAGE...|FOLDER

Prints a CSV, ``image,pred``: the label of the corrected model. What is done to an image comes from the file.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def prepare(path, preprocessing, dtype):
    """One image as a batch (1, C, H, W), as the file says that it is made."""
    if preprocessing["exif_orientation"] or preprocessing["jpeg_draft"]:
        raise SystemExit("this example turns no picture by its EXIF data, and decodes JPEGs whole")
    image = Image.open(path).convert("RGB" if preprocessing["color"] == "rgb" else "L")
    width, height = image.size
    size = preprocessing["resize"]
    if isinstance(size, int):  # the shorter side
        size = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    if size != "none" and tuple(size) != (height, width):
        image = image.resize((size[1], size[0]), Image.Resampling[preprocessing["interpolation"].upper()])
    if preprocessing["crop"] != "none":
        crop_height, crop_width = preprocessing["crop"]
        place = (lambda rest: rest // 2) if preprocessing["crop_rounding"] == "down" else (lambda rest: round(rest / 2))
        top, left = place(image.height - crop_height), place(image.width - crop_width)
        image = image.crop((left, top, left + crop_width, top + crop_height))
    pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)[None]
    if dtype == "uint8":  # scaling and normalising are in the graph
        return np.ascontiguousarray(pixels)
    mean, std = (np.array(preprocessing[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def main(model, *paths):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["imbperturb"])
    found = [file for path in map(Path, paths) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    rows = csv.writer(sys.stdout)
    rows.writerow(["image", "pred"])
    for path in filter(Path.is_file, found):
        images = prepare(path, card["preprocessing"], card["input"]["dtype"])
        logits, _base = session.run(None, {"images": images})
        rows.writerow([path, card["classes"][int(logits[0].argmax())]["name"]])


if __name__ == "__main__":
    main(*sys.argv[1:])

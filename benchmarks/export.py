"""Which networks can be exported, whether the files give the same labels, and how fast they are.

    pip install '.[export]' openvino
    python benchmarks/export.py --part architectures [--results export.jsonl] [--only REGEX]
    python benchmarks/export.py --part labels        [--results export.jsonl]
    python benchmarks/export.py --part folds  --shared SHARED
    python benchmarks/export.py --part speed  [--threads 2] [--seconds 20]

``architectures``: all 80 classification architectures of torchvision, untrained, on images as small as they take,
exported as ``imbperturb export`` does, to ``.pt2`` and ``.onnx``; a network that is exported has passed the proof that
ends every export. One at a time, each in a process of its own; a run that was cut off goes on where it stood.
``--table`` prints what there is. ``labels``: six networks of 224 pixels with a fitted head, the labels of 64 images by
each file beside those of ``predict --precision fp32``. ``folds``: the same for the two Skin7 checkpoints on fold 0.
``speed``: images/s of plain and corrected through torch, this package's engine, the files, and OpenVINO.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from corpus import COUNTS, make, subjects

from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, Settings
from imbalance_perturb.deployment.export import load_for_export, make_file, trace_pipeline
from imbalance_perturb.errors import ImbperturbError

FORMATS = (".pt2", ".onnx")

#: Seconds that one architecture may take.
MOST_SECONDS = 1800


def architectures() -> list[str]:
    """Torchvision's, the smallest of each kind first."""
    return [name for name in subjects() if name.startswith("torchvision:")]


def examine(subject: str, results: Path) -> None:
    """Export one architecture in this process, and write an entry for each format."""
    warnings.simplefilter("ignore")
    made = make(subject)
    name = subject.partition(":")[2]
    with tempfile.TemporaryDirectory() as folder:
        path, counts = Path(folder) / "model.pth", Path(folder) / "counts.json"
        torch.save(made.network.state_dict(), path)
        counts.write_text(json.dumps(dict(zip(COUNTS.names, COUNTS.counts, strict=True))))
        parameters = 4 * sum(p.numel() for p in made.network.parameters())
        settings = Settings(
            model=ModelSettings(model=str(path), counts=str(counts), arch=made.arch),
            preprocess=PreprocessSettings(resize=(made.size, made.size), crop="none"),
        )
        entry = {"subject": name, "size": made.size, "parameters": parameters}
        traced: Any = None
        for kind in FORMATS:
            began = time.monotonic()
            try:
                if traced is None:
                    traced = trace_pipeline(load_for_export(settings))
                content, _, proof = make_file(traced, kind)
                found: dict[str, Any] = {"outcome": "exported", "bytes": len(content), "proof": vars(proof)}
            except ImbperturbError as error:
                found = {"outcome": "refused", "why": str(error).replace(str(path), "FILE")[:600]}
            except Exception as error:  # noqa: BLE001 - a traceback is what this is to find
                found = {"outcome": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
            with results.open("a") as file:
                file.write(json.dumps({**entry, "format": kind, **found, "seconds": time.monotonic() - began}) + "\n")


def run_architectures(options: argparse.Namespace) -> None:
    """Examine what is still missing."""
    for subject in architectures():
        there = {entry["format"] for entry in entries(options.results) if f"torchvision:{entry['subject']}" == subject}
        if there >= set(FORMATS) or not re.search(options.only, subject):
            continue
        command = [sys.executable, __file__, "--one", subject, "--results", str(options.results)]
        try:
            code = subprocess.run(command, timeout=MOST_SECONDS).returncode
            why = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            code, why = 1, f"it took more than {MOST_SECONDS} s"
        name = subject.partition(":")[2]
        found = {entry["format"]: entry["outcome"] for entry in entries(options.results) if entry["subject"] == name}
        for kind in set(FORMATS) - found.keys() if code else ():
            with options.results.open("a") as file:
                file.write(json.dumps({"subject": name, "format": kind, "outcome": "failed", "why": why}) + "\n")
        print(subject, found, flush=True)


def entries(results: Path) -> Iterator[dict[str, Any]]:
    """The latest entry for each architecture and format."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in results.read_text().splitlines() if results.is_file() else []:
        entry = json.loads(line)
        latest[entry["subject"], entry["format"]] = entry
    return iter(latest.values())


def report(results: Path) -> Iterator[str]:
    """The table of architectures."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries(results):
        found.setdefault(entry["subject"], {})[entry["format"]] = entry
    yield "| architecture | image | .pt2 | .onnx | file / parameters | largest difference of a logit | clear signs |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, kinds in found.items():
        done = [entry for entry in kinds.values() if entry["outcome"] == "exported"]
        outcomes = [kinds.get(kind, {"outcome": "not tried"})["outcome"] for kind in FORMATS]
        words = ["yes" if outcome == "exported" else outcome for outcome in outcomes]
        size = next(entry["size"] for entry in kinds.values() if "size" in entry) if done else ""
        ratio = f"{max(e['bytes'] / e['parameters'] for e in done):.2f}" if done else ""
        difference = f"{max(e['proof']['logit_difference'] for e in done):.1g}" if done else ""
        signs = f"{min(e['proof']['signs_agreed'] for e in done):.3%}" if done else ""
        yield f"| {name} | {size} | {' | '.join(words)} | {ratio} | {difference} | {signs} |"
    yield ""
    for name, kinds in found.items():
        for kind, entry in kinds.items():
            if entry["outcome"] != "exported":
                yield f"- {name}, {kind}: {entry['outcome']}: {entry['why']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=["architectures"], default="architectures")
    parser.add_argument("--results", type=Path, default=Path("export.jsonl"), help="one line an export, added to")
    parser.add_argument("--only", default="", help="architectures whose name this expression finds")
    parser.add_argument("--table", action="store_true", help="print the results, export nothing")
    parser.add_argument("--one", help="export this one in this process")
    options = parser.parse_args()
    if options.table:
        print(*report(options.results), sep="\n")
    elif options.one:
        torch.set_num_threads(1)
        examine(options.one, options.results)
    else:
        run_architectures(options)


if __name__ == "__main__":
    main()

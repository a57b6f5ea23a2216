"""Which networks can be exported, whether the files give the same labels, and how fast they are.

    pip install '.[export]' openvino
    python benchmarks/export.py --part architectures [--results export.jsonl] [--only REGEX]
    python benchmarks/export.py --part architectures --table [--write]
    python benchmarks/export.py --part speed [--networks resnet50,...] [--perturb-at auto] [--rounds 5] [--write]

``architectures``: all 80 classification architectures of torchvision, untrained, on images as small as they take,
exported as ``imbperturb export`` does, to ``.pt2`` and ``.onnx``. A network that is exported has passed the proof that
ends every export; then the labels of 64 images by the file are held against those by autograd around the network as it
is, those that ``predict --precision fp32`` computes, and autograd's against its own for one image at a time, which is
what rounding alone changes. One architecture at a time, each in a process of its own; a run that was cut off goes on
where it stood, and ``--table`` prints what there is.

``speed``: images/s of plain and corrected predictions through torch eager, this package's engine, the ``.pt2``,
ONNX Runtime and OpenVINO, side by side in one run, a batch of each in every round.
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from corpus import COUNTS, make, subjects, write_checkpoint
from measuring import Log, alternate, command_line, describe_machine, progress, table, write_section
from torch import Tensor

from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.deployment.export import load_for_export, make_file, trace_pipeline
from imbalance_perturb.deployment.onnx_files import open_onnx
from imbalance_perturb.deployment.program_files import read_program
from imbalance_perturb.errors import ImbperturbError
from imbalance_perturb.inference.pipeline import load_pipeline
from imbalance_perturb.method.classifier import PerturbedClassifier

FORMATS = (".pt2", ".onnx")

#: Tried first.
FIRST = ("resnet50", "mobilenet_v2", "densenet169", "efficientnet_b0", "convnext_tiny", "vit_b_16")

#: Images whose labels are compared.
LABELLED = 64

#: Of steps at a hidden layer, whose speed does not depend on it.
EPS = 0.05

#: Seconds that one architecture may take.
MOST_SECONDS = 1800


def architectures() -> list[str]:
    """Torchvision's: those of most use, then the smallest of each kind."""
    names = [name for name in subjects() if name.startswith("torchvision:")]
    return sorted(names, key=lambda name: name.partition(":")[2] not in FIRST)


def examine(subject: str, results: Path) -> None:
    """Export one architecture in this process, and write an entry for each format whose labels are not known."""
    warnings.simplefilter("ignore")
    made = make(subject)
    name = subject.partition(":")[2]
    with tempfile.TemporaryDirectory() as folder:
        path, counts = Path(folder) / "model.pth", Path(folder) / "counts.json"
        torch.save(made.network.state_dict(), path)
        counts.write_text(json.dumps(COUNTS.to_dict()))
        parameters = 4 * sum(p.numel() for p in made.network.parameters())
        settings = Settings(
            model=ModelSettings(model=str(path), counts=str(counts), arch=made.arch),
            preprocess=PreprocessSettings(resize=(made.size, made.size), crop="none"),
        )
        entry = {"subject": name, "size": made.size, "parameters": parameters}
        traced: Any = None
        for kind in (kind for kind in FORMATS if kind not in known(results, name)):
            began = time.monotonic()
            try:
                if traced is None:
                    traced = trace_pipeline(load_for_export(settings))
                    expected = expect_labels(traced.pipeline.debiased, predictor(settings), made.size)
                content, _, proof = make_file(traced, kind)
                run = open_onnx(content) if kind == ".onnx" else read_program(content)
                found: dict[str, Any] = {"outcome": "exported", "bytes": len(content), "proof": vars(proof)}
                found |= compare_labels(run, expected)
            except ImbperturbError as error:
                found = {"outcome": "refused", "why": str(error).replace(str(path), "FILE")[:600]}
            except Exception as error:  # noqa: BLE001 - a traceback is what this is to find
                found = {"outcome": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
            with results.open("a") as file:
                file.write(json.dumps({**entry, "format": kind, **found, "seconds": time.monotonic() - began}) + "\n")


def predictor(settings: Settings) -> PerturbedClassifier:
    """The correction as ``predict --precision fp32`` computes it."""
    return load_pipeline(replace(settings, run=RunSettings(device="cpu", precision="fp32")), None).debiased


class Expected(NamedTuple):
    """Images, and labels of them, plain and corrected: by autograd with their margins, by ``predict``, and how many
    autograd has in common with itself for one image at a time.

    Margins are of the two largest logits, relative to the largest of all.
    """

    batches: tuple[Tensor, ...]
    labels: list[Tensor]
    margins: list[Tensor]
    predicted: list[Tensor]
    alone: int


def expect_labels(debiased: PerturbedClassifier, engine: PerturbedClassifier, size: int) -> Expected:
    """Compute labels by autograd around the network as it is, and by the ``engine`` of ``predict``."""
    batches = torch.randn(LABELLED, 3, size, size, generator=torch.Generator().manual_seed(2)).split(16)
    labels, margins, predicted, alone = [], [], [], 0
    for batch in batches:
        logits = torch.cat(debiased.predict_both(batch))
        labels.append(logits.argmax(1))
        margins.append(logits.topk(2).values.diff(dim=1).abs()[:, 0] / logits.abs().max())
        predicted.append(torch.cat(engine.predict_both(batch)).argmax(1))
        both = [torch.cat(one) for one in zip(*map(debiased.predict_both, batch.split(1)), strict=True)]
        alone += int((torch.cat(both).argmax(1) == labels[-1]).sum())
    return Expected(batches, labels, margins, predicted, alone)


def compare_labels(run: Any, expected: Expected) -> dict[str, Any]:
    """How many labels a file, a function of a batch, has in common with autograd and ``predict``."""
    same, predicted, margins = 0, 0, []
    with torch.no_grad():
        found = [torch.cat([base, corrected]).argmax(1) for corrected, base in map(run, expected.batches)]
    for labels, own, margin, engine in zip(found, expected.labels, expected.margins, expected.predicted, strict=True):
        same += int((labels == own).sum())
        margins += margin[labels != own].tolist()
        predicted += int((labels == engine).sum())
    return {"labels": 2 * LABELLED, "same": same, "margins": margins, "predicted": predicted, "alone": expected.alone}


def run_architectures(options: argparse.Namespace) -> None:
    """Examine what is still missing."""
    for subject in architectures():
        name = subject.partition(":")[2]
        if known(options.results, name) >= set(FORMATS) or not re.search(options.only, subject):
            continue
        command = [sys.executable, __file__, "--one", subject, "--results", str(options.results)]
        try:
            code = subprocess.run(command, timeout=MOST_SECONDS).returncode
            why = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            code, why = 1, f"it took more than {MOST_SECONDS} s"
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


def known(results: Path, name: str) -> set[str]:
    """The formats of an architecture of which all is known: the labels, or why there are none."""
    found = (entry for entry in entries(results) if entry["subject"] == name)
    return {entry["format"] for entry in found if entry["outcome"] != "exported" or "predicted" in entry}


def report(results: Path) -> Iterator[str]:
    """The table of architectures."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries(results):
        found.setdefault(entry["subject"], {})[entry["format"]] = entry
    compared = ("labels by autograd", "by `predict`", "autograd's one by one")
    head = ("architecture", "image", *FORMATS, "file / parameters", "a logit differs by", "clear signs", *compared)
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for name, kinds in found.items():
        done = [entry for entry in kinds.values() if entry["outcome"] == "exported"]
        outcomes = [kinds.get(kind, {"outcome": "not tried"})["outcome"] for kind in FORMATS]
        words = ["yes" if outcome == "exported" else outcome for outcome in outcomes]
        size = next(entry["size"] for entry in kinds.values() if "size" in entry) if done else ""
        ratio = f"{max(e['bytes'] / e['parameters'] for e in done):.2f}" if done else ""
        difference = f"{max(e['proof']['logit_difference'] for e in done):.1g}" if done else ""
        signs = f"{min(e['proof']['signs_agreed'] for e in done):.3%}" if done else ""
        labels = f"{min(e['same'] for e in done)} of {done[0]['labels']}" if done else ""
        others = [min((e[key] for e in done if key in e), default="") for key in ("predicted", "alone")]
        yield f"| {name} | {size} | {' | '.join((*words, ratio, difference, signs, labels, *map(str, others)))} |"
    yield ""
    for name, kinds in found.items():
        for kind, entry in kinds.items():
            if entry["outcome"] != "exported":
                yield f"- {name}, {kind}: {entry['outcome']}: {entry['why']}"
            elif entry["margins"]:
                margins = ", ".join(f"{margin:.2g}" for margin in entry["margins"])
                yield f"- {name}, {kind}: other labels where the two largest logits differ by {margins} of the largest"


def speed(options: argparse.Namespace) -> None:
    """Print images/s of every way to compute plain and corrected predictions."""
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    log = Log()
    log.say(f"`{command_line()}`", "", describe_machine(device), "")
    rows = []
    for name in options.networks.split(","):
        progress(name)
        x = torch.randn(options.batch, 3, 224, 224, generator=torch.Generator().manual_seed(3))
        with tempfile.TemporaryDirectory() as folder:
            ways = make_ways(name, x, Path(folder), options)
            expected = {kind: ways["torch eager", kind]().argmax(1) for kind in ("plain", "corrected")}
            differing = {way: int((run().argmax(1) != expected[way[1]]).sum()) for way, run in ways.items()}
            measured = alternate(ways, options.rounds, device)  # type: ignore[type-var]
        for way in dict.fromkeys(way for way, _ in ways):
            rates = [options.batch / measured[way, kind].median for kind in ("plain", "corrected")]
            others = sum(differing[way, kind] for kind in ("plain", "corrected"))
            rows.append(
                [f"{name}, {way}", *(f"{rate:.2f}" for rate in rates), f"{2 * len(x) - others} of {2 * len(x)}"]
            )
    log.say(*table(["network, by", "plain, images/s", "corrected, images/s", "same labels"], rows))
    if options.write:
        hidden = options.perturb_at != "input"
        write_section(
            "export-speed-hidden" if hidden else "export-speed",
            f"Exported files: how fast they are{', with the step at a hidden layer' if hidden else ''}",
            log.lines,
        )


def make_ways(
    name: str, x: Tensor, folder: Path, options: argparse.Namespace
) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """Functions that compute the plain or corrected logits of a batch, by where they do."""
    import openvino

    model = write_checkpoint(name, x, folder)
    ways: dict[tuple[str, str], Callable[[], Tensor]] = {}
    corrected = DebiasSettings()
    if options.perturb_at != "input":
        corrected = DebiasSettings(perturb_at=options.perturb_at, eps=EPS)
    for kind, debias in (("plain", DebiasSettings(method="none")), ("corrected", corrected)):
        settings = Settings(
            model=ModelSettings(model=str(model), counts=str(folder / "counts.json"), arch=name),
            preprocess=PreprocessSettings(resize=(224, 224), crop="none"),
            debias=debias,
            run=RunSettings(device="cpu", precision="fp32"),
        )
        traced = trace_pipeline(load_for_export(settings))
        engine = load_pipeline(settings, None).debiased
        program, (content, *_) = read_program(make_file(traced, ".pt2")[0]), make_file(traced, ".onnx")
        session = open_onnx(content)
        (folder / f"{kind}.onnx").write_bytes(content)
        compiled = openvino.compile_model(folder / f"{kind}.onnx", "CPU", {"INFERENCE_NUM_THREADS": options.threads})
        ways["torch eager", kind] = partial(_second, traced.pipeline.debiased.predict_both, x)
        ways["this package's engine, fp32", kind] = partial(_second, engine.predict_both, x)
        ways[".pt2", kind] = partial(_first, program, x)
        ways["ONNX Runtime", kind] = partial(_first, session, x)
        ways["OpenVINO", kind] = partial(_openvino, compiled, x)
    return ways


def _first(run: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = run(x)[0]
    return found


def _second(run: Any, x: Tensor) -> Tensor:
    found: Tensor = run(x)[1]
    return found


def _openvino(compiled: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(compiled(x.numpy())[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=["architectures", "speed"], default="architectures")
    parser.add_argument("--results", type=Path, default=Path("export.jsonl"), help="one line an export, added to")
    parser.add_argument("--only", default="", help="architectures whose name this expression finds")
    parser.add_argument("--table", action="store_true", help="print the results, export nothing")
    parser.add_argument("--one", help="export this one in this process")
    parser.add_argument("--networks", default="resnet50,mobilenet_v2,densenet169")
    parser.add_argument("--perturb-at", default="input", help="where the step of the corrected predictions is")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    if options.part == "speed":
        speed(options)
    elif options.table:
        lines = list(report(options.results))
        print(*lines, sep="\n")
        if options.write:
            command = "`python benchmarks/export.py --part architectures`, then `--table --write`"
            write_section("export-architectures", "Exported files: which networks", [command, "", *lines])
    elif options.one:
        torch.set_num_threads(1)
        examine(options.one, options.results)
    else:
        run_architectures(options)


if __name__ == "__main__":
    main()

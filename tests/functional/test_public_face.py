"""Everything that a command does, through the names of ``imbalance_perturb`` alone."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

import imbalance_perturb as ip
from imbalance_perturb.cli.app import main

README = Path(ip.__file__).parents[1] / "README.md"

NAMES = re.findall(
    r"\w+",
    """
    ArchitectureError ClassCounts ClassShares ClusterError Comparison ComparisonFiles ComparisonOptions CorrectedCard
    CountsError DebiasSettings DeviceError DigitSplits Evaluation ExportOptions ExportSummary GradientSign
    ImageError ImageFolderError ImageList ImbperturbError
    Inspection InterruptedRunError IntervalOptions LabelledImages LabelsError LoadedClassifier LoadedPipeline MergeError
    MergeOptions MergeSummary ModelFileError ModelGradientError ModelInfo ModelOutputError ModelSettings
    NothingToCorrectError OutputFileError PerturbedClassifier Pipeline PredictOptions PredictionsError
    PreprocessSettings ProbeResult Progress ResumeError RunSettings RunSummary SelectionRule Settings
    SettingsError SharesOptions TargetError TooManyFailuresError Tuning TuningOptions UntrustedModelError Verification
    VerificationError VerifyOptions __version__ adjust_logits compare_methods count_labels estimate_shares evaluate
    evaluate_files export_classifier find_images find_labelled_images gradient_sign inspect_model load_class_counts
    load_classifier load_pipeline merge_predictions parse_class_counts parse_target perturb predict_folder
    probe_classifier read_card read_predictions step target_distribution tune verify_run write_demo
    """,
)

OPTIONS = [name for name in NAMES if name.endswith(("Options", "Settings"))]
USE_CASES = [
    "compare_methods",
    "estimate_shares",
    "export_classifier",
    "merge_predictions",
    "predict_folder",
    "tune",
    "verify_run",
]

SMALL = ("--preset", "none", "--resize", "64", "--mean", "0.5", "--std", "0.5", "--device", "cpu")


def test_the_names_are_these() -> None:
    """No name is lost or comes unseen; each is there, says what it is, and another is none."""
    assert ip.__all__ == dir(ip) == sorted(NAMES)
    assert [name for name in NAMES if not (getattr(ip, name).__doc__ or "").strip()] == []
    errors = {name for name, _ in inspect.getmembers(sys.modules["imbalance_perturb.errors"], inspect.isclass)}
    assert errors - {"Sequence"} <= {*NAMES}
    with pytest.raises(AttributeError, match="has no attribute 'predict_folders'"):
        ip.predict_folders  # type: ignore[attr-defined]  # noqa: B018
    everything: dict[str, object] = {}
    exec("from imbalance_perturb import *", everything)
    assert everything.keys() >= {*NAMES}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_frozen_and_named(name: str) -> None:
    """Options of one kind are one frozen object, given by name alone, each with a default."""
    options = getattr(ip, name)
    assert is_dataclass(options)
    assert options.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(options))
    assert options() == options()


@pytest.mark.parametrize("name", USE_CASES)
def test_use_cases_have_one_shape(name: str) -> None:
    """What it works on, options, and progress last where it takes long; all but the first may be left out."""
    parameters = list(inspect.signature(getattr(ip, name)).parameters.values())
    last = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY][-2:]
    assert last == ["options", "progress"] or (name == "merge_predictions" and last[1] == "options")
    assert all(one.default is None for one in parameters if one.name in ("options", "progress"))


@pytest.mark.parametrize("module", ["typing", "lazy_loader", "ast", "importlib"])
def test_what_lies_in_the_folder_is_no_module(module: str, tmp_path: Path) -> None:
    """The list of names imports nothing that a file in the current folder could stand in for."""
    (tmp_path / f"{module}.py").write_text("raise SystemExit('it ran')\n")
    code = "import imbalance_perturb, sys; sys.path.remove(''); import imbalance_perturb.cli.app, sys; print('good')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.stdout, found.stderr) == ("good\n", "")


def test_readme_and_example_need_no_other_name() -> None:
    """What README and the example show imports the package, and nothing of its insides."""
    example = README.parent / "examples" / "digits_in_python.py"
    for text in (README.read_text(encoding="utf-8"), example.read_text(encoding="utf-8")):
        assert re.findall(r"^(?:import|from) imbalance_perturb.*", text, re.MULTILINE) == [
            "import imbalance_perturb as ip"
        ]
        assert set(re.findall(r"\bip\.(\w+)", text)) <= {*NAMES}


class Heard(ip.Progress):
    """Everything that is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def found(self, images: ip.ImageList, shard: object = None) -> None:
        self.told.append(("found", len(images)))

    def loaded(self, pipeline: ip.LoadedPipeline) -> None:
        self.told.append("loaded")

    def started(self, total: int, done: int = 0) -> None:
        self.told.append(("started", total, done))

    def ended(self) -> None:
        self.told.append("ended")


class Stopping(Heard):
    """Ends the work after its first batch."""

    def should_stop(self) -> str | None:
        return "a test"


def settings_of(folder: Path) -> ip.Settings:
    return ip.Settings(
        model=ip.ModelSettings(model=str(folder / "model.safetensors"), counts=str(folder / "counts.json")),
        preprocess=ip.PreprocessSettings(preset="none", resize=64, mean=(0.5,), std=(0.5,)),
        run=ip.RunSettings(device="cpu", workers=0),
    )


def test_the_whole_job(tmp_path: Path) -> None:
    """Find, inspect, tune, predict (also in parts, stopped and resumed), evaluate, compare, merge, verify, read."""
    folder = tmp_path / "demo"
    ip.write_demo(folder)
    settings, images, labels = settings_of(folder), folder / "images", folder / "labels.csv"
    names = ip.load_class_counts(folder / "counts.json").names
    assert [row.name for row in ip.inspect_model(settings).classes] == list(names)
    val = ip.find_labelled_images(folder / "val", folder / "val.csv", names)
    assert sum(ip.count_labels(folder / "val.csv", names).counts) == len(val.images)

    options = ip.TuningOptions(eps_grid=(0.005, 0.02), rule=ip.SelectionRule(folds=2, repeats=1))
    heard = Heard()
    tuning = ip.tune(settings, folder / "val", folder / "val.csv", options, heard)
    assert heard.told == [("found", 240), "loaded", ("started", 240, 0), "ended"]
    assert replace(ip.tune(settings, val, options=options), seconds={}) == replace(tuning, seconds={})
    with pytest.raises(ip.SettingsError, match="the images have theirs already"):
        ip.tune(settings, val, folder / "val.csv")

    # The file of the command line, to the last byte, whatever way it came.
    command = ["predict", str(folder / "model.safetensors"), str(folder / "counts.json"), str(images), *SMALL]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--workers", "0", "--probs", "--margin", "--quiet", "-o", str(folder / "command.csv")])
    assert not ended.value.code
    expected = (folder / "command.csv").read_bytes()
    numbers: list[int] = []
    whole = folder / "predictions.csv"
    summary = ip.predict_folder(settings, images, whole, ip.PredictOptions(probs=True, margin=True), numbers.append)
    assert summary.done == sum(numbers) == len(ip.find_images(images))
    assert whole.read_bytes() == expected

    cut, resumed = folder / "cut.csv", ip.PredictOptions(probs=True, margin=True, resume=True)
    with pytest.raises(ip.InterruptedRunError, match="stopped by a test after"):
        ip.predict_folder(settings, images, cut, ip.PredictOptions(probs=True, margin=True), Stopping())
    heard = Heard()
    assert ip.predict_folder(settings, images, cut, resumed, heard).resumed > 0
    (_, _, done) = heard.told[2]  # type: ignore[misc]
    assert done > 0
    assert cut.read_bytes() == expected

    parts = [folder / f"part{index}.csv" for index in (1, 2)]
    pipeline = ip.load_pipeline(settings, ip.find_images(images))
    for index, part in enumerate(parts, start=1):
        ip.predict_folder(pipeline, images, part, ip.PredictOptions(probs=True, margin=True, shard=f"{index}/2"))
    assert ip.merge_predictions(parts, folder / "merged.csv").total == summary.total
    assert (folder / "merged.csv").read_bytes() == expected
    heard = Heard()
    found = ip.verify_run(folder / "merged.run.json", ip.VerifyOptions(sample=5, seed=1), heard)
    assert (found.sampled, found.reproduced, found.mismatches) == (5, 5, ())
    assert heard.told == ["loaded", ("started", 5, 0), "ended"]

    evaluation = ip.evaluate_files(whole, labels, ip.IntervalOptions(resamples=100))
    frame = ip.read_predictions(whole)
    with labels.open(newline="") as stream:
        truth = {row["image"]: row["label"] for row in csv.DictReader(stream)}
    assert (frame["pred"] == frame["image"].map(truth)).mean() == pytest.approx(evaluation.perturbed.accuracy)
    files = ip.ComparisonFiles(val=folder / "val", labels=folder / "val.csv")
    compared = ip.compare_methods(settings, files, ip.ComparisonOptions(methods=("none", "la"), rule=options.rule))
    assert json.loads(json.dumps(compared.to_dict()))["files"]["val"] == str(folder / "val")
    small = replace(settings, run=replace(settings.run, batch_size=16))
    with pytest.raises(ip.InterruptedRunError, match="stopped by a test after 64 of 240 images"):
        ip.compare_methods(small, files, progress=Stopping())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shard": "3/2"}, "shard is '3/2'"),
        ({"on_error": "stop"}, "expected one of skip, fail"),
        ({"max_failures": -1}, "expected a number of images"),
        ({"on_error": "fail", "max_failures": 3}, "leave max_failures out"),
    ],
)
def test_wrong_options_are_refused_when_they_are_made(given: dict[str, object], message: str) -> None:
    """Not after a model has been loaded."""
    with pytest.raises(ip.SettingsError, match=re.escape(message)):
        ip.PredictOptions(**given)  # type: ignore[arg-type]
    with pytest.raises(ip.SettingsError, match="sample is 0"):
        ip.VerifyOptions(sample=0)

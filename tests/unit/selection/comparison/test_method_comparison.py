from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imbalance_perturb import ClassCounts
from imbalance_perturb.config.settings import ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.demo_files import write_demo
from imbalance_perturb.data.labels import find_labelled_images
from imbalance_perturb.errors import LabelsError, SettingsError
from imbalance_perturb.inference.input_stream import iter_inputs
from imbalance_perturb.inference.pipeline import load_pipeline
from imbalance_perturb.method.perturbation import LossSpec
from imbalance_perturb.models.last_layer import LastLayer, find_last_layer
from imbalance_perturb.selection.comparison import held_out_predictions, method_comparison
from imbalance_perturb.selection.comparison.held_out_predictions import Tuned
from imbalance_perturb.selection.comparison.method_comparison import ComparisonFiles, compare_methods
from imbalance_perturb.selection.comparison.methods import (
    CONTROLS,
    METHODS,
    CachedLogits,
    Candidate,
    ComparisonOptions,
    count_passes,
    list_candidates,
)
from imbalance_perturb.selection.comparison.results import Comparison, MethodResult
from imbalance_perturb.selection.rule import SelectionRule
from imbalance_perturb.selection.sweep import STRENGTH_GRID, Sweep, Variant, run_sweep

EPS, TAU = (0.01, 0.05), (0.5, 1.0)
RULE = SelectionRule(significance=None, repeats=2, folds=3)
QUICK = ComparisonOptions(eps_grid=EPS, tau_grid=TAU, rule=RULE)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with a model trained on a long tail of them; every second image of each part, for speed."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(folder)
    for images, labels in (("val", "val.csv"), ("images", "labels.csv")):
        rows = read_rows(folder / labels)
        with (folder / labels).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows[::2])
        for row in rows[1::2]:
            (folder / images / row["image"]).unlink()
    return folder


def settings_of(demo: Path) -> Settings:
    return Settings(
        model=ModelSettings(model=str(demo / "model.safetensors"), counts=str(demo / "counts.json")),
        preprocess=PreprocessSettings(preset="none", resize=64, mean=(0.5,), std=(0.5,)),
        run=RunSettings(device="cpu", workers=0),
    )


def files_of(demo: Path, *, test: bool) -> ComparisonFiles:
    more = {"test": str(demo / "images"), "test_labels": str(demo / "labels.csv")} if test else {}
    return ComparisonFiles(str(demo / "val"), str(demo / "val.csv"), **more)


@pytest.fixture(scope="module")
def tested(demo: Path) -> Comparison:
    return compare_methods(settings_of(demo), files_of(demo, test=True), QUICK)


@pytest.fixture(scope="module")
def nested(demo: Path) -> tuple[Comparison, list[Sweep]]:
    """The comparison within the validation images, and the sweeps it took."""
    sweeps: list[Sweep] = []

    def spy(*args: object, **more: object) -> Sweep:
        sweeps.append(run_sweep(*args, **more))  # type: ignore[arg-type]
        return sweeps[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out_predictions, "run_sweep", spy)
        return compare_methods(settings_of(demo), files_of(demo, test=False), QUICK), sweeps


def by_method(found: Comparison) -> dict[str, MethodResult]:
    return {entry.method: entry for entry in found.results}


def test_every_method_is_what_a_transcription_makes_of_the_same_logits() -> None:
    """From one sweep's logits each method's predictions are those of NumPy, written out independently."""
    rng = np.random.default_rng(0)
    base, moved = rng.normal(size=(2, 60, 4)) * 2
    away, coin = base - (moved - base), base + rng.normal(size=base.shape) * 0.1
    inside = rng.normal(size=base.shape)
    n, norms, bias = np.array([700, 200, 90, 10]), np.array([2.0, 1.5, 1.0, 0.5]), rng.normal(size=4)
    loss_spec = LossSpec("cross-entropy", 1000.0)
    logits = {
        Variant(loss_spec, 0.01): torch.from_numpy(moved),
        Variant(loss_spec, 0.01, "minus-eps"): torch.from_numpy(away),
        Variant(loss_spec, 0.01, "random-sign"): torch.from_numpy(coin),
        Variant(loss_spec, 0.01, hidden=True): torch.from_numpy(inside),
    }
    sweep = Sweep([str(i) for i in range(60)], {}, torch.from_numpy(base), logits, {}, {})
    layer = LastLayer("fc.weight", torch.from_numpy(norms), torch.from_numpy(bias))
    cached = CachedLogits(sweep, loss_spec, ClassCounts(tuple("abcd"), n.tolist()), layer)
    prior = np.log(n / n.sum())
    expected = {
        ("none", Candidate()): base,
        ("perturb", Candidate(0.01)): moved,
        ("perturb", Candidate()): base,
        ("perturb-at", Candidate(0.01)): inside,
        ("perturb-at", Candidate()): base,
        ("la", Candidate(tau=0.75)): base - 0.75 * prior,
        ("perturb+la", Candidate(0.01, 0.75)): moved - 0.75 * prior,
        ("perturb+la", Candidate(0.0, 0.75)): base - 0.75 * prior,
        # Row lengths relative to their geometric mean.
        ("tau-norm", Candidate(tau=1.5)): (base - bias) / (norms / np.prod(norms) ** 0.25) ** 1.5 + bias,
        ("offsets", Candidate(offsets=(0.0, 0.5, 1.0, 2.0))): base + np.array([0, 0.5, 1, 2]),
        ("p2p", Candidate(tau=2.0, offsets=(0.0, 0.5, 1.0, 2.0))): base + np.array([0, 0.5, 1, 2]),
        ("random-sign", Candidate(0.01)): coin,
        ("minus-eps", Candidate(0.01)): away,
    }
    assert {method for method, _ in expected} == set(METHODS)
    for (method, candidate), logits_of in expected.items():
        found = cached.predict(method, [candidate])
        assert found.shape == (60, 1)
        np.testing.assert_array_equal(found[:, 0], logits_of.argmax(1), err_msg=method)


def test_candidates_start_with_the_plain_model_unless_a_value_is_fixed() -> None:
    """0 is added to grids of several values; a single value is used as it is, and leaves nothing to choose."""
    options = ComparisonOptions(eps_grid=(0.02, 0.01), tau_grid=(0.75,))
    assert options.eps_grid == (0.0, 0.01, 0.02)
    assert list_candidates("perturb", options.eps_grid, options.tau_grid)[0] == Candidate()
    assert list_candidates("la", options.eps_grid, options.tau_grid) == [Candidate(0.0, 0.75)]
    assert len(list_candidates("perturb+la", options.eps_grid, options.tau_grid)) == 3
    assert list_candidates("none", options.eps_grid, options.tau_grid) == [Candidate()]


def test_costs_in_forward_passes() -> None:
    """A step costs forward, backward, forward; what works on logits, or does not move, costs the one pass.

    At a hidden layer, behind which a quarter of a pass lies, the backward and the second forward are of that alone.
    """
    moving = {method: count_passes(method, Candidate(0.01, 1.0), 0.25) for method in METHODS}
    assert moving == {
        "none": 1, "perturb": 3, "perturb-at": 1.5, "la": 1, "perturb+la": 3, "tau-norm": 1, "offsets": 1, "p2p": 1,
        "random-sign": 1, "minus-eps": 3,
    }  # fmt: skip
    assert all(count_passes(method, Candidate(0.0, 1.0)) == 1 for method in METHODS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": ("la", "foo")}, "methods has foo; expected some of none, perturb"),
        ({"eps_grid": ()}, "eps-grid is "),
        ({"eps_grid": (-0.1, 0.2)}, "eps-grid is -0.1, 0.2; expected numbers, at least 0"),
        ({"tau_grid": (float("nan"),)}, "tau-grid is nan"),
        ({"level": 1.5}, "confidence-level is 1.5"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    """Each says which option, what it is and what is expected."""
    with pytest.raises(SettingsError, match=message):
        ComparisonOptions(**wrong)  # type: ignore[arg-type]


def test_test_images_are_scored_with_what_validation_images_chose(demo: Path, tested: Comparison) -> None:
    """Every method's confusion matrix is that of a run of its own on the test images with the parameters shown."""
    assert tested.scored_on == "test"
    assert [entry.method for entry in tested.results] == list(METHODS)
    entries = by_method(tested)
    test = find_labelled_images(demo / "images", demo / "labels.csv", tested.classes)
    assert tested.n == len(test.images)
    pipeline = load_pipeline(settings_of(demo), test.images, hidden_at=entries["perturb-at"].layer)
    batches = list(iter_inputs(test.images, pipeline.preprocessing, pipeline.execution))
    x = torch.cat([group.x for batch in batches for group in batch.groups])
    labels = test.select_labels([name for batch in batches for name in batch.names])
    layer = find_last_layer(pipeline.model, x[:2])
    assert isinstance(layer, LastLayer)
    eps, inside = (entries[method].parameters["eps"] for method in ("perturb", "perturb-at"))
    variants = [Variant(LossSpec(), e) for e in EPS] + [Variant(LossSpec(), eps, d) for d in CONTROLS]
    variants += [Variant(LossSpec(), inside, hidden=True)] if inside else []
    cached = CachedLogits(run_sweep(pipeline, test.images, variants), LossSpec(), pipeline.counts, layer)
    for method, entry in entries.items():
        preds = cached.predict(method, [Candidate(**entry.parameters)])[:, 0]
        matrix = np.zeros((len(tested.classes),) * 2, dtype=int)
        np.add.at(matrix, (labels, preds), 1)
        assert entry.scores is not None
        assert np.array_equal(np.array(entry.scores.confusion_matrix), matrix), method
        assert entry.changed == (preds != cached.predict("none", [Candidate()])[:, 0]).sum()
    assert entries["random-sign"].parameters == entries["minus-eps"].parameters == {"eps": eps}


def test_without_test_images_each_is_predicted_with_what_others_chose(nested: tuple[Comparison, list[Sweep]]) -> None:
    """The scored predictions are those of the candidate that was chosen without the image's fold."""
    found, (grid, controls) = nested
    assert found.scored_on == "validation"
    assert found.n == found.tuned_on == len(grid.names)
    # 2 + K passes for each grid, at the input and at the layer; for the controls those eps that were chosen somewhere.
    batches = grid.passes["forward"] // 2
    steps = len(EPS) + len(STRENGTH_GRID)
    assert grid.passes == {"forward": 2 * batches, "backward": 2 * batches, "final": steps * batches}
    assert controls.passes["final"] <= 2 * len(EPS) * batches
    assert {variant.direction for variant in controls.logits} == set(CONTROLS)
    entries = by_method(found)
    for method in ("perturb", "perturb-at", "la", "perturb+la", "tau-norm"):
        same, splits = entries[method].agreement or (0, 0)
        assert 0 <= same <= splits == 6
    assert entries["none"].agreement is entries["random-sign"].agreement is None


def test_the_effective_prior_of_a_fold_is_that_of_the_others(
    demo: Path, nested: tuple[Comparison, list[Sweep]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is predicted with a prior, and a tau, from images of other folds alone; both written out here."""
    found, (grid, _) = nested
    seen: list[Tuned] = []
    made = held_out_predictions.ComparisonRun._fit_effective_prior
    monkeypatch.setattr(
        held_out_predictions.ComparisonRun, "_fit_effective_prior", lambda *a: seen.append(made(*a)) or seen[-1]
    )
    options = replace(QUICK, methods=("p2p",))
    alone = compare_methods(settings_of(demo), files_of(demo, test=False), options)
    (tuned,), z = seen, grid.base.double().numpy()
    labels = find_labelled_images(demo / "val", demo / "val.csv", found.classes).select_labels(grid.names)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    counts = np.array(found.counts)
    hits = np.zeros(len(labels), dtype=bool)
    assert sorted(set(tuned.held_out.tolist())) == [1, 2, 3]
    for index in (1, 2, 3):
        out = tuned.held_out == index
        by_class = np.array([p[~out & (labels == k)].mean(0) for k in range(len(counts))])
        log_prior = np.log(counts / counts.sum() @ by_class)
        tau = tuned.candidates[index].tau
        expected = -tau * (log_prior - log_prior.mean())
        np.testing.assert_allclose(tuned.candidates[index].offsets, expected, atol=6e-5)
        hits[out] = (z[out] - tau * log_prior).argmax(1) == labels[out]
    recalls = [hits[labels == k].mean() for k in range(len(counts))]
    scores = by_method(alone)["p2p"].scores
    assert scores is not None
    assert scores.mcr == pytest.approx(np.mean(recalls))
    assert by_method(found)["p2p"].scores == scores
    same = sum(one.tau == tuned.chosen.tau for one in tuned.candidates[1:])
    assert by_method(alone)["p2p"].agreement == (same, 3)


def test_speed_is_measured(tested: Comparison) -> None:
    """Images per second are there for every method, and a step is slower than a plain pass."""
    entries = by_method(tested)
    assert entries["perturb"].parameters["eps"] > 0
    assert entries["none"].images_per_second == entries["la"].images_per_second
    assert 0 < (entries["perturb"].images_per_second or 0) < (entries["none"].images_per_second or 0)


def test_the_advice_is_one_of_the_methods_and_json_holds_all(tested: Comparison) -> None:
    """The result is plain JSON with every method's figures, intervals and paired differences."""
    data = json.loads(json.dumps(tested.to_dict()))
    assert data["advice"]["method"] in data["methods"]
    for method, entry in data["methods"].items():
        assert {"mcr", "scr", "worst_class_recall", "accuracy", "ci95", "confusion_matrix"} <= entry.keys()
        assert entry["forward_equivalents"] in (1, 1.59 if method == "perturb-at" else 3)
        assert (entry["perturb_at"] is None) is (method != "perturb-at")
        assert (entry["difference"] == {}) is (method == "none")
    assert data["methods"]["la"]["difference"]["mcr"].keys() == {"value", "ci95", "p_value", "test"}
    assert data["methods"]["tau-norm"]["control"] is False
    assert data["methods"]["minus-eps"]["control"] is True


def test_fewer_methods_cost_fewer_passes(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a method that moves the input one plain pass an image is all; `none` is always there."""
    sweeps = []
    monkeypatch.setattr(
        held_out_predictions, "run_sweep", lambda *a, **k: sweeps.append(run_sweep(*a, **k)) or sweeps[-1]
    )
    options = ComparisonOptions(methods=("la", "tau-norm"), rule=RULE)
    found = compare_methods(settings_of(demo), files_of(demo, test=False), options)
    assert [entry.method for entry in found.results] == ["none", "la", "tau-norm"]
    (sweep,) = sweeps
    assert sweep.passes["backward"] == sweep.passes["final"] == 0


def test_controls_need_no_row_of_perturb(demo: Path) -> None:
    """A control is given perturb's eps even where perturb itself is not compared."""
    options = ComparisonOptions(methods=("minus-eps",), eps_grid=(0.05,), rule=RULE)
    found = compare_methods(settings_of(demo), files_of(demo, test=False), options)
    assert [entry.method for entry in found.results] == ["none", "minus-eps"]
    assert found.results[1].parameters == {"eps": 0.05}
    assert found.results[1].differences["mcr"].value < 0


def test_a_method_that_cannot_be_used_is_listed_with_the_reason(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a last layer tau-norm has no figures, a reason in the notes, and the others are there."""
    monkeypatch.setattr(method_comparison, "find_last_layer", lambda model, x: "the head is round")
    options = ComparisonOptions(methods=("la", "tau-norm"), tau_grid=(1.0,), rule=RULE)
    found = compare_methods(settings_of(demo), files_of(demo, test=False), options)
    entry = by_method(found)["tau-norm"]
    assert entry.scores is None
    assert entry.unavailable == "the head is round"
    assert "tau-norm is not available: the head is round" in found.notes
    assert found.to_dict()["methods"]["tau-norm"]["available"] is False


def test_images_in_both_sets_are_refused(demo: Path) -> None:
    """An image that would choose and be scored ends the run before the model is loaded."""
    files = ComparisonFiles(str(demo / "val"), str(demo / "val.csv"), str(demo / "val"), str(demo / "val.csv"))
    with pytest.raises(LabelsError, match=r"of its images are in .*val too \(first: "):
        compare_methods(settings_of(demo), files, QUICK)


def test_images_that_fail_may_leave_nothing_to_decide_on(demo: Path, tmp_path: Path) -> None:
    """Where no image of the smallest class can be used its recall is no objective: an error, no choice."""
    rows = read_rows(demo / "val.csv")
    (tmp_path / "broken.png").write_text("broken")
    with (tmp_path / "val.csv").open("w", newline="") as stream:
        stream.write("image,label\nbroken.png,nine\n")
        stream.writelines(f"{demo / 'val' / row['image']},{row['label']}\n" for row in rows if row["label"] != "nine")
    rule = replace(RULE, objective="scr", max_accuracy_drop=0.5)
    options = ComparisonOptions(methods=("la",), tau_grid=TAU, rule=rule)
    with pytest.raises(LabelsError, match="its recall cannot be the objective"):
        compare_methods(settings_of(demo), ComparisonFiles(str(tmp_path / "val.csv")), options)


def test_a_broken_image_is_in_no_figure(demo: Path, tmp_path: Path) -> None:
    """An image that cannot be decoded is named, and all methods are scored on the others."""
    rows = read_rows(demo / "val.csv")
    (tmp_path / "broken.png").write_text("broken")
    with (tmp_path / "val.csv").open("w", newline="") as stream:
        stream.write("image,label\nbroken.png,zero\n")
        stream.writelines(f"{demo / 'val' / row['image']},{row['label']}\n" for row in rows)
    options = ComparisonOptions(methods=("perturb", "minus-eps"), eps_grid=(0.0, 0.05), rule=RULE)
    found = compare_methods(settings_of(demo), ComparisonFiles(str(tmp_path / "val.csv")), options)
    assert found.failed == ("broken.png",)
    assert found.n == len(rows)
    assert any("1 images could not be used" in note and "broken.png: not an image" in note for note in found.notes)

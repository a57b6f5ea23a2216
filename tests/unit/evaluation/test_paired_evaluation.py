from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics as reference
from numpy.typing import NDArray

from imbalance_perturb import ClassCounts
from imbalance_perturb.errors import LabelsError, SettingsError
from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions, evaluate
from imbalance_perturb.evaluation.significance import mcnemar_test

COUNTS = ClassCounts(("nv", "mel", "df", "absent"), (400, 50, 7, 20))


@pytest.fixture(scope="module")
def arrays() -> tuple[NDArray[np.int64], ...]:
    """Labels, base and perturbed predictions of 200 images; class 3 has no label but is predicted."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 200, p=[0.8, 0.15, 0.05])
    base = np.where(random.random(200) < 0.7, labels, random.integers(0, 4, 200))
    perturbed = np.where(random.random(200) < 0.8, base, labels)
    return labels, base, perturbed


def test_json_has_the_agreed_keys(arrays: tuple[NDArray[np.int64], ...]) -> None:
    """The JSON has the keys that the interface promises, and nothing that JSON cannot hold."""
    data = evaluate(*arrays, COUNTS).to_dict()
    for kind in ("base", "perturbed"):
        assert {"mcr", "scr", "worst_class_recall", "accuracy", "macro_f1", "confusion_matrix"} <= data[kind].keys()
        for name in COUNTS.names:
            assert {"recall", "precision", "f1", "support"} <= data[kind]["per_class"][name].keys()
    for name in ("mcr", "scr", "accuracy"):
        assert {"value", "ci95", "p_value"} <= data["difference"][name].keys()
    assert data["classes"] == list(COUNTS.names)
    assert data["n"] == 200
    json.dumps(data, allow_nan=False)


def test_figures_are_those_of_scikit_learn(arrays: tuple[NDArray[np.int64], ...]) -> None:
    """Base and perturbed figures, and their difference, equal scikit-learn's."""
    labels, base, perturbed = arrays
    found = evaluate(labels, base, perturbed, COUNTS)
    for scores, preds in ((found.base, base), (found.perturbed, perturbed)):
        recall = reference.recall_score(labels, preds, labels=range(4), average=None, zero_division=0)
        assert scores.mcr == pytest.approx(recall[:3].mean())
        assert scores.scr == pytest.approx(recall[2])
        assert scores.worst_class_recall == pytest.approx(recall[:3].min())
        assert scores.worst_class == COUNTS.names[int(recall[:3].argmin())]
        assert scores.accuracy == pytest.approx(reference.accuracy_score(labels, preds))
        f1 = reference.f1_score(labels, preds, average="macro", zero_division=0)
        assert scores.macro_f1 == pytest.approx(f1)
        assert np.array_equal(scores.confusion_matrix, reference.confusion_matrix(labels, preds, labels=range(4)))
    assert found.differences["mcr"].value == pytest.approx(found.perturbed.mcr - found.base.mcr)
    right = np.stack([base == labels, perturbed == labels]).astype(int)
    lost, gained = int((right[0] > right[1]).sum()), int((right[0] < right[1]).sum())
    assert (found.changes.lost, found.changes.gained) == (lost, gained)
    assert found.changes.total == (base != perturbed).sum()
    assert found.differences["accuracy"].p_value == mcnemar_test(lost, gained)


def test_intervals_hold_the_figures(arrays: tuple[NDArray[np.int64], ...]) -> None:
    """Every figure lies within its interval, at every level, and a higher level is wider."""
    widths = []
    for level in (0.8, 0.95):
        found = evaluate(*arrays, COUNTS, options=IntervalOptions(level=level))
        for scores in (found.base, found.perturbed):
            for name, interval in scores.intervals.items():
                assert interval.low <= getattr(scores, name) <= interval.high
        for entry in found.differences.values():
            assert entry.interval is None or entry.interval.low <= entry.value <= entry.interval.high
        interval = found.base.intervals["mcr"]
        widths.append(interval.high - interval.low)
        assert f"ci{100 * level:g}" in found.to_dict()["difference"]["mcr"]
    assert widths[0] < widths[1]


def test_classes_without_labels_are_named_and_left_out(arrays: tuple[NDArray[np.int64], ...]) -> None:
    """A class without labelled images is in no mean, has no recall, and is named in result and notes."""
    found = evaluate(*arrays, COUNTS)
    assert found.classes_without_labels == ("absent",)
    entry = found.base.per_class[3]
    assert (entry.support, entry.recall, entry.recall_interval, entry.precision) == (0, None, None, 0.0)
    assert found.gains[3] is None
    assert any("in no mean: absent" in note for note in found.notes)


def test_smallest_class_without_labels() -> None:
    """Without labelled images of the smallest class there is no SCR, and the notes say so."""
    found = evaluate([0, 0, 1], [0, 1, 1], [0, 0, 1], ClassCounts(("a", "b", "c"), (9, 5, 2)))
    assert found.base.scr is None
    assert "scr" not in found.differences
    assert any("there is no SCR" in note for note in found.notes)
    assert found.to_dict()["base"]["scr"] is None


def test_ties_for_the_smallest_class_are_said() -> None:
    """Where classes tie for the fewest training images, SCR is the first one's and the notes say so."""
    found = evaluate([0, 1, 2], [0, 0, 2], [0, 1, 2], ClassCounts(("a", "b", "c"), (9, 2, 2)))
    assert found.smallest_class == "b"
    assert any("b, c tie for the fewest" in note for note in found.notes)


def test_one_image() -> None:
    """A single image gives figures and intervals, and a note that they say little."""
    found = evaluate([1], [0], [1], ClassCounts(("a", "b"), (9, 2)))
    assert (found.base.mcr, found.perturbed.mcr, found.differences["mcr"].value) == (0.0, 1.0, 1.0)
    assert found.differences["mcr"].p_value == pytest.approx(1.0)
    assert any("intervals say little: b" in note for note in found.notes)
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_predictions() -> None:
    """Where nothing changed, differences are 0 with p = 1 and an interval around 0."""
    labels = np.repeat([0, 1], [50, 8])
    found = evaluate(labels, labels, labels, ClassCounts(("a", "b"), (9, 2)))
    entry = found.differences["mcr"]
    assert (entry.value, entry.p_value, found.changes.total) == (0.0, 1.0, 0)
    assert entry.interval is not None
    assert entry.interval.low < 0 < entry.interval.high


def test_auc_needs_both_probabilities(arrays: tuple[NDArray[np.int64], ...]) -> None:
    """With probabilities there is an AUC of each and their difference; without there is none."""
    labels, base, perturbed = arrays
    probs, base_probs = np.eye(4)[perturbed], np.eye(4)[base]
    found = evaluate(labels, base, perturbed, COUNTS, base_probs=base_probs, probs=probs)
    expected = np.mean([reference.roc_auc_score(labels == c, probs[:, c]) for c in range(3)])
    assert found.perturbed.auc == pytest.approx(expected)
    assert found.base.auc is not None
    assert found.differences["auc"].value == pytest.approx(found.perturbed.auc - found.base.auc)
    assert evaluate(labels, base, perturbed, COUNTS).base.auc is None


def test_same_seed_same_result(arrays: tuple[NDArray[np.int64], ...]) -> None:
    """The same seed gives the same result to the last digit, another one another interval."""
    first, second, other = (evaluate(*arrays, COUNTS, options=IntervalOptions(seed=s)) for s in (1, 1, 2))
    assert first == second
    assert first.base.intervals["mcr"] != other.base.intervals["mcr"]
    assert first.base.mcr == other.base.mcr


def test_nothing_to_evaluate() -> None:
    """No image, or arrays that do not fit, are errors."""
    empty = np.array([], dtype=int)
    with pytest.raises(LabelsError, match="nothing to evaluate"):
        evaluate(empty, empty, empty, COUNTS)
    with pytest.raises(LabelsError, match="give one of each for every image"):
        evaluate([0, 1], [0], [0], COUNTS)


@pytest.mark.parametrize("options", [{"level": 95}, {"seed": -1}, {"resamples": 3}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    """Options that make no sense are refused by name."""
    with pytest.raises(SettingsError, match=r"confidence-level|seed|resamples"):
        IntervalOptions(**options)  # type: ignore[arg-type]

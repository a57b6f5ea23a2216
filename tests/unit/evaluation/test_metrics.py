from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.evaluation.metrics import (
    accuracy,
    confusion_matrix,
    count_jointly,
    f1_parts,
    f1_scores,
    labelled,
    macro_auc,
    macro_f1,
    mean_class_recall,
    mean_f1,
    precisions,
    recalls,
)

Case = tuple[NDArray[np.int64], NDArray[np.int64], int]


@st.composite
def predicted(draw: st.DrawFn) -> Case:
    """Labels and predictions of 1 to 60 images in 2 to 8 classes, of which some may be absent from either."""
    classes = draw(st.integers(2, 8))
    size = draw(st.integers(1, 60))
    present = st.sampled_from(draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True)))
    labels = draw(st.lists(present, min_size=size, max_size=size))
    preds = draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    return np.array(labels), np.array(preds), classes


def quietly(function: Callable[..., object], *arguments: object, **options: object) -> object:
    """scikit-learn warns of classes that are only predicted, which here is the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


@given(predicted())
def test_all_figures_are_those_of_scikit_learn(case: Case) -> None:
    """Every figure equals scikit-learn's, with absent classes, classes only predicted, and single images."""
    labels, preds, classes = case
    matrix = confusion_matrix(labels, preds, classes)
    every = list(range(classes))
    assert (matrix == reference.confusion_matrix(labels, preds, labels=every)).all()
    assert mean_class_recall(matrix) == pytest.approx(quietly(reference.balanced_accuracy_score, labels, preds))
    assert accuracy(matrix) == pytest.approx(reference.accuracy_score(labels, preds))
    assert macro_f1(matrix) == pytest.approx(reference.f1_score(labels, preds, average="macro", zero_division=0))
    options = {"labels": every, "average": None, "zero_division": 0}
    assert precisions(matrix) == pytest.approx(reference.precision_score(labels, preds, **options))
    assert f1_scores(matrix) == pytest.approx(reference.f1_score(labels, preds, **options))
    found = recalls(matrix)
    assert found[labelled(matrix)] == pytest.approx(reference.recall_score(labels, preds, **options)[labelled(matrix)])
    assert np.isnan(found[~labelled(matrix)]).all()


@given(predicted())
def test_macro_f1_of_many_matrices_at_once(case: Case) -> None:
    """The mean F1 of stacked parts, in which different classes occur, is the macro F1 of each."""
    labels, preds, classes = case
    matrices = [confusion_matrix(labels[:n], preds[:n], classes) for n in range(1, len(labels) + 1)]
    hits, denominators = (np.stack(parts) for parts in zip(*map(f1_parts, matrices), strict=True))
    assert mean_f1(hits, denominators) == pytest.approx([macro_f1(matrix) for matrix in matrices])


@given(predicted(), st.data())
def test_parts_add_up(case: Case, data: st.DataObject) -> None:
    """Counts of two parts, added, are the counts of the whole, whatever the cut."""
    labels, preds, classes = case
    base = np.roll(preds, 1)
    cut = data.draw(st.integers(0, len(labels)))
    whole = count_jointly(labels, base, preds, classes)
    parts = [count_jointly(labels[s], base[s], preds[s], classes) for s in (slice(cut), slice(cut, None))]
    merged = parts[0] + parts[1]
    assert (merged.cells == whole.cells).all()
    assert (merged.counts == whole.counts).all()


@given(predicted())
def test_joint_counts_hold_both_predictions(case: Case) -> None:
    """The joint counts give both confusion matrices and who was right where."""
    labels, preds, classes = case
    base = np.roll(preds, 1)
    joint = count_jointly(labels, base, preds, classes)
    assert joint.total == len(labels)
    assert (joint.base.to_array() == confusion_matrix(labels, base, classes)).all()
    assert (joint.perturbed.to_array() == confusion_matrix(labels, preds, classes)).all()
    for c in range(classes):
        for first, second in np.ndindex(2, 2):
            expected = ((labels == c) & ((base == c) == first) & ((preds == c) == second)).sum()
            assert joint.correctness[c, first, second] == expected


@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_auc_is_that_of_scikit_learn(classes: int, seed: int, ties: bool) -> None:
    """The AUC equals scikit-learn's macro one-against-rest, with tied probabilities too."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, 30)])
    scores = random.random((len(labels), classes)) ** 2 + 0.1
    if ties:
        scores = np.ceil(scores * 3)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    options = {"multi_class": "ovr", "labels": range(classes)} if classes > 2 else {}
    expected = reference.roc_auc_score(labels, probabilities if classes > 2 else probabilities[:, 1], **options)
    assert macro_auc(labels, probabilities) == pytest.approx(expected)


def test_auc_leaves_out_classes_without_images() -> None:
    """A class without labelled images has no curve; with one class alone there is no AUC."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.4, 0.5, 0.1]])
    assert macro_auc([0, 1, 0], probabilities) == pytest.approx(1.0)
    assert macro_auc([1, 1, 1], probabilities) is None


def test_no_image_gives_no_figure() -> None:
    """Without images every figure is NaN, never 0 or an error."""
    matrix = confusion_matrix(np.array([], dtype=int), np.array([], dtype=int), 3)
    assert matrix.shape == (3, 3)
    assert np.isnan([mean_class_recall(matrix), accuracy(matrix), macro_f1(matrix), *recalls(matrix)]).all()


@pytest.mark.parametrize(
    ("labels", "preds", "message"),
    [
        ([0, 3], [0, 1], "labels holds class index 3; there are 3 classes"),
        ([0, 1], [0, -1], "holds class index -1"),
        ([0, 1], [0], "have 2, 1, 1 entries"),
        ([0.0, 1.0], [0, 1], "holds float64"),
        ([[0], [1]], [0, 1], r"shape \(2, 1\)"),
    ],
)
def test_bad_indices_are_refused(labels: list[int], preds: list[int], message: str) -> None:
    """An index out of range must not land in another cell; lengths and kinds must fit."""
    with pytest.raises(LabelsError, match=message):
        confusion_matrix(labels, preds, 3)


def test_counts_over_different_classes_do_not_add() -> None:
    """Counts of two problems are not merged."""
    with pytest.raises(LabelsError, match="over 2 and over 3 classes"):
        count_jointly([0], [0], [0], 2) + count_jointly([0], [0], [0], 3)


def test_no_torch_is_loaded() -> None:
    """Evaluating finished predictions loads no torch, so it starts at once."""
    code = (
        "import sys, imbalance_perturb.evaluation.evaluation_files, imbalance_perturb.reports.evaluation_page;"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

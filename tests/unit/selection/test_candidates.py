from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gmean
from sklearn.metrics import balanced_accuracy_score, recall_score

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.selection.candidates import make_candidates, objective_values, stratified_folds
from tests.strategies import contests


@given(contests())
def test_objectives_are_those_of_scikit_learn(contest: tuple[np.ndarray, np.ndarray, int]) -> None:
    """MCR, SCR, worst recall and geometric mean of any predictions, over the classes that have images."""
    labels, preds, classes = contest
    candidates = make_candidates(labels, preds, np.arange(preds.shape[1]), num_classes=classes, smallest_class=0)
    hits, totals = candidates.count_all()
    found = {name: objective_values(hits, totals, name, 0) for name in ("mcr", "scr", "worst", "gmean")}
    present = np.unique(labels)
    for k, column in enumerate(preds.T):
        recalls = recall_score(labels, column, labels=present, average=None, zero_division=0.0)
        assert found["mcr"][k] == pytest.approx(np.mean(recalls))
        if set(column) <= set(present):
            # With classes that are only predicted, scikit-learn gives the same figure and a warning.
            assert found["mcr"][k] == pytest.approx(balanced_accuracy_score(labels, column))
        assert found["worst"][k] == pytest.approx(recalls.min())
        with np.errstate(divide="ignore"):
            assert found["gmean"][k] == pytest.approx(gmean(recalls))
        assert np.isnan(found["scr"][k]) if 0 not in present else found["scr"][k] == pytest.approx(recalls[0])


@given(contests(), st.integers(2, 6))
def test_folds_spread_every_class_and_counts_add_up(contest: tuple[np.ndarray, np.ndarray, int], folds: int) -> None:
    """Fold sizes differ by at most one, in every class too; counts by fold add up to those of all images."""
    labels, preds, classes = contest
    fold = stratified_folds(labels, folds, np.random.default_rng(0))
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for label in np.unique(labels):
        assert np.ptp(np.bincount(fold[labels == label], minlength=folds)) <= 1
    candidates = make_candidates(labels, preds, np.arange(preds.shape[1]), num_classes=classes, smallest_class=0)
    hits, totals = candidates.count(fold, folds)
    all_hits, all_totals = candidates.count_all()
    assert np.array_equal(hits.sum(axis=0), all_hits)
    assert np.array_equal(totals.sum(axis=0), all_totals)
    kept = fold != 0
    some_hits, some_totals = candidates.subset(kept).count_all()
    assert np.array_equal(some_hits, hits[1:].sum(axis=0))
    assert np.array_equal(some_totals, totals[1:].sum(axis=0))


def test_folds_are_at_random_and_repeat_with_the_seed() -> None:
    """The same seed parts alike, another seed otherwise."""
    labels = np.repeat([0, 1, 2], [50, 9, 3])
    first, again, other = (stratified_folds(labels, 5, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("labels", "preds", "strengths", "message"),
    [
        ([0, 1], [[0], [1], [1]], [0], "expected \\(images,\\) and \\(images, candidates\\)"),
        ([0, 1], [0, 1], [0], "expected \\(images,\\) and \\(images, candidates\\)"),
        ([0, 1], [[0, 0], [1, 1]], [0], "2 candidates but strengths of shape \\(1,\\)"),
        ([0, 1], [[0, 0], [1, 1]], [1, 0], "candidate 0 must be the mildest"),
        ([0, 3], [[0], [1]], [0], "labels hold class index 3; there are 3 classes"),
        ([0, 1], [[0], [-1]], [0], "preds hold class index -1"),
        ([1, 1], [[0], [1]], [0], "all labelled images are of one class"),
    ],
)
def test_what_does_not_fit_is_refused(
    labels: list[int], preds: list[list[int]], strengths: list[int], message: str
) -> None:
    """Arrays that do not fit each other or the classes are refused, as is a single class."""
    with pytest.raises(LabelsError, match=message):
        make_candidates(labels, preds, strengths, num_classes=3, smallest_class=2)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.selection.cross_validation import Selection, SelectionRule, choose, select_by_cross_validation
from tests.strategies import contests

RULE = SelectionRule(repeats=3)


def simulate(gain: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N,) labels of three classes and (N, 4) predictions; each candidate gains more of the rare class, and noise."""
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [150, 60, 40])
    right = random.random(250) < np.array([0.9, 0.7, 0.4])[labels]
    columns = []
    for k in range(4):
        lucky = random.random(250) < np.where(labels == 2, gain * k, 0.02 * k)
        unlucky = random.random(250) < 0.02 * k
        columns.append(np.where((right & ~unlucky) | (~right & lucky), labels, (labels + 1) % 3))
    return labels, np.stack(columns, axis=1)


def select(labels: np.ndarray, preds: np.ndarray, rule: SelectionRule = RULE) -> Selection:
    return select_by_cross_validation(labels, preds, range(preds.shape[1]), num_classes=3, smallest_class=2, rule=rule)


def test_the_choice_is_that_of_all_images_and_repeats_with_the_seed() -> None:
    """`choose` gives the same choice without the estimate, and the same seed the same selection."""
    labels, preds = simulate(0.3)
    selection, again = select(labels, preds), select(labels, preds)
    alone = choose(labels, preds, range(4), num_classes=3, smallest_class=2, rule=RULE)
    assert selection.chosen == again.chosen == alone.chosen > 0
    assert np.array_equal(selection.choice.p_values, alone.p_values)
    assert np.array_equal(selection.held_out.fold_choices, again.held_out.fold_choices)
    assert selection.selected == again.selected
    assert selection.held_out.agreement == (int((selection.held_out.fold_choices == selection.chosen).sum()), 15)


def test_estimates_are_of_predictions_chosen_without_the_image() -> None:
    """The estimate is the mean over the repeats of scikit-learn's figures of the held-out predictions."""
    labels, preds = simulate(0.12, seed=4)
    selection = select(labels, preds)
    assert len(np.unique(selection.held_out.fold_choices)) > 1
    picked = selection.held_out.held_out_candidates
    for repeat in range(RULE.repeats):
        for fold in range(RULE.folds):
            held_out = selection.held_out.folds[repeat] == fold
            assert set(picked[repeat, held_out]) == {selection.held_out.fold_choices[repeat, fold]}
    held = [preds[np.arange(len(labels)), row] for row in picked]
    recalls = [recall_score(labels, row, average=None) for row in held]
    assert selection.selected.mcr == pytest.approx(np.mean([balanced_accuracy_score(labels, row) for row in held]))
    assert selection.selected.accuracy == pytest.approx(np.mean([accuracy_score(labels, row) for row in held]))
    assert selection.selected.scr == pytest.approx(np.mean([r[2] for r in recalls]))
    assert selection.selected.worst_class_recall == pytest.approx(np.mean([r.min() for r in recalls]))
    assert selection.selected.gmean == pytest.approx(np.mean([np.prod(r) ** (1 / 3) for r in recalls]))
    assert selection.base == selection.figures[0]
    assert selection.base.mcr == pytest.approx(balanced_accuracy_score(labels, preds[:, 0]))


def test_held_out_images_have_no_part_in_the_choice_they_score() -> None:
    """Whatever is predicted for the images of a fold, what is chosen without that fold stays."""
    labels, preds = simulate(0.3)
    selection = select(labels, preds, SelectionRule(repeats=1))
    held_out = selection.held_out.folds[0] == 0
    for other in (labels[held_out, None], (labels[held_out, None] + 1) % 3):
        changed = preds.copy()
        changed[held_out, 1:] = other
        again = select(labels, changed, SelectionRule(repeats=1))
        assert np.array_equal(again.held_out.folds, selection.held_out.folds)
        assert again.held_out.fold_choices[0, 0] == selection.held_out.fold_choices[0, 0]


def test_the_estimate_is_not_optimistic() -> None:
    """Candidates without any worth: the best of many looks good on its own images, the estimate does not."""
    rule = SelectionRule(repeats=1, significance=None)
    own, nested = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = np.repeat([0, 1, 2], [60, 40, 20])
        preds = np.where(random.random((120, 12)) < 0.6, labels[:, None], (labels[:, None] + 1) % 3)
        selection = select(labels, preds, rule)
        own.append(selection.figures[selection.chosen].mcr)
        nested.append(selection.selected.mcr)
    assert np.mean(own) > 0.66
    assert np.mean(nested) == pytest.approx(0.6, abs=0.015)


@settings(max_examples=25, deadline=None)
@given(contests())
def test_any_labels_with_two_classes_can_be_used(contest: tuple[np.ndarray, np.ndarray, int]) -> None:
    """Absent classes, classes of one image and single candidates give finite figures."""
    labels, preds, classes = contest
    selection = select_by_cross_validation(
        labels,
        preds,
        range(preds.shape[1]),
        num_classes=classes,
        smallest_class=0,
        rule=SelectionRule(folds=2, repeats=2),
    )
    assert 0 <= selection.chosen < preds.shape[1]
    assert 0 <= selection.selected.mcr <= 1
    assert (selection.selected.scr is None) == (0 not in labels)


def test_an_objective_without_images_is_refused() -> None:
    """SCR needs images of the smallest class."""
    labels = np.array([0, 1] * 5)
    with pytest.raises(LabelsError, match="its recall cannot be the objective"):
        select(labels, labels[:, None], SelectionRule(objective="scr"))

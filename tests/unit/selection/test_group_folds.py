from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.selection.candidates import Candidates, make_candidates
from imbalance_perturb.selection.cross_validation import SelectionRule, select_by_cross_validation
from imbalance_perturb.selection.group_folds import deal_folds, main_classes, split_folds, sum_groups
from imbalance_perturb.selection.max_t_test import adjusted_p_values, mean_gain_p_values
from imbalance_perturb.selection.rule import check_rule, choose_among

Ints = NDArray[np.int64]

OBJECTIVES = ("mcr", "scr", "worst", "gmean")


def contest(seed: int, copies: int = 1) -> tuple[Candidates, Ints]:
    """150 images of three classes under three candidates that gain some and lose some, each image so many times."""
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [80, 45, 25])
    right = random.random(150) < np.array([0.9, 0.6, 0.4])[labels]
    correct = np.stack([right, *(np.where(random.random(150) < p, True, right) for p in (0.05, 0.1, 0.2))], axis=1)
    correct[:, 1:] &= random.random((150, 3)) < 0.95
    task = Candidates(np.repeat(labels, copies), np.repeat(correct, copies, axis=0), np.arange(4.0), 3, 2)
    return task, np.repeat(np.arange(150), copies)


def grouped(task: Candidates, groups: Ints) -> Candidates:
    return Candidates(task.labels, task.correct, task.strengths, 3, 2, groups=groups)


@pytest.mark.parametrize("split", [split_folds, deal_folds])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_in_one_fold_and_classes_are_spread(split: object, seed: int) -> None:
    """No group is in two folds, each fold has its share of every class, and the seed says which."""
    random = np.random.default_rng(seed)
    groups = np.sort(random.integers(0, 300, 1000))
    labels = random.choice(3, 300, p=[0.7, 0.2, 0.1])[groups]
    assert callable(split)
    folds, again = (split(labels, groups, 5, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(folds, again)
    assert len(np.unique(np.stack([groups, folds], axis=1), axis=0)) == len(np.unique(groups))
    for c in range(3):
        counts = np.bincount(folds[labels == c], minlength=5)
        assert counts.min() > 0.5 * counts.mean()
    assert not np.array_equal(folds, split(labels, groups, 5, np.random.default_rng(99)))


def test_groups_that_cannot_be_split() -> None:
    """Fewer groups than folds, or no class with as many images, is refused with what to do; at once by the rule."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    with pytest.raises(LabelsError, match=r"3 groups of images cannot be split into 5 folds.*ask for fewer folds"):
        split_folds(labels, np.array([0, 0, 1, 1, 2, 2, 2]), 5, np.random.default_rng(0))
    with pytest.raises(LabelsError, match=r"no class has more than 4 images.*5 folds"):
        split_folds(labels, np.arange(7), 5, np.random.default_rng(0))
    task = make_candidates(
        labels, labels[:, None], [0], num_classes=2, smallest_class=1, groups=np.array([0, 0, 1, 1, 2, 2, 2])
    )
    with pytest.raises(LabelsError, match="3 groups of images"):
        check_rule(task, SelectionRule())


def test_sums_and_commonest_classes() -> None:
    """Values are added up by group, in the order of the groups' numbers; of equally common classes the first counts."""
    groups, labels = np.array([4, 1, 4, 1, 4, 9, 9]), np.array([2, 0, 2, 0, 1, 1, 0])
    assert sum_groups(np.array([[1.0], [2], [3], [4], [5], [6], [7]]), groups).tolist() == [[6], [9], [13]]
    assert main_classes(labels, np.array([1, 0, 1, 0, 1, 2, 2]), 3).tolist() == [0, 2, 0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_groups_of_one_image_change_nothing(objective: str) -> None:
    """With every image in a group of its own the tests give the p-values of independent images, but for chance."""
    task, groups = contest(5)
    alone = adjusted_p_values(task, objective, np.random.default_rng(0))
    assert adjusted_p_values(grouped(task, groups), objective, np.random.default_rng(1)) == pytest.approx(
        alone, abs=0.05
    )
    rule = SelectionRule(objective=objective, repeats=30)
    one, other = (choose_among(t, rule, np.random.default_rng(2)) for t in (task, grouped(task, groups)))
    assert other.p_values == pytest.approx(one.p_values, abs=0.05)
    assert other.gain_errors == pytest.approx(one.gain_errors, rel=0.35, abs=0.002)
    assert other.allowed.tolist() == one.allowed.tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_eight_copies_are_no_evidence(objective: str) -> None:
    """Of images that are there eight times each, the tests by group give the p-values of the images once."""
    once, (many, groups) = contest(5)[0], contest(5, copies=8)
    expected = adjusted_p_values(once, objective, np.random.default_rng(0))
    found = adjusted_p_values(grouped(many, groups), objective, np.random.default_rng(1))
    assert found == pytest.approx(expected, abs=0.05)
    gains = once.weighted_briers()[:, :1] - once.weighted_briers()
    by_group = sum_groups(np.repeat(gains, 8, axis=0), groups)
    assert mean_gain_p_values(by_group, np.random.default_rng(1)) == pytest.approx(
        mean_gain_p_values(gains, np.random.default_rng(0)), abs=0.05
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_size_with_eight_like_images_a_group(objective: str) -> None:
    """Where nothing helps and eight images move alike, a smallest p-value up to 0.1 comes up in about a tenth."""
    labels, small = np.repeat([0, 1, 2], [30, 20, 12]), 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        right = random.random(62) < 0.5
        correct = np.stack([right, *(right ^ (random.random(62) < share) for share in (0.1, 0.2, 0.4))], axis=1)
        task = Candidates(
            np.repeat(labels, 8),
            np.repeat(correct, 8, axis=0),
            np.arange(4.0),
            3,
            2,
            groups=np.repeat(np.arange(62), 8),
        )
        small += adjusted_p_values(task, objective, random).min() <= 0.1
    assert small <= 0.1 * 150 + 3 * np.sqrt(150 * 0.1 * 0.9)


def test_a_choice_by_groups_holds_whole_groups_out() -> None:
    """Each image's correction is chosen without its group, and copies of images make no choice more certain."""
    task, groups = contest(2, copies=6)
    preds = np.where(task.correct, task.labels[:, None], (task.labels[:, None] + 1) % 3)
    found, by_image = (
        select_by_cross_validation(
            task.labels, preds, range(4), num_classes=3, smallest_class=2, rule=SelectionRule(repeats=3), groups=ids
        )
        for ids in (groups, None)
    )
    for folds in found.held_out.folds:
        assert len(np.unique(np.stack([groups, folds], axis=1), axis=0)) == 150
    assert found.choice.p_values[1:].min() > 3 * by_image.choice.p_values[1:].min()
    assert (found.choice.gain_errors[1:] > 1.5 * by_image.choice.gain_errors[1:]).all()

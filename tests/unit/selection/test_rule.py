from __future__ import annotations

import numpy as np
import pytest

from imbalance_perturb.errors import LabelsError, SettingsError
from imbalance_perturb.selection.candidates import Candidates, make_candidates
from imbalance_perturb.selection.rule import Choice, SelectionRule, check_rule, choose_among

#: 100 images of a common class, 40 of a rare one.
LABELS = np.repeat([0, 1], [100, 40])


def candidates(*columns: np.ndarray, strengths: list[float] | None = None) -> Candidates:
    preds = np.stack(columns, axis=1)
    order = list(range(len(columns))) if strengths is None else strengths
    return make_candidates(LABELS, preds, order, num_classes=2, smallest_class=1)


def predicted(common: int, rare: int) -> np.ndarray:
    """Predictions with so many images of each class right."""
    preds = 1 - LABELS
    preds[:common] = 0
    preds[100 : 100 + rare] = 1
    return preds


def chosen(*columns: np.ndarray, strengths: list[float] | None = None, **rule: object) -> Choice:
    return choose_among(
        candidates(*columns, strengths=strengths),
        SelectionRule(**rule),  # type: ignore[arg-type]
        np.random.default_rng(0),
    )


def test_a_clear_gain_is_chosen() -> None:
    """20 of 40 rare images gained, one common one lost."""
    choice = chosen(predicted(95, 10), predicted(94, 30))
    assert choice.chosen == 1
    assert choice.values.tolist() == pytest.approx([0.6, 0.845])
    assert choice.gains.tolist() == pytest.approx([0, 0.245])
    assert choice.p_values[0] == 1
    assert choice.p_values[1] < 0.001


@pytest.mark.parametrize("objective", ["mcr", "scr", "worst", "gmean"])
def test_nothing_to_choose_is_no_correction(objective: str) -> None:
    """Candidate 0 alone, candidates equal to it, and worse ones: 0 is the answer for every objective."""
    base = predicted(95, 10)
    assert chosen(base, objective=objective).chosen == 0
    same = chosen(base, base, base, objective=objective)
    assert same.chosen == 0
    assert same.p_values.tolist() == [1, 1, 1]
    assert chosen(base, predicted(95, 5), predicted(80, 9), objective=objective).chosen == 0


def test_of_equals_the_mildest_is_chosen_whatever_its_place() -> None:
    """Strength decides among equals, not the order of the candidates."""
    base, better = predicted(95, 10), predicted(95, 30)
    assert chosen(base, better, better, strengths=[0, 3, 2]).chosen == 2
    assert chosen(base, better, predicted(96, 30), strengths=[0, 2, 2]).chosen == 2


def test_the_brier_score_decides_for_mean_class_recall_and_the_figure_itself_for_others() -> None:
    """Of two candidates that gain as many images, the one that is surer of the right ones is taken."""
    base, better = predicted(95, 10), predicted(95, 30)
    logits = [4.0 * np.eye(2)[each] for each in (base, better, better)]
    doubtful = better != LABELS
    logits[2] = np.where(doubtful[:, None], 0.2 * logits[2], logits[2])  # wrong without conviction
    columns = np.stack((base, better, better), axis=1)
    task = make_candidates(LABELS, columns, [0, 1, 2], num_classes=2, smallest_class=1, logits=logits)
    choice = choose_among(task, SelectionRule(), np.random.default_rng(0))
    assert choice.chosen == 2
    assert choice.briers[2] < choice.briers[1] < choice.briers[0]
    assert choice.values[2] == choice.values[1]
    assert chosen(base, predicted(90, 30), predicted(70, 31), objective="scr", max_accuracy_drop=1.0).chosen == 2


@pytest.mark.parametrize("objective", ["scr", "worst"])
def test_an_objective_of_one_class_may_not_ruin_the_others(objective: str) -> None:
    """All images called rare has the best SCR: without a limit on the accuracy the MCR must be kept."""
    base, ruin, sound = predicted(80, 10), predicted(1, 40), predicted(78, 26)
    assert chosen(base, sound, ruin, objective=objective).chosen == 1
    assert chosen(base, sound, ruin, objective="scr", max_accuracy_drop=1.0).chosen == 2
    assert chosen(base, sound, ruin, objective=objective, max_accuracy_drop=0.2).chosen == 1


def test_no_test_where_a_candidate_costs_nothing() -> None:
    """Without a significance the best Brier score is taken, and nothing is tested."""
    base, noise = predicted(95, 20), predicted(95, 22)
    noise[0] = 1
    assert chosen(base, noise).chosen == 0
    free = chosen(base, noise, significance=None)
    assert free.chosen == 1
    assert free.p_values.tolist() == [1, 1]
    assert chosen(base, noise, significance=1).chosen == 1


def test_accuracy_may_not_fall_by_more_than_allowed() -> None:
    """The limit is a difference in shares that one standard error more must keep; others are never chosen."""
    base, mild, strong = predicted(100, 10), predicted(98, 20), predicted(60, 38)
    assert chosen(base, mild, strong).chosen == 2
    limited = chosen(base, mild, strong, max_accuracy_drop=0.01)
    assert limited.chosen == 1
    assert limited.allowed.tolist() == [True, True, False]
    exact = predicted(100, 10), predicted(86, 20)  # 14 images lost and 10 gained
    error = np.sqrt(24 / 140 - (4 / 140) ** 2) / np.sqrt(140)
    assert chosen(*exact, max_accuracy_drop=4 / 140 + error).allowed.tolist() == [True, True]
    assert chosen(*exact, max_accuracy_drop=4 / 140 + 0.9 * error).allowed.tolist() == [True, False]
    assert chosen(base, strong, max_accuracy_drop=0.0).chosen == 0


def test_standard_errors_are_those_of_a_difference_of_shares() -> None:
    """The grouped jackknife agrees with the formula for the paired difference of a mean of recalls."""
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], [3000, 1000])
    preds = np.stack([np.where(random.random(4000) < share, labels, 1 - labels) for share in (0.7, 0.75)], axis=1)
    task = make_candidates(labels, preds, [0, 1], num_classes=2, smallest_class=1)
    error = choose_among(task, SelectionRule(repeats=100), np.random.default_rng(0)).gain_errors[1]
    difference = (preds[:, 1] == labels).astype(float) - (preds[:, 0] == labels)
    expected = np.sqrt(sum(difference[labels == c].var() / (labels == c).sum() for c in (0, 1))) / 2
    assert error == pytest.approx(expected, rel=0.1)


def test_a_class_of_one_image_cannot_decide_its_own_recall() -> None:
    """SCR of a single image: its gain is no evidence, and its error is not known."""
    labels = np.array([0] * 20 + [1])
    preds = np.stack([np.zeros(21, int), np.append(np.zeros(20, int), 1)], axis=1)
    task = make_candidates(labels, preds, [0, 1], num_classes=2, smallest_class=1)
    choice = choose_among(task, SelectionRule(objective="scr"), np.random.default_rng(0))
    assert choice.chosen == 0
    assert choice.gains[1] == 1
    assert np.isinf(choice.gain_errors[1])


@pytest.mark.parametrize("objective", ["mcr", "scr", "worst", "gmean"])
def test_noise_is_answered_with_no_correction(objective: str) -> None:
    """Ten corrections that change answers at random, as many gained as lost: 0 in at least nine of ten sets."""
    sizes, recalls = np.array([200, 60, 25]), np.array([0.9, 0.6, 0.5])
    labels = np.repeat([0, 1, 2], sizes)
    share = np.geomspace(0.01, 0.3, 10)
    flow = np.minimum(recalls, 1 - recalls)[labels]
    zero = 0
    for seed in range(250):
        random = np.random.default_rng(seed)
        right = random.random(len(labels)) < recalls[labels]
        threshold = random.random(len(labels)) * np.where(right, recalls[labels], 1 - recalls[labels]) / flow
        correct = np.concatenate([right[:, None], right[:, None] ^ (threshold[:, None] < share)], axis=1)
        preds = np.where(correct, labels[:, None], (labels[:, None] + 1) % 3)
        task = make_candidates(labels, preds, range(11), num_classes=3, smallest_class=2)
        zero += choose_among(task, SelectionRule(objective=objective, repeats=1), random).chosen == 0
    assert zero >= 225


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "auc"}, "objective is 'auc'; expected one of mcr, scr, worst, gmean"),
        ({"max_accuracy_drop": -0.1}, "max-accuracy-drop is -0.1"),
        ({"max_accuracy_drop": float("nan")}, "max-accuracy-drop is nan"),
        ({"significance": 0}, "significance is 0; expected a number above 0"),
        ({"folds": 1}, "folds is 1; expected a whole number, at least 2"),
        ({"repeats": 0}, "repeats is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_rule_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    """Every value of a rule is checked when it is made."""
    with pytest.raises(SettingsError, match=message):
        SelectionRule(**values)  # type: ignore[arg-type]


def test_images_that_cannot_serve_a_rule_are_refused() -> None:
    """Fewer images than folds, and SCR without an image of the smallest class."""
    few = make_candidates([0, 1, 1], [[0], [1], [1]], [0], num_classes=3, smallest_class=2)
    with pytest.raises(LabelsError, match="3 labelled images cannot be split into 5 folds"):
        check_rule(few, SelectionRule())
    with pytest.raises(LabelsError, match="has no labelled image, so its recall cannot be the objective"):
        check_rule(few, SelectionRule(folds=2, objective="scr"))


#: What is predicted is the column: a rare image called common costs ten times as much as the other way round.
COSTS = ((0.0, 1.0), (10.0, 0.0))


def test_costs_weigh_the_brier_score_and_are_the_figure() -> None:
    """With costs an image weighs what its error costs, and the objective is the mean cost, below 0."""
    base, better = predicted(95, 10), predicted(85, 25)
    columns = np.stack((base, better), axis=1)
    logits = [3.0 * np.eye(2)[each] for each in (base, better)]
    task = make_candidates(
        LABELS, columns, [0, 1], num_classes=2, smallest_class=1, logits=logits, costs=np.array(COSTS)
    )
    choice = choose_among(task, SelectionRule(objective="cost", costs=COSTS), np.random.default_rng(0))
    assert choice.chosen == 1
    prices = np.array(COSTS)[LABELS[:, None], columns]
    assert choice.values.tolist() == pytest.approx((-prices.mean(axis=0)).tolist())
    assert choice.gains[1] == pytest.approx((15 * 10 - 10) / 140)
    # The score of hard predictions: the weight of the wrong images times their distance, at the best temperature.
    weights = np.where(LABELS == 1, 10, 1) / (100 + 40 * 10)
    hard = make_candidates(LABELS, columns, [0, 1], num_classes=2, smallest_class=1, costs=np.array(COSTS))
    expected = 2 * weights @ (columns != LABELS[:, None])
    assert hard.weighted_briers().sum(axis=0).tolist() == pytest.approx(expected.tolist())
    assert choice.briers[1] < choice.briers[0]


def test_equal_costs_are_the_plain_brier_score() -> None:
    """Where all errors cost the same, all images weigh the same: many common ones outweigh few rare ones."""
    equal = ((0.0, 1.0), (1.0, 0.0))
    base, better = predicted(95, 10), predicted(70, 20)
    columns = np.stack((base, better), axis=1)
    task = make_candidates(LABELS, columns, [0, 1], num_classes=2, smallest_class=1, costs=np.array(equal))
    assert task.weighted_briers().sum(axis=0).tolist() == pytest.approx([2 * 35 / 140, 2 * 50 / 140])
    assert choose_among(task, SelectionRule(objective="cost", costs=equal), np.random.default_rng(0)).chosen == 0


def test_a_candidate_that_costs_more_is_never_chosen() -> None:
    """A better score does not outweigh a higher mean cost of the predictions themselves."""
    base, worse = predicted(95, 20), predicted(95, 19)
    logits = [0.5 * np.eye(2)[base], 3.0 * np.eye(2)[LABELS]]
    columns = np.stack((base, worse), axis=1)
    task = make_candidates(
        LABELS, columns, [0, 1], num_classes=2, smallest_class=1, logits=logits, costs=np.array(COSTS)
    )
    choice = choose_among(task, SelectionRule(objective="cost", costs=COSTS), np.random.default_rng(0))
    assert choice.briers[1] < choice.briers[0]
    assert choice.allowed.tolist() == [True, False]
    assert choice.chosen == 0


def test_costs_need_their_objective_and_candidates_that_have_them() -> None:
    """Costs and the objective 'cost' go together; candidates without, and costs that weigh nothing, are refused."""
    for values in ({"objective": "cost"}, {"objective": "scr", "costs": COSTS}):
        with pytest.raises(SettingsError, match="costs are an objective of their own"):
            SelectionRule(**values)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no error costs more than a right prediction"):
        SelectionRule(objective="cost", costs=((1.0, 1.0), (2.0, 2.0)))
    with pytest.raises(SettingsError, match="an objective of tune-eps alone"):
        check_rule(candidates(predicted(95, 10)), SelectionRule(objective="cost", costs=COSTS))

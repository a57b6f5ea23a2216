from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import multilabel_confusion_matrix, precision_score

from imbalance_perturb.errors import LabelsError
from imbalance_perturb.evaluation.metrics import count_jointly
from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions
from imbalance_perturb.evaluation.predictive_values import PredictiveValues, predictive_values, stated_shares

OPTIONS = IntervalOptions(resamples=2000)
RATES = np.array([[0.9, 0.07, 0.03], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]])


def draw_preds(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Predictions with the rates of :data:`RATES`."""
    return (random.random(len(labels))[:, None] > RATES.cumsum(axis=1)[labels]).sum(axis=1)


def values_of(
    labels: NDArray[np.int64], preds: NDArray[np.int64], shares: NDArray[np.float64] | None = None
) -> tuple[PredictiveValues, ...]:
    """The values of three classes."""
    matrix = count_jointly(labels, preds, preds, 3).perturbed
    return predictive_values(matrix, stated_shares(matrix.sum(axis=1), shares)[0], OPTIONS, np.ones(3))


@pytest.mark.parametrize("shares", [None, [0.2, 0.3, 0.5]])
def test_values_are_those_of_scikit_learn(shares: list[float] | None) -> None:
    """All three values equal those of scikit-learn's counts, with weights that give the classes the stated shares."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 400, p=[0.8, 0.15, 0.05])
    preds = draw_preds(labels, random)
    given = None if shares is None else np.array(shares)
    found = values_of(labels, preds, given)
    totals = np.bincount(labels)
    weights = (totals / len(labels) if given is None else given)[labels] / totals[labels]
    weighted = multilabel_confusion_matrix(labels, preds, sample_weight=weights)
    plain = multilabel_confusion_matrix(labels, preds)
    for values, ((tn, fp), (fn, tp)), ((plain_tn, plain_fp), _) in zip(found, weighted, plain, strict=True):
        assert values.ppv == pytest.approx(tp / (tp + fp))
        assert values.npv == pytest.approx(tn / (tn + fn))
        assert values.specificity == pytest.approx(plain_tn / (plain_tn + plain_fp))
    if shares is None:
        assert [values.ppv for values in found] == pytest.approx(precision_score(labels, preds, average=None))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 300 test sets with few images of a rare class, about 95% of its intervals hold the true values."""
    random = np.random.default_rng(1)
    shares, labels = np.array([0.9, 0.07, 0.03]), np.repeat(np.arange(3), [300, 60, 20])
    right, given = shares[2] * RATES[2, 2], float(shares @ RATES[:, 2])
    truth = {"ppv": right / given, "npv": (1 - shares[2] - given + right) / (1 - given)}
    held = dict.fromkeys(truth, 0)
    for _ in range(300):
        values = values_of(labels, draw_preds(labels, random), shares)[2]
        for name, true in truth.items():
            interval = getattr(values, f"{name}_interval")
            held[name] += interval.low <= true <= interval.high
    assert all(0.91 <= count / 300 <= 0.99 for count in held.values()), held


def test_a_class_that_is_never_given_has_no_ppv_and_perfect_ones_have_width() -> None:
    """Without a prediction of a class there is no PPV; a value of 1 is within an interval that is not a point."""
    labels = np.array([0] * 30 + [1] * 10 + [2] * 5)
    first, second, third = values_of(labels, np.where(labels == 2, 0, labels))
    assert (third.ppv, third.ppv_interval) == (None, None)
    assert second.ppv == 1.0
    assert second.ppv_interval is not None
    assert second.ppv_interval.high == 1.0
    assert 0.5 < second.ppv_interval.low < 0.95
    assert first.npv == 1.0


def test_a_class_without_images_has_no_values_and_its_share_goes_to_the_others() -> None:
    """What is given to a class without images is left out and returned; a prevalence of nothing else is refused."""
    shares, left_out = stated_shares(np.array([10, 5, 0]), np.array([0.3, 0.3, 0.4]))
    assert (shares.tolist(), left_out.tolist()) == ([0.5, 0.5, 0.0], [0.0, 0.0, 0.4])
    labels = np.array([0] * 10 + [1] * 5)
    assert values_of(labels, np.where(np.arange(15) < 2, 2, labels))[2] == PredictiveValues()
    with pytest.raises(LabelsError, match="prevalence is 0"):
        stated_shares(np.array([10, 5, 0]), np.array([0.0, 0.0, 1.0]))


def test_images_that_come_in_pairs_tell_as_much_as_half_of_them() -> None:
    """With a design effect of 2 all intervals are those of half as many images, and the values stay."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [300, 60, 20])
    preds = draw_preds(labels, random)
    matrix = count_jointly(np.tile(labels, 2), np.tile(preds, 2), np.tile(preds, 2), 3).perturbed
    twice = predictive_values(matrix, np.array([0.8, 0.1, 0.1]), OPTIONS, np.full(3, 2.0))
    for values, once in zip(twice, values_of(labels, preds, np.array([0.8, 0.1, 0.1])), strict=True):
        assert values.ppv == pytest.approx(once.ppv)
        for name in ("specificity", "ppv", "npv"):
            found, expected = getattr(values, f"{name}_interval"), getattr(once, f"{name}_interval")
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high))

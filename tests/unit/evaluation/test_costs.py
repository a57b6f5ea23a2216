from __future__ import annotations

import numpy as np
import pytest

from imbalance_perturb.evaluation.costs import expected_costs
from imbalance_perturb.evaluation.metrics import count_jointly
from imbalance_perturb.evaluation.paired_evaluation import IntervalOptions

COSTS = np.array([[0.5, 1.0, 2.0], [8.0, 0.0, 3.0], [20.0, 5.0, 0.0]])
OPTIONS = IntervalOptions(resamples=4000)


def make_sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, base and better predictions of 600 images."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 600, p=[0.7, 0.2, 0.1])
    base = np.where(random.random(600) < 0.6, labels, random.integers(0, 3, 600))
    return labels, base, np.where(random.random(600) < 0.6, base, labels)


def test_costs_at_the_labels_mix_are_the_mean_over_images() -> None:
    """At the labels' shares the expected cost is the mean over the images, right predictions included."""
    labels, base, perturbed = make_sample()
    found = expected_costs(count_jointly(labels, base, perturbed, 3), COSTS, np.bincount(labels) / 600, OPTIONS)
    assert found.base == pytest.approx(COSTS[labels, base].mean())
    assert found.perturbed == pytest.approx(COSTS[labels, perturbed].mean())
    assert found.difference.value == pytest.approx((COSTS[labels, perturbed] - COSTS[labels, base]).mean())


def test_costs_at_other_shares_weigh_the_classes() -> None:
    """At other shares it is the mean over classes of each class's mean cost, weighted by the shares."""
    labels, base, perturbed = make_sample()
    shares = np.array([0.1, 0.1, 0.8])
    found = expected_costs(count_jointly(labels, base, perturbed, 3), COSTS, shares, OPTIONS)
    assert found.base == pytest.approx(sum(s * COSTS[c, base[labels == c]].mean() for c, s in enumerate(shares)))


def test_intervals_are_those_of_a_bootstrap_of_images() -> None:
    """The intervals agree with a plain paired bootstrap of the images of each class."""
    labels, base, perturbed = make_sample()
    found = expected_costs(count_jointly(labels, base, perturbed, 3), COSTS, np.bincount(labels) / 600, OPTIONS)
    random, draws = np.random.default_rng(1), []
    pairs = np.stack([COSTS[labels, base], COSTS[labels, perturbed]], axis=1)
    for _ in range(2000):
        drawn = [random.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(3)]
        draws.append(pairs[np.concatenate(drawn)].mean(axis=0))
    columns = np.array(draws)
    kinds = (
        (found.intervals["base"], columns[:, 0]),
        (found.intervals["perturbed"], columns[:, 1]),
        (found.difference.interval, columns[:, 1] - columns[:, 0]),
    )
    for interval, column in kinds:
        low, high = np.quantile(column, [0.025, 0.975])
        assert interval is not None
        assert interval.low == pytest.approx(low, abs=0.12 * (high - low))
        assert interval.high == pytest.approx(high, abs=0.12 * (high - low))

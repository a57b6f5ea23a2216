from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imbalance_perturb.errors import NothingToCorrectError, TargetError
from imbalance_perturb.method.counts import ClassCounts, parse_class_counts
from imbalance_perturb.method.target import EFFECTIVE_NUMBER_BETA, parse_target, target_distribution
from tests import reference
from tests.strategies import imbalanced_counts


@given(imbalanced_counts)
def test_log_target_equals_the_reference(counts: list[int]) -> None:
    """The log target is the paper's Eq. (2), non-negative, sums to 1 and is 0 for the largest class."""
    target = target_distribution(parse_class_counts(counts))
    np.testing.assert_allclose(target.numpy(), reference.target(counts), rtol=1e-12, atol=1e-15)
    assert target.dtype == torch.float64
    assert target.sum().item() == pytest.approx(1)
    assert target[counts.index(max(counts))] == 0


@given(imbalanced_counts, st.integers(1, 10**6), st.sampled_from(["log", "inverse", "sqrt"]))
def test_scaled_counts_give_the_same_bits(counts: list[int], factor: int, kind: str) -> None:
    """Counts scaled by any factor give the same target, bit for bit."""
    plain = target_distribution(parse_class_counts(counts), kind)
    scaled = target_distribution(parse_class_counts([n * factor for n in counts]), kind)
    assert torch.equal(plain, scaled)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_two_classes_are_one_hot(a: int, b: int) -> None:
    """With two classes the log target is exactly one-hot on the smaller one."""
    if a == b:
        b += 1
    expected = [0.0, 1.0] if a > b else [1.0, 0.0]
    assert target_distribution(parse_class_counts([a, b])).tolist() == expected


@pytest.mark.parametrize("kind", ["log", "inverse", "sqrt", "effective-number"])
def test_equal_counts_have_nothing_to_correct(kind: str) -> None:
    """All counts equal is an error that says so, never NaN, for every form of the target."""
    with pytest.raises(NothingToCorrectError, match=r"all 3 classes have the same count \(7\)"):
        target_distribution(parse_class_counts([7, 7, 7]), kind)


def test_other_forms_follow_their_formulas() -> None:
    """inverse, sqrt and effective-number are 1/n, 1/sqrt(n) and (1 - β)/(1 - β^n), normalised."""
    counts = [5000, 300, 20, 1]
    n = np.asarray(counts, dtype=np.float64)
    formulas = {
        "inverse": 1 / n,
        "sqrt": 1 / np.sqrt(n),
        "effective-number": (1 - EFFECTIVE_NUMBER_BETA) / (1 - EFFECTIVE_NUMBER_BETA**n),
    }
    for kind, g in formulas.items():
        np.testing.assert_allclose(target_distribution(parse_class_counts(counts), kind), g / g.sum(), rtol=1e-9)


def test_m_is_adjustable_and_checked() -> None:
    """A larger M lifts the largest class above 0; an M below the largest count is refused."""
    counts = parse_class_counts([100, 10])
    target = target_distribution(counts, m=1000)
    assert target.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert target_distribution(counts, m=100).tolist() == [0, 1]
    with pytest.raises(TargetError, match="M is 99, below the largest class count 100"):
        target_distribution(counts, m=99)
    with pytest.raises(TargetError, match="M belongs to the log target"):
        target_distribution(counts, "sqrt", m=1000)
    with pytest.raises(TargetError, match="'linear' is not known"):
        target_distribution(counts, "linear")


def test_a_target_of_ones_own() -> None:
    """A distribution given outright is taken by position or by name, and normalised exactly."""
    counts = parse_class_counts({"a": 5, "b": 3, "c": 3})
    assert parse_target([0.2, 0.3, 0.5], counts).tolist() == pytest.approx([0.2, 0.3, 0.5])
    assert parse_target({"c": 0.5, "a": 0.2, "b": 0.3}, counts).tolist() == pytest.approx([0.2, 0.3, 0.5])
    rounded = parse_target([0.3333, 0.3333, 0.3335], counts)
    assert math.isclose(rounded.sum().item(), 1, abs_tol=1e-15)
    # Balanced counts have a direction once the user gives one.
    assert parse_target([0.9, 0.1], parse_class_counts([4, 4])).tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        ([0.5, 0.5], "2 numbers for 3 classes"),
        ([0.5, 0.6, 0.2], "sums to 1.3"),
        ([0.5, 0.6, -0.1], "the target of class 'c' is -0.1"),
        ([0.5, "x", 0.5], "the target of class 'b' is 'x'"),
        ([0.5, float("nan"), 0.5], "the target of class 'b' is nan"),
        ({"a": 0.5, "d": 0.5}, "missing b, c; unknown d"),
        ("log", "found str"),
        (3, "found int"),
        ([1 / 3, 1 / 3, 1 / 3], "the target is uniform"),
    ],
)
def test_a_bad_target_is_refused(data: object, cause: str) -> None:
    """A distribution that does not fit the classes or is none is refused with the cause."""
    with pytest.raises((TargetError, NothingToCorrectError), match=cause):
        parse_target(data, parse_class_counts({"a": 5, "b": 3, "c": 1}))


def test_a_target_from_numpy_is_taken() -> None:
    """An array, and a list of NumPy's numbers, are distributions like any other."""
    counts = ClassCounts(("a", "b"), (9, 1))
    expected = parse_target([0.25, 0.75], counts)
    for data in (np.array([0.25, 0.75]), [np.float32(0.25), np.float32(0.75)], torch.tensor([0.25, 0.75])):
        assert torch.equal(parse_target(data, counts), expected)

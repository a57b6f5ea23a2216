from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imbalance_perturb as ip
from imbalance_perturb.method.deployment_prior import effective_counts, read_prior, select_prior
from imbalance_perturb.method.logit_corrections import adjust_logits, log_prior
from imbalance_perturb.method.step_strength import centred_log_prior
from imbalance_perturb.method.target import target_distribution

COUNTS = ip.ClassCounts(("a", "b", "c"), (900, 90, 10))
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@st.composite
def counts_and_prior(draw: st.DrawFn) -> tuple[ip.ClassCounts, torch.Tensor]:
    numbers = draw(st.lists(st.integers(1, 10_000), min_size=2, max_size=8))
    weights = np.array(draw(st.lists(st.integers(1, 999), min_size=len(numbers), max_size=len(numbers))))
    return ip.ClassCounts([str(i) for i in range(len(numbers))], numbers), torch.from_numpy(weights / weights.sum())


@given(counts_and_prior(), st.floats(-1, 3), st.integers(0, 2**32 - 1))
def test_logit_adjustment_goes_from_the_training_shares_to_the_prior(
    given_: tuple[ip.ClassCounts, torch.Tensor], tau: float, seed: int
) -> None:
    """softmax(z - tau (log π_train - log prior)), as NumPy has it; tau 0 leaves the logits as they are."""
    counts, prior = given_
    z = np.random.default_rng(seed).normal(size=(20, len(counts)))
    train = np.array(counts.counts) / sum(counts.counts)
    expected = np.exp(z) * (train / prior.numpy()) ** -tau
    found = adjust_logits(torch.from_numpy(z), counts, tau, prior).softmax(1).numpy()
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), atol=1e-9)
    assert adjust_logits(torch.from_numpy(z), counts, 0.0, prior).numpy().tobytes() == z.tobytes()


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=60))
def test_equal_shares_change_no_bit(numbers: list[int]) -> None:
    """The counts themselves come out, so that target, log prior and strength are those without a prior."""
    counts = ip.ClassCounts([str(i) for i in range(len(numbers))], numbers)
    equal = select_prior(dict.fromkeys(counts.names, 1 / len(numbers)), counts)
    assert effective_counts(counts, equal) is counts.counts
    assert torch.equal(log_prior(counts, equal), log_prior(counts))
    assert torch.equal(centred_log_prior(counts, equal), centred_log_prior(counts))
    if not counts.balanced:
        assert torch.equal(target_distribution(counts, prior=equal), target_distribution(counts))


@pytest.mark.parametrize("kind", ["log", "inverse", "sqrt"])
def test_the_target_is_that_of_counts_over_the_prior(kind: str) -> None:
    """p* of counts n / (C prior), here whole numbers, whatever the factor; a balanced training has one, too."""
    numbers = [900 / 0.6, 90 / 1.5, 10 / 0.9]
    expected = target_distribution(ip.ClassCounts(COUNTS.names, [round(n * 9) for n in numbers]), kind)
    torch.testing.assert_close(target_distribution(COUNTS, kind, prior=PRIOR), expected)
    balanced = ip.ClassCounts(COUNTS.names, (7, 7, 7))
    found = target_distribution(balanced, kind, prior=PRIOR)
    assert found.argmax() == 1
    assert found.sum().item() == pytest.approx(1)


def test_the_mix_of_training_leaves_nothing_to_correct() -> None:
    """Shares like those of the counts give no direction, whatever rounding leaves of them."""
    for numbers in ((900, 90, 10), (4023, 668, 69)):
        counts = ip.ClassCounts(COUNTS.names, numbers)
        with pytest.raises(ip.NothingToCorrectError, match="the prior is the class mix of training"):
            target_distribution(counts, prior=torch.tensor(numbers, dtype=torch.float64) / sum(numbers))


def test_the_classifier_takes_a_prior() -> None:
    """Target and tau of the module are those of the prior; what is no prior is refused."""
    model = torch.nn.Linear(5, 3).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    found = ip.PerturbedClassifier(model, COUNTS, eps=0.01, tau=0.5, prior=PRIOR)
    assert torch.equal(found.target, target_distribution(COUNTS, prior=PRIOR))
    with torch.no_grad():
        moved = model(ip.perturb(model, x, found.target, eps=0.01))
    torch.testing.assert_close(found(x), adjust_logits(moved, COUNTS, 0.5, PRIOR))
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.5, 0.5], [float("nan"), 0.5, 0.5]):
        with pytest.raises(ip.SettingsError, match="the prior "):
            ip.PerturbedClassifier(model, COUNTS, prior=torch.tensor(wrong))


def test_a_prior_is_read_in_class_order(tmp_path: Path) -> None:
    """From a mapping, a file of shares, or the file of `shares`; sums within 1e-3 of 1 are made 1."""
    shares = {"c": 0.3, "a": 0.2004, "b": 0.5}
    found = read_prior(shares, COUNTS)
    assert found is not None
    assert list(found) == ["a", "b", "c"]
    assert sum(found.values()) == pytest.approx(1, abs=1e-15)
    assert found["a"] == pytest.approx(0.2004 / 1.0004)
    for name, data in (("plain.json", shares), ("shares.json", {"shares": shares, "images": 9})):
        (tmp_path / name).write_text(json.dumps(data))
        assert read_prior(str(tmp_path / name), COUNTS) == found
    assert read_prior("balanced", COUNTS) is None
    assert select_prior("balanced", COUNTS) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 0.5, "b": 0.5}, "the shares are not of these classes: missing c; unknown none"),
        ({"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.1}, "missing none; unknown d"),
        ({"a": 0.5, "b": 0.5, "c": 0}, "the share of 'c' is 0; a correction is for shares above 0"),
        ({"a": 0.5, "b": 0.5, "c": True}, "the share of 'c' is True; expected a number"),
        ({"a": 0.5, "b": 0.3, "c": 0.1}, "the shares sum to 0.9; shares of all images sum to 1"),
        ([0.5, 0.5], "the shares have 2 entries for 3 classes"),
    ],
)
def test_what_is_no_prior_is_refused(tmp_path: Path, data: object, message: str) -> None:
    """One line says what is wrong, beginning with the file that it is in."""
    path = tmp_path / "prior.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ip.SettingsError, match=re.escape(message)) as caught:
        read_prior(str(path), COUNTS)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ip.SettingsError, match=r"none.json: cannot be read \(No such file"):
        read_prior(str(tmp_path / "none.json"), COUNTS)

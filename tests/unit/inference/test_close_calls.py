from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imbalance_perturb.inference.close_calls import SAFETY, Reach, close_bound, fit_reach, margins

TARGET = torch.tensor([0.0, 0.1, 0.3, 0.6], dtype=torch.float64)


def some_logits(n: int = 400, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(n: int = 400, seed: int = 1) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_margin_is_between_the_two_highest() -> None:
    """The margin is the highest logit less the second, 0 for a tie and NaN for an output that is none."""
    logits = torch.tensor([[1.0, 4.0, 2.5], [2.0, 2.0, -1.0], [torch.nan, 0.0, 1.0]])
    assert margins(logits)[:2].tolist() == [1.5, 0.0]
    assert margins(logits)[2].isnan()


def test_the_bound_is_the_safety_times_the_typical_error() -> None:
    """Independent errors of one size give the bound that their difference has; no error gives 0."""
    true = some_logits()
    assert close_bound(true, true) == 0
    # The difference of two independent errors of size 0.1 has the size 0.1 * sqrt(2).
    assert close_bound(true + 0.1 * noise(), true) == pytest.approx(SAFETY * 0.1 * 2**0.5, rel=0.15)


def test_the_bound_grows_with_the_error() -> None:
    """Larger errors never give a smaller bound, beyond what the choice of the two top classes does."""
    true = some_logits()
    bounds = [close_bound(true + size * noise(), true) for size in (0.001, 0.01, 0.1, 1.0)]
    assert bounds == sorted(bounds)
    assert bounds[1] == pytest.approx(10 * bounds[0], rel=0.05)


def test_a_shift_of_all_logits_is_no_error() -> None:
    """Errors that all classes share move no margin and do not count."""
    true = some_logits()
    assert close_bound(true + 5 * noise()[:, :1], true) == pytest.approx(0, abs=1e-12)


def test_errors_of_clear_decisions_do_not_count() -> None:
    """Errors of images with wide margins, however large, leave the bound of the close ones as it is."""
    true = some_logits()
    wide = margins(true) > margins(true).quantile(0.6)
    found = true + 0.01 * noise()
    bound = close_bound(found, true)
    found[wide, true[wide].argmax(1)] += 7.0
    assert close_bound(found, true) == pytest.approx(bound)


def test_labels_beyond_the_bound_are_right() -> None:
    """All labels that differ from the reference's have a margin within a bound from 64 other images."""
    bound = close_bound(some_logits(64, 5) + 0.1 * noise(64, 6), some_logits(64, 5))
    true = some_logits(5000, 2)
    found = true + 0.1 * noise(5000, 3)
    differ = found.argmax(1) != true.argmax(1)
    assert differ.sum() > 50
    assert (margins(found)[differ] <= bound).float().mean() > 0.98
    assert (margins(found) <= bound).float().mean() < 0.25


def test_the_reach_is_found_from_what_was_moved() -> None:
    """A correction that raises logits by a multiple of p* is found as it is, without spread."""
    logits = some_logits()
    reach = fit_reach(logits, logits + 2.5 * TARGET, TARGET)
    assert reach.slope == pytest.approx(2.5)
    assert reach.spread == pytest.approx(0, abs=1e-9)


def test_the_reach_follows_the_target() -> None:
    """Only classes that p* favours over the first may overtake it: not the largest class, the last by p*."""
    reach = Reach(slope=2.0, spread=0.1)
    lead_of_largest = torch.tensor([[1.0, -9.0, -9.0, 0.0]])  # the rarest is favoured by 0.6
    lead_of_rarest = torch.tensor([[0.0, -9.0, -9.0, 1.0]])
    wide_lead = torch.tensor([[2.0, -9.0, -9.0, 0.0]])
    found = [bool(reach.may_change(logits, TARGET)) for logits in (lead_of_largest, lead_of_rarest, wide_lead)]
    assert found == [True, False, False]
    # Whichever way p* pulls, what varies from image to image counts too.
    assert bool(Reach(0.0, 0.5).may_change(lead_of_rarest, TARGET))


def test_a_tie_may_always_change() -> None:
    """Two classes with the same logit may change places even where the correction was never seen to move one."""
    assert bool(Reach(0.0, 0.0).may_change(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), TARGET))


def test_labels_out_of_reach_stay() -> None:
    """Labels that a noisy correction changes were within a reach from 64 other images."""
    known = some_logits(64, 5)
    reach = fit_reach(known, known + 1.5 * TARGET + 0.1 * noise(64, 6), TARGET)
    logits = some_logits(5000, 2)
    corrected = logits + 1.5 * TARGET + 0.1 * noise(5000, 3)
    changed = corrected.argmax(1) != logits.argmax(1)
    within = reach.may_change(logits, TARGET)
    assert changed.sum() > 200
    assert within[changed].float().mean() > 0.99
    assert within.float().mean() < 0.4


@pytest.mark.parametrize("classes", [2, 30])
def test_few_and_many_classes(classes: int) -> None:
    """Two classes, and more than are looked at one by one, give a reach and a bound."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, classes, generator=generator)
    target = torch.arange(classes).float() / sum(range(classes))
    reach = fit_reach(logits, logits + 3 * target, target)
    assert reach.slope == pytest.approx(3, rel=1e-3)
    assert reach.may_change(logits, target).shape == (40,)
    assert close_bound(logits, logits) == 0

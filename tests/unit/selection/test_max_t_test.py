from __future__ import annotations

import numpy as np
import pytest

from imbalance_perturb.selection.candidates import Candidates, make_candidates
from imbalance_perturb.selection.max_t_test import adjusted_p_values

OBJECTIVES = ("mcr", "scr", "worst", "gmean")


def rare_gains(*gained: int, lost: int = 0) -> Candidates:
    """100 images of a common class and 40 of a rare one; each candidate gains so many of the rare ones."""
    labels = np.repeat([0, 1], [100, 40])
    base = np.where(np.arange(140) < 120, labels, 1 - labels)
    columns = [base]
    for number in gained:
        preds = base.copy()
        preds[120 : 120 + number] = 1
        preds[:lost] = 1
        columns.append(preds)
    return make_candidates(labels, np.stack(columns, axis=1), range(len(columns)), num_classes=2, smallest_class=1)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gained", [1, 3, 5])
def test_one_candidate_is_tested_by_the_sign_test(objective: str, gained: int) -> None:
    """k images of one class gained and none lost: one-sided p = 1 / 2**k, whatever the objective."""
    p_values = adjusted_p_values(rare_gains(gained), objective, np.random.default_rng(0))
    assert p_values.tolist() == [1, pytest.approx(0.5**gained, abs=0.04)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_change_and_losses_are_no_evidence(objective: str) -> None:
    """Candidates that change nothing have p 1, and those that only lose have p near 1."""
    p_values = adjusted_p_values(rare_gains(0, 0), objective, np.random.default_rng(0))
    assert p_values.tolist() == [1, 1, 1]
    assert adjusted_p_values(rare_gains(0, lost=30), objective, np.random.default_rng(0))[1] > 0.9


def test_more_candidates_need_more_evidence_and_copies_do_not() -> None:
    """A copy of a candidate changes no p-value; independent candidates beside it raise its p-value."""
    alone = adjusted_p_values(rare_gains(6), "mcr", np.random.default_rng(0))[1]
    copied = adjusted_p_values(rare_gains(6, 6, 6), "mcr", np.random.default_rng(0))
    assert copied[1:].tolist() == [pytest.approx(alone, abs=0.005)] * 3
    task = rare_gains(*[6] * 9)
    random = np.random.default_rng(0)
    correct = task.correct.copy()
    for k in range(2, 10):
        correct[:, k] = correct[:, 0] ^ (random.random(140) < 0.1)
    noisy = Candidates(task.labels, correct, task.strengths, 2, 1)
    assert adjusted_p_values(noisy, "mcr", np.random.default_rng(0))[1] > 1.3 * alone


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_p_values_are_uniform_at_most_where_nothing_helps(objective: str) -> None:
    """A smallest p-value up to 0.1 comes up in about a tenth of the sets without any gain, not in more."""
    labels = np.repeat([0, 1, 2], [60, 40, 25])
    small = 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        right = random.random(125) < 0.5
        correct = np.stack([right, *(right ^ (random.random(125) < share) for share in (0.05, 0.1, 0.2, 0.4))], axis=1)
        task = Candidates(labels, correct, np.arange(5.0), 3, 2)
        small += adjusted_p_values(task, objective, random).min() <= 0.1
    assert small <= 0.1 * 150 + 3 * np.sqrt(150 * 0.1 * 0.9)

from __future__ import annotations

import pytest

from imbalance_perturb.evaluation.significance import adjust_by_holm


def test_holm_by_hand() -> None:
    """Each p-value times the number of those not smaller, never below a smaller one's, at most 1."""
    assert adjust_by_holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_by_holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert adjust_by_holm([0.02]).tolist() == [0.02]
    assert adjust_by_holm([]).tolist() == []

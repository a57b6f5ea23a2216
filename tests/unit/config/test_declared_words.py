"""Words that settings declare and the code that computes them, in packages that cannot import each other."""

from __future__ import annotations

import pytest
import torch

from imbalance_perturb import ClassCounts
from imbalance_perturb.config.settings import LOSSES, OUTPUTS, TARGETS
from imbalance_perturb.errors import SettingsError, TargetError
from imbalance_perturb.method.perturbation import LOGIT_GRADIENTS
from imbalance_perturb.method.target import target_distribution
from imbalance_perturb.models import load_classifier


def test_every_declared_loss_has_its_gradient_and_no_other() -> None:
    """A loss that can be asked for can be computed, and none is hidden from the settings."""
    assert set(LOSSES) == set(LOGIT_GRADIENTS)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_declared_target_is_a_distribution(kind: str) -> None:
    """A target that can be asked for by name sums to 1 and favours the rarer class."""
    target = target_distribution(ClassCounts(("a", "b"), (100, 10)), kind)
    assert float(target.sum()) == pytest.approx(1)
    assert target.argmax() == torch.tensor(1)


def test_a_target_that_is_not_declared_is_refused_with_all_that_are() -> None:
    """The message names every kind that the settings declare."""
    with pytest.raises(TargetError, match=", ".join(TARGETS)):
        target_distribution(ClassCounts(("a", "b"), (100, 10)), "cube")


def test_outputs_that_are_not_declared_are_refused_with_all_that_are() -> None:
    """The message names every kind of output that the settings declare."""
    with pytest.raises(SettingsError, match=f"expected one of {', '.join(OUTPUTS)}"):
        load_classifier("model.pt", outputs="odds")

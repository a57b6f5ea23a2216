from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb.errors import CountsError, ModelGradientError
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.logit_corrections import adjust_logits
from imbalance_perturb.method.step_strength import full_eps, prior_gradient_norms

COUNTS = ClassCounts(("a", "b", "c"), (900, 90, 10))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def centred(counts: ClassCounts) -> np.ndarray:
    prior = np.log(np.array(counts.counts, dtype=np.float64) / sum(counts.counts))
    return prior - prior.mean()


@pytest.mark.parametrize("unit", [1.0, torch.tensor([2.0, 3.0, 5.0]).view(1, 3, 1, 1)])
def test_norms_are_those_of_the_jacobian(unit: float | Tensor) -> None:
    """||unit * J^T l||_1 of each image, J from torch.func in float64, l by NumPy."""
    model, x = network(), torch.randn(5, 3, 2, 2, dtype=torch.float64)
    found = prior_gradient_norms(model, x, COUNTS, unit)
    for image, norm in zip(x, found.tolist(), strict=True):
        jacobian = torch.func.jacrev(lambda z: model(z[None])[0])(image).detach().numpy()
        scaled = np.broadcast_to(np.asarray(unit), (1, 3, 1, 1))[0] * np.einsum(
            "c,cijk->ijk", centred(COUNTS), jacobian
        )
        assert norm == pytest.approx(np.abs(scaled).sum())


def test_full_eps_takes_the_whole_log_prior_away() -> None:
    """On a linear network every image has the same norm, and the step moves all logits along l by exactly l."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.randn(4, 3, 2, 2)
    eps = full_eps(prior_gradient_norms(model, x, COUNTS), COUNTS)
    moved = PerturbedClassifier(model, COUNTS, eps=eps)(x) - model(x)
    wanted = adjust_logits(model(x), COUNTS, 1.0) - model(x)
    direction = centred(COUNTS)
    strengths = (moved.double().detach().numpy() @ direction) / (wanted.double().detach().numpy() @ direction)
    assert strengths == pytest.approx(np.ones(4), rel=0.006)  # three digits, and T = 1000 in the place of infinity
    assert eps == float(f"{eps:.3g}")


def test_the_median_image_decides() -> None:
    """Half of the images are corrected more, half less; one of many without a gradient is no matter."""
    size = float((centred(COUNTS) ** 2).sum())
    assert full_eps(torch.tensor([0.0, 1.0, 2.0, 100.0, 3.0]), COUNTS) == pytest.approx(size / 2, rel=5e-3)


def test_what_has_no_full_correction_is_refused() -> None:
    """Equal counts have no prior to take away; without a gradient no step does anything."""
    with pytest.raises(CountsError, match="all classes have the same count"):
        full_eps(torch.ones(3), ClassCounts(("a", "b"), (7, 7)))
    with pytest.raises(ModelGradientError, match="the gradient is zero for most images"):
        full_eps(torch.tensor([0.0, 0.0, 1.0]), COUNTS)

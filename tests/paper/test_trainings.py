"""The six trainings against batches computed by hand, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.paper.settings import Schedule
from examples.paper.trainings import Training

COUNTS = torch.tensor([600, 30, 5])
LOGITS = torch.tensor([[0.3, -0.2, 0.1], [-0.5, 0.4, 0.2], [0.0, 0.1, 0.9], [0.8, 0.1, -0.6]])
LABELS = torch.tensor([0, 1, 2, 2])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def of_true_class(logits: np.ndarray) -> np.ndarray:
    return log_softmax(logits.astype(np.float64))[np.arange(4), LABELS.numpy()]


@pytest.mark.parametrize("name", ["ce", "rs", "drs"])
def test_cross_entropy(name: str) -> None:
    """CE, and the two that differ in what they draw, have the mean of -log p."""
    loss = Training(name, COUNTS).loss(LOGITS, LABELS, late=True)
    assert float(loss) == pytest.approx(-of_true_class(LOGITS.numpy()).mean(), rel=1e-6)


def test_re_weighting() -> None:
    """RW weighs each image by N / (C n_c) of its class, so that the weights of all training images are 1 on average."""
    counts = COUNTS.numpy()
    weights = counts.sum() / (3 * counts)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    expected = -(weights[LABELS.numpy()] * of_true_class(LOGITS.numpy())).mean()
    assert float(Training("rw", COUNTS).loss(LOGITS, LABELS, late=False)) == pytest.approx(expected, rel=1e-6)


def test_focal_loss() -> None:
    """FL is -(1 - p)^2 log p of the true class."""
    log_p = of_true_class(LOGITS.numpy())
    expected = (-((1 - np.exp(log_p)) ** 2) * log_p).mean()
    assert float(Training("fl", COUNTS).loss(LOGITS, LABELS, late=False)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("late", [False, True])
def test_ldam(late: bool) -> None:
    """LDAM takes 0.5 (n_min / n_c)^(1/4) off the true class's cosine, scales by 30, and weighs in its second stage."""
    counts = COUNTS.numpy().astype(np.float64)
    cosines = LOGITS.numpy().astype(np.float64) / 30  # the head's logits are scaled
    cosines[np.arange(4), LABELS.numpy()] -= (0.5 * (counts.min() / counts) ** 0.25)[LABELS.numpy()]
    weights = (1 / (1 - 0.9999**counts) if late else np.ones(3))[LABELS.numpy()]
    expected = -(weights * of_true_class(30 * cosines)).sum() / weights.sum()
    assert float(Training("ldam", COUNTS).loss(LOGITS, LABELS, late)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "late", "balanced"), [("rs", False, True), ("drs", True, True), ("drs", False, False)]
)
def test_what_is_drawn(name: str, late: bool, balanced: bool) -> None:
    """RS, and DRS in its second stage, draw all classes alike; else each image comes once."""
    labels = np.repeat(np.arange(3), COUNTS.numpy())
    order = Training(name, COUNTS).order(labels, torch.Generator().manual_seed(0), late)
    assert len(order) == len(labels)
    shares = np.bincount(labels[order.numpy()], minlength=3) / len(labels)
    if balanced:
        assert shares == pytest.approx([1 / 3] * 3, abs=4 * (2 / 9 / len(labels)) ** 0.5)
    else:
        assert sorted(order.tolist()) == list(range(len(labels)))


def test_the_papers_schedule() -> None:
    """Warm-up over one epoch, a tenth after each 50 of 200; the second stage of DRS and LDAM from epoch 160 on."""
    schedule = Schedule()
    done = [0.5, 1.0, 49.99, 50.0, 100.0, 199.0]
    assert [schedule.rate(epochs) for epochs in done] == pytest.approx([0.005, 0.01, 0.01, 0.001, 1e-4, 1e-5])
    assert [schedule.late(epoch) for epoch in (0, 159, 160)] == [False, False, True]


def test_an_unknown_training_is_refused() -> None:
    """A name that is none of the six ends in one line."""
    with pytest.raises(SystemExit, match="'xx' is none of ce, rs"):
        Training("xx", COUNTS)

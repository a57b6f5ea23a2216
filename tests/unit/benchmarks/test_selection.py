"""What `benchmarks/selection.py` says of a choice, on logits of which everything is known."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"

COUNTS = (800, 150, 50)


@pytest.fixture
def selection(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, as running it imports it."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("selection")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network that is calibrated to the training shares, on balanced images: two of each lesion.

    Its steps take 0.5, 1 and 1.5 times the log prior from the logits, so that the second one is the best.
    """
    random = np.random.default_rng(0)
    n, prior = 3000, np.log(np.array(COUNTS) / sum(COUNTS))
    labels = np.arange(n) % 3
    z = (3 * np.eye(3)[labels] + random.normal(0, np.sqrt(3), (n, 3))).astype(np.float32)  # exact log-likelihoods
    base = z + prior.astype(np.float32)
    moved = np.stack([base - strength * prior for strength in (0.5, 1.0, 1.5)]).astype(np.float32)
    np.savez(
        tmp_path / "made-pool.npz", labels=labels, groups=(np.arange(n) // 2).astype(str), base=base, moved=moved,
        eps=[0.5, 1.0, 1.5], paper=moved[0], counts=COUNTS,
    )  # fmt: skip
    return tmp_path


def test_a_lesion_that_chose_does_not_score(selection: ModuleType, folder: Path) -> None:
    """Of a pooled design the images that score share no lesion with the sample, and each class weighs the same."""
    (design,) = selection.designs(folder)
    sample = selection._sample(design.tuned.labels, 500, np.random.default_rng(1))
    weights = design.weigh(sample)
    scoring = weights > 0
    assert not set(design.tuned.groups[scoring]) & set(design.tuned.groups[sample])
    assert sample.sum() == 500
    assert scoring.sum() > 1500
    per_class = [weights[design.tuned.labels == label].sum() for label in range(3)]
    np.testing.assert_allclose(per_class, [100 / 3] * 3)


def test_regret_is_what_the_choices_lack(selection: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing well lacks next to nothing; the worst rule lacks the difference from the best candidate."""
    (design,) = selection.designs(folder)
    monkeypatch.setitem(selection.RULES, "never", lambda found, random: 0)
    found = {
        (method, rule): values.mean(axis=0)
        for method, rule, values in selection.regrets(design, 1000, 10, np.random.default_rng(0))
    }
    assert found["eps", "the package's"][0] < 0.3
    assert found["la", "Brier, no test"][0] < 0.3
    plain, best = (
        100 * balanced_accuracy_score(design.tuned.labels, logits.argmax(1).numpy())
        for logits in (design.tuned.base, design.tuned.moved[1])
    )
    assert best > plain + 3
    np.testing.assert_allclose(found["eps", "never"], [best - plain, 1], atol=0.5)


def test_the_interval_of_a_choice_holds_its_gain(selection: ModuleType, folder: Path) -> None:
    """Where one eps is clearly the best, most 95% intervals hold the gain of choosing, and that of the eps chosen."""
    (design,) = selection.designs(folder)
    values = selection.covered(design, 500, 12, np.random.default_rng(0))
    assert values[:, 0].mean() > 0.8
    assert np.nanmean(values[:, 1]) > 0.8
    assert (values[:, 2] > 0).all()

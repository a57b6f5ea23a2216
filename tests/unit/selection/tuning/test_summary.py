from __future__ import annotations

from dataclasses import replace

import pytest

from imbalance_perturb.evaluation.results import Interval
from imbalance_perturb.selection.cross_validation import Figures
from imbalance_perturb.selection.rule import SelectionRule
from imbalance_perturb.selection.tuning.results import HeldOutFigure, TriedCorrection, Tuning
from imbalance_perturb.selection.tuning.summary import note, summarise


def attempt(eps: float, gain: float = 0.0, p_value: float = 1.0, **more: object) -> TriedCorrection:
    mcr = 0.5 + gain
    found = TriedCorrection(
        eps=eps,
        temperature=1000.0 if eps else None,
        loss="mse" if eps else None,
        figures=Figures(mcr, 0.4, 0.4, 0.45, 0.8),
        brier=0.5 - gain,
        changed=0.1 if eps else 0.0,
        gain=gain,
        gain_error=0.01,
        p_value=p_value,
        allowed=True,
    )
    return replace(found, **more)  # type: ignore[arg-type]


def make(*attempts: TriedCorrection, chosen: int = 0, splits: tuple[int, ...] = (), **more: object) -> Tuning:
    tried = (attempt(0.0), *attempts)
    gain = tried[chosen].gain
    tuning = Tuning(
        tried=tried,
        chosen=chosen,
        splits=splits or tuple(50 * (index == chosen) for index in range(len(tried))),
        held_out={
            "mcr": HeldOutFigure(0.5, 0.5 + gain, gain, Interval(gain - 0.001, gain + 0.001)),
            "scr": HeldOutFigure(0.4, 0.4, 0.0, None),
            "accuracy": HeldOutFigure(0.8, 0.78, -0.02, None),
        },
        rule=SelectionRule(),
        classes=("a", "b"),
        counts=(9, 1),
        support=(200, 50),
        smallest_class="b",
        n=2500,
        failed={},
        unused_labels=0,
        passes={},
        seconds={},
        confidence_level=0.95,
    )
    return replace(tuning, **more)  # type: ignore[arg-type]


GRID = (attempt(0.001, 0.02, 0.03), attempt(0.002, 0.05, 0.001), attempt(0.005, -0.1))


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (make(attempt(0.1, changed=0.0)), "no eps changed a single prediction"),
        (make(attempt(0.1, -0.1), attempt(0.2, 0.0)), "no eps betters the class-balanced Brier score"),
        (
            make(attempt(0.1, -0.1), attempt(0.2, 0.0), rule=SelectionRule(objective="worst")),
            "no eps raises the worst class recall",
        ),
        (
            make(attempt(0.1, 0.03, 0.4)),
            "the largest gain in class-balanced Brier score, +0.0300 at eps 0.1, is no more than chance gives among 1"
            " attempt (adjusted p 0.40)",
        ),
        (
            make(attempt(0.1, 0.03, 0.01, allowed=False)),
            "no eps keeps the MCR (largest gain in class-balanced Brier score: +0.0300 at eps 0.1)",
        ),
        (
            make(attempt(0.1, 0.03, 0.01, allowed=False), rule=SelectionRule(objective="scr", max_accuracy_drop=0.01)),
            "no eps keeps the accuracy within 0.01 (largest gain in SCR: +0.0300 at eps 0.1)",
        ),
        (
            make(attempt(0.1, -0.01), attempt(0.2, 0.03, allowed=False)),
            "no eps that keeps the MCR betters the class-balanced Brier score (largest gain without it: +0.0300 at eps"
            " 0.2)",
        ),
    ],
)
def test_why_no_correction_is_the_answer(tuning: Tuning, reason: str) -> None:
    """The answer 0 comes with its reason."""
    assert next(summarise(tuning)) == f"Chosen: eps 0, no correction: {reason}."


def test_a_choice_says_how_sure_it_is() -> None:
    """In how many splits it was chosen, what else was, and in how many any correction was."""
    tuning = make(*GRID, chosen=2, splits=(5, 2, 43, 0))
    chosen, sure, worth = summarise(tuning)
    assert chosen == (
        "Chosen: eps 0.002, which has the best class-balanced Brier score, more than chance gives (adjusted p 0.001)."
    )
    assert sure == (
        "How sure: chosen in 43 of 50 splits (else eps 0 in 5, eps 0.001 in 2); some eps above 0 in 45 of 50."
    )
    assert "MCR from 0.5000 to 0.5500, accuracy from 0.8000 to 0.7800" in worth
    assert list(note(tuning)) == []


def test_several_losses_and_temperatures_are_told_apart() -> None:
    """An attempt is named with what else varies."""
    tuning = make(*GRID, attempt(0.002, 0.06, 0.001, temperature=10.0, loss="focal"), chosen=4)
    assert next(summarise(tuning)).startswith("Chosen: eps 0.002, T 10, focal, which has")


@pytest.mark.parametrize(
    ("tuning", "text"),
    [
        (make(*GRID[:2], chosen=2), "eps 0.002 is the largest of the grid: a larger one may be better"),
        (make(*GRID, chosen=1), "eps 0.001 is the smallest of the grid: a smaller one may do"),
        (make(*GRID[:2], chosen=1), "the MCR still rises at the largest eps of the grid, 0.002"),
        (make(*GRID, chosen=2, support=(200, 0)), "classes without validation images, left out of all figures: b"),
        (make(*GRID, chosen=2, support=(200, 19)), "too few validation images to decide on b (19): with fewer than 20"),
        (
            make(*GRID, chosen=2, support=(200, 5), rule=SelectionRule(objective="scr")),
            "3 of the 5 images of b are predicted wrong without correction; at least 5 must be gained",
        ),
        (make(*GRID, chosen=2, splits=(30, 0, 20, 0)), "the choice is not steady"),
        (
            make(
                *GRID,
                chosen=2,
                held_out={"mcr": HeldOutFigure(0.5, 0.4, -0.1, None), "accuracy": HeldOutFigure(0.8, 0.8, 0.0, None)},
            ),
            "on images that had no part in the choice the MCR does not rise",
        ),
        (
            make(
                *GRID,
                chosen=2,
                held_out={
                    "mcr": HeldOutFigure(0.5, 0.6, 0.1, Interval(-0.1, 0.3)),
                    "accuracy": HeldOutFigure(0.8, 0.8, 0.0, None),
                },
            ),
            "the gain in MCR may be none (its interval holds 0)",
        ),
        (
            make(*GRID, chosen=2, rule=SelectionRule(max_accuracy_drop=0.01)),
            "the accuracy falls by 0.0200, more than 0.01",
        ),
        (
            make(*GRID, chosen=2, failed={"x.png": "broken"}),
            "1 images could not be used and are left out: x.png: broken",
        ),
        (make(*GRID, chosen=2, unused_labels=3), "3 labels are of images that are not there"),
    ],
)
def test_what_limits_a_choice_is_said(tuning: Tuning, text: str) -> None:
    """Ends of the grid, small classes, unsteady choices, gains that do not hold, and what was left out."""
    assert any(text in found for found in note(tuning))

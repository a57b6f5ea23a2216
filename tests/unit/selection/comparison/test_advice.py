from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb import ClassCounts
from imbalance_perturb.selection.comparison.results import Advice, MethodResult
from imbalance_perturb.selection.comparison.scoring import score_lineup

COUNTS = ClassCounts(("a", "b", "c"), (900, 90, 10))
LABELS = np.repeat([0, 1, 2], [400, 100, 50])

Ints = NDArray[np.int64]


def predictions(*recalls: float, seed: int = 0, others: Ints | None = None) -> Ints:
    """Predictions with about these recalls; a higher recall gets right all that a lower one does."""
    luck = np.random.default_rng(seed).random(len(LABELS))
    right = luck < np.array(recalls)[LABELS]
    return np.where(right, LABELS, (LABELS + 1) % 3)


NONE = predictions(0.95, 0.5, 0.2)


def advise(objective: str = "mcr", **preds: Ints) -> tuple[Advice, dict[str, MethodResult]]:
    kinds = {
        "none": MethodResult("none"),
        "perturb": MethodResult("perturb", parameters={"eps": 0.005}, passes=3),
        "la": MethodResult("la", parameters={"tau": 0.75}),
        "random_sign": MethodResult("random-sign", control=True, parameters={"eps": 0.005}),
        "tau_norm": MethodResult("tau-norm", parameters={"tau": 1.0}),
    }
    preds = {"none": NONE, **preds}
    named = {kinds[key].method: values for key, values in preds.items()}
    methods = [one for key, one in kinds.items() if key in preds]
    entries, advice, _ = score_lineup(methods, LABELS, named, COUNTS, objective=objective)
    return advice, {entry.method: entry for entry in entries}


def test_the_cheaper_of_two_that_are_alike_is_advised() -> None:
    """Where logit adjustment is within noise of the perturbation, the advice is logit adjustment, and says why."""
    advice, entries = advise(perturb=predictions(0.9, 0.7, 0.6), la=predictions(0.89, 0.71, 0.58))
    assert entries["perturb"].differences["mcr"].value > entries["la"].differences["mcr"].value
    assert advice.method == "la"
    assert advice.sentence.startswith("Use la with tau 0.75: it raises MCR to 0.")
    assert "perturb with eps 0.005 comes to" in advice.sentence
    assert "within noise of it" in advice.sentence
    assert advice.sentence.endswith("at 3 passes an image instead of 1.")


def test_a_better_method_is_advised_whatever_it_costs() -> None:
    """Where perturbation is ahead by more than noise, it is advised, with what the cheaper one lacks."""
    advice, _ = advise(perturb=predictions(0.9, 0.8, 0.8), la=predictions(0.9, 0.6, 0.4))
    assert advice.method == "perturb"
    assert "la with tau 0.75 comes to" in advice.sentence
    assert "less by more than noise (-0." in advice.sentence
    assert "at 1 pass an image instead of 3" in advice.sentence


def test_where_nothing_helps_the_model_is_left_alone() -> None:
    """Gains within noise, and losses, end in the advice to use the model as it is."""
    advice, _ = advise(la=predictions(0.95, 0.51, 0.22))
    assert advice.method == "none"
    assert "no method raises MCR by more than noise on these 550 images (largest gain: la" in advice.sentence
    worse, _ = advise(la=predictions(0.9, 0.4, 0.1))
    assert worse.sentence.endswith("and none raises it at all.")
    alone, _ = advise()
    assert alone.sentence == "Use the model as it is: no other method was compared."


def test_a_control_that_does_as_well_is_said() -> None:
    """Where a random step helps as much, the sentence warns that the direction is not what helps."""
    advice, _ = advise(perturb=predictions(0.9, 0.7, 0.6), random_sign=predictions(0.9, 0.69, 0.6))
    assert advice.method == "perturb"
    assert "random-sign does as well within noise" in advice.sentence
    sound, _ = advise(perturb=predictions(0.9, 0.7, 0.6), random_sign=NONE)
    assert "random-sign" not in sound.sentence


def test_a_control_is_never_advised() -> None:
    """Not even where it is the best of all."""
    advice, _ = advise(random_sign=predictions(1.0, 1.0, 1.0))
    assert advice.method == "none"


def test_a_method_that_keeps_more_accuracy_is_named() -> None:
    """Of two that are alike in MCR, one that loses less accuracy is mentioned beside the one advised."""
    advice, _ = advise(la=predictions(0.7, 0.8, 0.66), tau_norm=predictions(0.95, 0.62, 0.5))
    assert advice.method == "la"
    assert "tau-norm with tau 1 comes to 0." in advice.sentence
    assert "within noise of it, with more accuracy (+0." in advice.sentence


def test_the_objective_decides() -> None:
    """With SCR as the objective the recall of the smallest class decides, without images of it MCR does."""
    la, perturb = predictions(0.95, 0.9, 0.3), predictions(0.9, 0.5, 0.6)
    assert advise(la=la, perturb=perturb)[0].method == "la"
    by_scr, _ = advise(objective="scr", la=la, perturb=perturb)
    assert (by_scr.method, by_scr.metric) == ("perturb", "scr")
    assert "raises SCR to" in by_scr.sentence


def test_the_interval_level_is_that_of_the_figures() -> None:
    """The sentence has one line and one full stop at its end, and names the level."""
    advice, _ = advise(la=predictions(0.9, 0.7, 0.6))
    assert "\n" not in advice.sentence
    assert advice.sentence.endswith(".")
    assert "95% interval +0." in advice.sentence

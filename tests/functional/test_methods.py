"""Every method that `compare` lines up is one that `predict` carries out, with the predictions that were scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import imbalance_perturb as ip
from imbalance_perturb.selection.comparison.methods import CONTROLS, METHODS
from imbalance_perturb.selection.comparison.results import applied_debias
from tests.functional.conftest import SMALL, Workplace
from tests.functional.test_compare import DIGITS, QUICK, digits  # noqa: F401 - a fixture

PREDICT = ("predict", "model.pth", "counts.json", "images", *SMALL, "--probs")
NAMES = list("abcd")
COUNTS = np.array([900, 90, 30, 3])


def probabilities(workplace: Workplace, *more: str) -> tuple[np.ndarray, np.ndarray, str]:
    finished = workplace.run(*PREDICT, *more)
    assert finished.code == 0, finished.err
    frame = pandas.read_csv("predictions.csv")
    base, corrected = (frame[[f"{prefix}p_{name}" for name in NAMES]].to_numpy() for prefix in ("base_", ""))
    return base, corrected, finished.err


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize(("tau", "strength"), [((), 1.0), (("--tau", "0.5"), 0.5)])
def test_logit_adjustment(workplace: Workplace, tau: tuple[str, ...], strength: float, precision: str) -> None:
    """softmax(log p - tau log pi) of the plain probabilities, tau 1 where nothing is said; no step is taken."""
    base, corrected, said = probabilities(workplace, "--method", "la", *tau, "--precision", precision)
    assert corrected == pytest.approx(softmax(np.log(base) - strength * np.log(COUNTS)), rel=1e-3)
    assert f"correction: logit adjustment, tau {strength:g}" in said
    assert "gradient" not in json.loads(Path("predictions.run.json").read_text())["seconds"]


def test_tau_normalisation(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """The logits that the last layer gives when its rows are divided by their norms to the tau."""
    weight, bias = (checkpoint[f"fc.{name}"].double().numpy() for name in ("weight", "bias"))
    base, corrected, said = probabilities(workplace, "--method", "tau-norm", "--tau", "2", "--precision", "fp32")
    lengths = np.log(np.linalg.norm(weight, axis=1))
    scale = np.exp(-2 * (lengths - lengths.mean()))
    for row, target in zip(np.log(base), np.log(corrected), strict=True):
        # Probabilities have lost a constant t of the logits: log p + t. It is the one that gives what came out.
        bare = (row - bias) * scale + bias
        gap = (target - target.mean()) - (bare - bare.mean())
        t = gap @ (scale - scale.mean()) / np.sum((scale - scale.mean()) ** 2)
        assert softmax((bare + t * scale)[None])[0] == pytest.approx(np.exp(target), rel=1e-3)
    assert "correction: tau-normalisation, tau 2" in said


def test_offsets_and_none(workplace: Workplace) -> None:
    """Offsets are added to the logits; none leaves them, and no label changes."""
    offsets = np.array([-1.5, 0.25, 0.5, 2])
    base, corrected, said = probabilities(workplace, "--method", "offsets", "--offsets=-1.5,0.25,0.5,2")
    assert corrected == pytest.approx(softmax(np.log(base) + offsets), rel=1e-3)
    assert "correction: offsets of the logits" in said
    plain, same, said = probabilities(workplace, "--method", "none")
    assert np.array_equal(plain, same)
    assert "correction: none" in said
    assert "0 changed" in said


def test_the_step_and_logit_adjustment(workplace: Workplace) -> None:
    """perturb+la is perturb with tau 1; la alone does not look at eps."""
    _, both, _ = probabilities(workplace, "--method", "perturb+la", "--eps", "0.05")
    _, same, said = probabilities(workplace, "--method", "perturb", "--eps", "0.05", "--tau", "1")
    assert np.array_equal(both, same)
    assert "; logit adjustment, tau 1" in said
    _, adjusted, _ = probabilities(workplace, "--method", "la", "--eps", "0.05")
    _, again, _ = probabilities(workplace, "--method", "la")
    assert np.array_equal(adjusted, again)


def test_what_a_method_needs_is_asked_for(workplace: Workplace) -> None:
    """Offsets of no or another number of classes, a method that is none: one line each."""
    assert "method is offsets, but there are none" in workplace.fails(*PREDICT, "--method", "offsets", code=2)
    few = workplace.fails(*PREDICT, "--method", "offsets", "--offsets=1,2", code=2)
    assert "offsets has 2 numbers for 4 classes" in few
    assert "method is 'prior'; expected one of perturb, la," in workplace.fails(*PREDICT, "--method", "prior", code=2)


def test_predictions_are_those_that_were_scored(workplace: Workplace, digits: Path) -> None:  # noqa: F811
    """For each method: `predict` with its parameters has the confusion matrix that `compare` scored on --test."""
    settings = ip.Settings(
        model=ip.ModelSettings(model=str(digits / "model.safetensors"), counts=str(digits / "counts.json")),
        preprocess=ip.PreprocessSettings(preset="none", resize=64, mean=(0.5,), std=(0.5,)),
        run=ip.RunSettings(device="cpu", workers=0, precision="fp32"),
    )
    files = ip.ComparisonFiles(digits / "val", digits / "val.csv", digits / "images", digits / "labels.csv")
    rule = ip.SelectionRule(folds=3, repeats=1)
    options = ip.ComparisonOptions(eps_grid=(0.02, 0.05), tau_grid=(0.5, 1.0), rule=rule)
    comparison = ip.compare_methods(settings, files, options)
    compared = [result for result in comparison.results if result.applicable and result.scores is not None]
    assert {result.method for result in compared} >= {*METHODS} - {*CONTROLS, "perturb+la"}
    for result in compared:
        asked = replace(settings, debias=applied_debias(result, settings.debias))
        ip.predict_folder(asked, digits / "images", "p.csv", ip.PredictOptions(resume=False))
        evaluation = ip.evaluate_files("p.csv", digits / "labels.csv")
        assert result.scores is not None
        assert np.array_equal(evaluation.perturbed.confusion_matrix, result.scores.confusion_matrix), result.method
        assert evaluation.changes.total == result.changed, result.method


def test_the_advice_goes_into_the_recipe(workplace: Workplace, digits: Path) -> None:  # noqa: F811
    """compare, then predict without an option more; --no-recipe leaves the recipe, and the line to type is printed."""
    model, counts = str(digits / "model.safetensors"), str(digits / "counts.json")
    assert workplace.run("init", model, counts, *DIGITS, "--eps", "0.02").code == 0
    recipe = Path("imbperturb.toml")
    before = recipe.read_text()
    asked = (
        "compare", "--val", str(digits / "val"), "--labels", str(digits / "val.csv"), *QUICK,
        "--test", str(digits / "images"), "--test-labels", str(digits / "labels.csv"), "--methods", "none,la",
    )  # fmt: skip
    left = workplace.run(*asked, "--no-recipe")
    assert left.code == 0, left.err
    assert recipe.read_text() == before
    data = json.loads(Path("compare.json").read_text())
    assert data["advice"]["method"] == "la"
    tau = data["methods"]["la"]["parameters"]["tau"]
    assert f"to use it: imbperturb predict ... --method la --tau {tau:g}" in left.err
    done = workplace.run(*asked)
    assert done.code == 0, done.err
    assert f"[debias] now has method = la, tau = {tau}\nto use it: imbperturb predict IMAGES" in done.err
    assert workplace.run("predict", str(digits / "images"), "-o", "p.csv").code == 0
    assert workplace.run("evaluate", "p.csv", "--labels", str(digits / "labels.csv"), "--json").code == 0
    found = workplace.run("evaluate", "p.csv", "--labels", str(digits / "labels.csv"), "--json")
    assert json.loads(found.out)["perturbed"]["mcr"] == data["methods"]["la"]["mcr"]
    # What is tuned next is a step, without what was advised before.
    tuned = workplace.run(
        "tune-eps", "--val", str(digits / "val"), "--labels", str(digits / "val.csv"), "--eps-grid", "0.02,0.05",
        "--repeats", "1",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert "method = perturb" in tuned.err
    assert "tau = 0.0" in tuned.err


def test_the_effective_prior_goes_into_the_recipe_as_offsets(workplace: Workplace, digits: Path) -> None:  # noqa: F811
    """`predict` has no labelled images to compute it from: it gets the offsets, and makes the predictions scored."""
    model, counts = str(digits / "model.safetensors"), str(digits / "counts.json")
    assert workplace.run("init", model, counts, *DIGITS).code == 0
    done = workplace.run(
        "compare", "--val", str(digits / "val"), "--labels", str(digits / "val.csv"), *QUICK,
        "--test", str(digits / "images"), "--test-labels", str(digits / "labels.csv"), "--methods", "p2p",
    )  # fmt: skip
    assert done.code == 0, done.err
    data = json.loads(Path("compare.json").read_text())
    found = data["methods"]["p2p"]
    assert data["advice"]["method"] == "p2p"
    assert f"Use p2p with tau {found['parameters']['tau']:g}: it raises MCR" in data["advice"]["sentence"]
    offsets = found["parameters"]["offsets"]
    assert f"[debias] now has method = offsets, offsets = {','.join(map(str, offsets))}\n" in done.err
    assert workplace.run("predict", str(digits / "images"), "-o", "p.csv").code == 0
    scored = json.loads(workplace.run("evaluate", "p.csv", "--labels", str(digits / "labels.csv"), "--json").out)
    assert scored["perturbed"]["confusion_matrix"] == found["confusion_matrix"]

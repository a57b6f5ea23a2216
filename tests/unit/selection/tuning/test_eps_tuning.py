from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from imbalance_perturb.config.settings import DebiasSettings, ModelSettings, PreprocessSettings, RunSettings, Settings
from imbalance_perturb.data.labels import LabelledImages, find_labelled_images
from imbalance_perturb.errors import ImageFolderError, LabelsError, SettingsError
from imbalance_perturb.inference.engine import iter_predictions
from imbalance_perturb.inference.pipeline import Pipeline, load_pipeline, make_predictor
from imbalance_perturb.selection.rule import SelectionRule
from imbalance_perturb.selection.tuning.eps_tuning import TuningOptions, tune
from tests.biased import RIGHT_EPS, write_biased

#: As many steps as are tried by default.
GRID = tuple(0.001 * k for k in range(1, 14))

OPTIONS = TuningOptions(eps_grid=(0.01, RIGHT_EPS, 0.2), rule=SelectionRule(repeats=2))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_biased(tmp_path)
    return tmp_path


def prepared(place: Path, **debias: object) -> tuple[Pipeline, LabelledImages]:
    settings = Settings(
        model=ModelSettings(model=str(place / "model.pt"), counts=str(place / "counts.json")),
        preprocess=PreprocessSettings(preset="none"),
        debias=DebiasSettings(**debias),  # type: ignore[arg-type]
        run=RunSettings(device="cpu", batch_size=16, workers=0),
    )
    labelled = find_labelled_images(place / "val", None, ("common", "rare"))
    return load_pipeline(settings, labelled.images), labelled


def test_the_step_that_undoes_the_bias_is_found(place: Path) -> None:
    """Half the rare images are wrong without correction, none with the right eps, most common ones with a large one."""
    tuning = tune(*prepared(place), options=OPTIONS)
    assert tuning.choice.eps == RIGHT_EPS
    assert (tuning.choice.loss, tuning.choice.temperature) == ("cross-entropy", 1000)
    assert tuning.splits == (0, 0, 10, 0)
    mcrs = [attempt.figures.mcr for attempt in tuning.tried]
    assert mcrs == [0.75, pytest.approx(0.75, abs=0.05), 1, pytest.approx(0.75, abs=0.1)]
    worth = tuning.held_out["mcr"]
    assert (worth.base, worth.tuned, worth.difference) == (pytest.approx(0.75), 1, pytest.approx(0.25))
    assert worth.interval is not None
    assert 0.1 < worth.interval.low < 0.25 < worth.interval.high < 0.4
    assert tuning.summary[0].startswith("Chosen: eps 0.05, which has the best class-balanced Brier score")
    assert "chosen in 10 of 10 splits; some eps above 0 in 10 of 10" in tuning.summary[1]
    assert [text for text in tuning.notes if "chosen on 60 images" not in text] == []
    assert tuning.support == (30, 30)


def test_a_sweep_costs_two_passes_and_one_for_each_eps(place: Path) -> None:
    """K values of eps: one forward, one backward and K final passes for each of the 4 batches; 0 costs none."""
    pipeline, labelled = prepared(place)
    grid = tune(pipeline, labelled, options=TuningOptions(eps_grid=(0.0, *GRID), rule=SelectionRule(repeats=1)))
    assert grid.passes == {"forward": 4, "backward": 4, "final": 4 * len(GRID)}
    several = TuningOptions(
        eps_grid=(0.01, 0.02, 0.01), temperatures=(1, 1000), losses=("mse", "focal"), rule=SelectionRule(repeats=1)
    )
    tuning = tune(pipeline, labelled, options=several)
    assert tuning.passes == {"forward": 4, "backward": 16, "final": 32}
    assert len(tuning.tried) == 1 + 8
    assert tuning.loss_specs == [("mse", 1), ("mse", 1000), ("focal", 1), ("focal", 1000)]


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_figures_are_those_of_predictions_with_that_eps(place: Path, tau: float) -> None:
    """Each line of the sweep is scikit-learn's figure of what `predict` answers with that eps, tau included."""
    pipeline, labelled = prepared(place, tau=tau)
    tuning = tune(pipeline, labelled, options=OPTIONS)
    for attempt in tuning.tried:
        single, _ = prepared(place, tau=tau, eps=attempt.eps)
        batches = iter_predictions(make_predictor(single), labelled.images, single.preprocessing, single.execution)
        preds = [single.counts.names.index(str(row.pred)) for rows in batches for row in rows]
        labels = labelled.select_labels(labelled.images.names)
        assert attempt.figures.mcr == pytest.approx(balanced_accuracy_score(labels, preds))
        assert attempt.figures.accuracy == pytest.approx(accuracy_score(labels, preds))


def test_no_correction_is_a_legal_answer(place: Path) -> None:
    """A grid in which no eps changes an answer gives eps 0, and says why."""
    tuning = tune(*prepared(place), options=TuningOptions(eps_grid=(1e-6, 1e-5), rule=SelectionRule(repeats=1)))
    assert tuning.choice.eps == 0
    assert tuning.choice.loss is None
    assert tuning.summary[0] == "Chosen: eps 0, no correction: no eps changed a single prediction."
    assert tuning.summary[1:] == ("How sure: chosen in 5 of 5 splits.",)


def test_what_was_found_is_plain_json(place: Path) -> None:
    """The result goes to JSON and back without loss: choice, sweep, held-out figures, spread, rule, hashes."""
    tuning = tune(*prepared(place), options=OPTIONS)
    data = json.loads(json.dumps(tuning.to_dict(), allow_nan=False))
    assert data["choice"] == {
        "eps": 0.05,
        "temperature": 1000,
        "loss": "cross-entropy",
        "chosen_in_splits": 10,
        "splits": 10,
    }
    assert [row["eps"] for row in data["sweep"]] == [0, 0.01, 0.05, 0.2]
    assert {"mcr", "scr", "worst_class_recall", "gmean", "accuracy", "changed", "gain", "p_value"} <= set(
        data["sweep"][2]
    )
    assert data["held_out"]["mcr"]["tuned"] == 1
    assert len(data["held_out"]["mcr"]["ci95"]) == 2
    assert data["spread"] == [{"eps": 0.05, "temperature": 1000, "loss": "cross-entropy", "splits": 10}]
    assert data["rule"]["objective"] == "mcr"
    assert len(data["model"]["sha256"]) == len(data["counts"]["sha256"]) == 64
    assert "eps" not in data["settings"]["debias"]


def test_broken_images_are_left_out_and_named(place: Path) -> None:
    """An image that cannot be read is in no figure; with none left there is an error."""
    (place / "val" / "rare" / "00.png").write_text("broken")
    tuning = tune(*prepared(place), options=OPTIONS)
    assert tuning.support == (30, 29)
    assert tuning.failed == {"rare/00.png": "not an image in a known format"}
    assert any("1 images could not be used and are left out: rare/00.png" in note for note in tuning.notes)
    pipeline, labelled = prepared(place)
    for path in (place / "val").rglob("*.png"):
        path.write_text("broken")
    with pytest.raises(ImageFolderError, match=r"none of the images could be used \(first: common/00.png: not an"):
        tune(pipeline, labelled, options=OPTIONS)


def test_what_cannot_decide_is_refused_before_the_model_runs(place: Path) -> None:
    """One class only, too few images, no image of the smallest class for SCR, several steps."""
    pipeline, labelled = prepared(place)
    images = labelled.images
    one_class = LabelledImages(images, dict.fromkeys(images.names, 0), 0)
    with pytest.raises(LabelsError, match="all labelled images are of one class"):
        tune(pipeline, one_class, options=OPTIONS)
    with pytest.raises(LabelsError, match="60 labelled images cannot be split into 61 folds"):
        tune(pipeline, labelled, options=TuningOptions(rule=SelectionRule(folds=61)))
    with pytest.raises(SettingsError, match="steps is 2; all eps are tried with one gradient"):
        tune(*prepared(place, steps=2), options=OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps_grid": (0.0,)}, "eps-grid has no value above 0"),
        ({"eps_grid": (-0.1,)}, "eps-grid has -0.1"),
        ({"eps_grid": (float("nan"),)}, "eps-grid has nan"),
        ({"temperatures": (0.0,)}, "temperatures has 0; expected numbers above 0"),
        ({"losses": ("kl",)}, "losses has 'kl'; expected some of cross-entropy, mse, focal"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, tuple[object, ...]], message: str) -> None:
    """Grids are checked when the options are made."""
    with pytest.raises(SettingsError, match=message):
        TuningOptions(**options)  # type: ignore[arg-type]


def test_classes_without_and_with_few_images_are_named(place: Path) -> None:
    """A class of the counts that has no validation image is left out and named; small ones are named too."""
    (place / "counts.json").write_text('{"common": 900, "rare": 30, "none": 10}')
    model = torch.jit.load(place / "model.pt")

    class Padded(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.inner(x)
            return torch.cat([z, torch.full_like(z[:, :1], -100.0)], dim=1)

    torch.jit.trace(Padded(model), torch.rand(2, 3, 4, 4)).save(str(place / "model.pt"))
    for index in range(15, 30):
        (place / "val" / "rare" / f"{index:02d}.png").unlink()
    settings = prepared(place)[0].settings
    labelled = find_labelled_images(place / "val", None, ("common", "rare", "none"))
    tuning = tune(load_pipeline(settings, labelled.images), labelled, options=OPTIONS)
    assert tuning.tried[0].figures.scr is None
    assert tuning.held_out["scr"].difference is None
    assert "classes without validation images, left out of all figures: none" in tuning.notes
    assert any("too few validation images to decide on rare (15)" in note for note in tuning.notes)


def test_an_image_of_another_size_has_its_own_logits(place: Path) -> None:
    """Images of several sizes in a batch keep their labels: the order of the sweep is that of the names."""
    rng = np.random.default_rng(0)
    for path in list((place / "val").rglob("*.png"))[::3]:
        with Image.open(path) as image:
            colour = image.getpixel((0, 0))
        Image.new("RGB", (int(rng.integers(3, 7)), 5), colour).save(path)
    assert tune(*prepared(place), options=OPTIONS).splits == (0, 0, 10, 0)


def test_of_equal_temperatures_the_own_one_is_chosen(place: Path) -> None:
    """Where T makes no difference, the settings' own stays, wherever it stands in the list."""
    options = TuningOptions(eps_grid=(RIGHT_EPS,), temperatures=(1, 1000, 10), rule=SelectionRule(repeats=1))
    tuning = tune(*prepared(place), options=options)
    assert (tuning.choice.eps, tuning.choice.temperature) == (RIGHT_EPS, 1000)


def test_groups_that_the_images_do_not_have(place: Path) -> None:
    """Images that were found without the column that the options name are refused, not taken as independent."""
    with pytest.raises(SettingsError, match="group is 'lesion', but the images were found with group None"):
        tune(*prepared(place), options=TuningOptions(eps_grid=(0.01,), group="lesion"))

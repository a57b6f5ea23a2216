"""Recipes through the commands: what `init` is told is what `predict` does, wherever the recipe lies."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from imbalance_perturb.config.declarations import declarations
from imbalance_perturb.config.settings import TABLES
from tests.functional.conftest import SMALL, Workplace

#: A value for each setting that is not its default; `init` is told all of them at once.
OTHER = {
    "arch": ("shufflenet_v2_x0_5", "shufflenet_v2_x0_5"),
    "outputs": ("logits", "logits"),
    "preset": ("none", "none"),
    "resize": ("36,34", [36, 34]),
    "crop": ("32,30", [32, 30]),
    "crop_rounding": ("down", "down"),
    "mean": ("0.5,0.25,0.125", [0.5, 0.25, 0.125]),
    "std": ("0.25,0.5,0.75", [0.25, 0.5, 0.75]),
    "interpolation": ("bicubic", "bicubic"),
    "color": ("rgb", "rgb"),
    "max_value": ("4095", 4095),
    "image_timeout": ("45", 45.0),
    "exif_orientation": (None, True),
    "jpeg_draft": (None, True),
    "method": ("perturb+la", "perturb+la"),
    "eps": ("0.05", 0.05),
    "temperature": ("100", 100.0),
    "loss": ("mse", "mse"),
    "target": ("sqrt", "sqrt"),
    "prior": ('{"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}', {"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}),
    "eps_space": ("pixel", "pixel"),
    "clip": (None, True),
    "steps": ("2", 2),
    "tau": ("0.5", 0.5),
    "device": ("cpu", "cpu"),
    "batch_size": ("4", 4),
    "workers": ("0", 0),
    "precision": ("fp32", "fp32"),
    "close_calls_only": (None, True),
    "deterministic": (None, True),
}

#: Settings that go with no other value of those above, take a compiler, a replaced head, two sets of weights or a
#: cluster, or are granted by the command line alone.
APART = {
    "model", "counts", "target_m", "perturb_at", "compile", "factory", "trust_model_file", "head_activation", "weights",
    "offsets", "engine", "ray_address", "ray_workers", "ray_worker_cpus", "ray_worker_gpus",
}  # fmt: skip


def recorded() -> dict[str, Any]:
    run: dict[str, Any] = json.loads(Path("predictions.run.json").read_text())
    return run


def test_what_init_is_told_is_what_predict_does(workplace: Workplace) -> None:
    """Every setting given to `init` stands in the recipe and in the run file of the `predict` that reads it."""
    assert {name for kind in TABLES.values() for name in declarations(kind)} == OTHER.keys() | APART
    options = []
    for name, (text, _) in OTHER.items():
        options += [f"--{name.replace('_', '-')}", *([] if text is None else [text])]
    made = workplace.run("init", "model.pth", "counts.json", *options)
    assert made.code == 0, made.err
    recipe = tomllib.loads(Path("imbperturb.toml").read_text())
    assert {key: value for table in recipe.values() for key, value in table.items() if key not in APART} == {
        name: value for name, (_, value) in OTHER.items()
    }
    assert workplace.run("predict", "images").code == 0
    found = {key: value for table in recorded()["settings"].values() for key, value in table.items()}
    assert {name: found[name] for name in OTHER} == {name: value for name, (_, value) in OTHER.items()}

    from_recipe = Path("predictions.csv").read_bytes()
    Path("imbperturb.toml").unlink()
    assert workplace.run("predict", "model.pth", "counts.json", "images", *options).code == 0
    assert Path("predictions.csv").read_bytes() == from_recipe


def test_init_keeps_orientation_white_and_draft(workplace: Workplace) -> None:
    """--exif-orientation, --max-value and --jpeg-draft stand in the recipe, and `predict` reads images by them."""
    options = ("--exif-orientation", "--max-value", "4095", "--jpeg-draft")
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, *options).code == 0
    recipe = tomllib.loads(Path("imbperturb.toml").read_text())["preprocess"]
    expected = {"exif_orientation": True, "max_value": 4095, "jpeg_draft": True}
    assert {name: recipe.get(name) for name in expected} == expected
    finished = workplace.run("predict", "images")
    assert finished.code == 0
    assert {name: recorded()["preprocessing"][name] for name in expected} == expected
    assert "upright by EXIF" in finished.err
    assert "above 8 bits: 4095 is 1" in finished.err


def test_a_recipe_means_the_same_files_from_everywhere(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, counts and the target's file are found from the recipe's own folder, read from wherever."""
    Path("targets").mkdir()
    Path("targets/p.json").write_text("[0.1, 0.2, 0.3, 0.4]")
    Path("sub").mkdir()
    given = ("--target", "targets/p.json", *SMALL)
    assert workplace.run("init", "model.pth", "counts.json", *given, "-o", "sub/imbperturb.toml").code == 0
    recipe = tomllib.loads(Path("sub/imbperturb.toml").read_text())
    assert [recipe["model"]["model"], recipe["model"]["counts"]] == ["../model.pth", "../counts.json"]
    assert recipe["debias"]["target"] == "../targets/p.json"
    assert workplace.run("predict", "model.pth", "counts.json", "images", *given).code == 0
    expected = Path("predictions.csv").read_bytes()

    assert workplace.run("predict", "images", "--recipe", "sub/imbperturb.toml").code == 0
    assert Path("predictions.csv").read_bytes() == expected
    monkeypatch.chdir("sub")
    assert workplace.run("predict", "../images").code == 0
    assert Path("predictions.csv").read_bytes() == expected


def test_a_recipe_behind_a_link_finds_its_files(workplace: Workplace) -> None:
    """From a folder that is a link '..' leads elsewhere; the recipe names its files by the folder it lies in."""
    Path("far/away").mkdir(parents=True)
    Path("link").symlink_to("far/away")
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "-o", "link/imbperturb.toml").code == 0
    for recipe in ("link/imbperturb.toml", "far/away/imbperturb.toml"):
        assert workplace.run("inspect", "--recipe", recipe).code == 0
    # A model that is a link itself keeps its own name.
    shutil.move("model.pth", "far/real.pth")
    Path("model.pth").symlink_to("far/real.pth")
    assert workplace.run("init", "model.pth", "counts.json", *SMALL).code == 0
    assert tomllib.loads(Path("imbperturb.toml").read_text())["model"]["model"] == "model.pth"


def test_a_recipe_out_of_range_is_wrong_usage_and_named(workplace: Workplace) -> None:
    """A value that a recipe must not have is told with the recipe's name, even if the command line has another."""
    Path("imbperturb.toml").write_text("[debias]\neps = -1\n")
    for more in ((), ("--eps", "0.1")):
        message = workplace.fails("predict", "model.pth", "counts.json", "images", *more, code=2)
        assert message.endswith(
            "imbperturb.toml: [debias] eps is -1; expected a number, at least 0, auto, or auto*X with X above 0"
        )

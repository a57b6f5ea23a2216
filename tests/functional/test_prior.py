"""``--prior``: a correction for the class shares of where the model is used."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from tests.functional.conftest import SMALL, Workplace
from tests.functional.test_auto_eps import full_correction
from tests.functional.test_methods import COUNTS, NAMES, probabilities, softmax

PREDICT = ("predict", "model.pth", "counts.json", "images", *SMALL)
SHARES = np.array([0.5, 0.125, 0.25, 0.125])
GIVEN = json.dumps(dict(zip(NAMES, SHARES.tolist(), strict=True)))


def run_of(path: str = "predictions.run.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_logit_adjustment_goes_to_the_prior(workplace: Workplace) -> None:
    """softmax(log p - tau (log π - log w)) of the plain probabilities; run file and stderr have the shares."""
    base, corrected, said = probabilities(workplace, "--method", "la", "--tau", "0.5", "--prior", GIVEN)
    assert corrected == pytest.approx(softmax(np.log(base) - 0.5 * np.log(COUNTS / SHARES)), rel=1e-3)
    assert "correction: logit adjustment, tau 0.5, for class shares a 0.5, b 0.125, c 0.25, d 0.125" in said
    assert run_of()["settings"]["debias"]["prior"] == json.loads(GIVEN)
    assert workplace.run("verify", "predictions.run.json").code == 0


def test_balanced_and_equal_shares_change_no_byte(workplace: Workplace) -> None:
    """--prior balanced, and a quarter for each class, are what is done without --prior."""
    for options in ((), ("--method", "la"), ("--eps", "auto", "--method", "perturb+la")):
        files = []
        for prior in ((), ("--prior", "balanced"), ("--prior", '{"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}')):
            assert workplace.run(*PREDICT, *options, *prior, "--no-resume").code == 0
            files.append(Path("predictions.csv").read_bytes())
        assert files[0] == files[1] == files[2]


def test_the_step_goes_to_the_prior(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """p* is that of the counts over C times the shares, and eps auto takes away log(π / w) of the median image."""
    done = workplace.run(*PREDICT, "--eps", "auto", "--prior", GIVEN)
    assert done.code == 0, done.err
    numbers = COUNTS / (4 * SHARES)
    expected = np.log(numbers.max() / numbers)
    assert [one["target"] for one in run_of()["classes"]] == pytest.approx(expected / expected.sum())
    assert run_of()["settings"]["debias"]["eps"] == pytest.approx(full_correction(checkpoint, numbers), rel=6e-3)
    assert workplace.run("verify", "predictions.run.json").code == 0


def test_the_shares_of_a_folder_are_a_prior(workplace: Workplace) -> None:
    """The file of `shares` serves; the run holds its numbers, so that it is verified and gone on with without it."""
    assert workplace.run("shares", *PREDICT[1:]).code == 0
    shares = run_of("shares.json")["shares"]
    given = (*PREDICT, "--method", "la", "--prior", "shares.json")
    assert workplace.run(*given, "--probs").code == 0
    assert run_of()["settings"]["debias"]["prior"] == pytest.approx(shares)
    base, corrected = (
        pandas.read_csv("predictions.csv")[[f"{prefix}p_{name}" for name in NAMES]].to_numpy()
        for prefix in ("base_", "")
    )
    assert corrected == pytest.approx(softmax(np.log(base) + np.log(list(shares.values())) - np.log(COUNTS)), rel=2e-3)
    again = workplace.run(*given, "--probs", "--resume")
    assert "resumed: 9 of 9" in again.err
    Path("shares.json").unlink()
    assert workplace.run("verify", "predictions.run.json").code == 0


def test_parts_of_other_priors_are_not_merged_nor_gone_on_with(workplace: Workplace) -> None:
    """`merge` and --resume refuse rows that were made for other shares, naming the prior."""
    assert workplace.run(*PREDICT, "--method", "la", "--shard", "1/2", "-o", "1.csv", "--prior", GIVEN).code == 0
    assert workplace.run(*PREDICT, "--method", "la", "--shard", "2/2", "-o", "2.csv").code == 0
    assert "prior" in workplace.fails("merge", "1.csv", "2.csv", "-o", "merged.csv")
    resumed = workplace.fails(*PREDICT, "--method", "la", "--shard", "1/2", "-o", "1.csv", "--resume")
    assert "prior" in resumed


def test_a_recipe_has_the_prior_as_a_file_or_a_table(workplace: Workplace) -> None:
    """A file is named from the recipe's folder; a table of its own or an inline one says the same."""
    Path("sub").mkdir()
    Path("sub/site.json").write_text(GIVEN)
    made = ("init", "model.pth", "counts.json", *SMALL, "--method", "la")
    assert workplace.run(*made, "--prior", "sub/site.json", "-o", "sub/imbperturb.toml").code == 0
    recipe = Path("sub/imbperturb.toml")
    assert tomllib.loads(recipe.read_text())["debias"]["prior"] == "site.json"
    assert workplace.run("predict", "images", "--recipe", str(recipe)).code == 0
    expected = Path("predictions.csv").read_bytes()
    assert workplace.run(*made, "--prior", GIVEN).code == 0
    assert tomllib.loads(Path("imbperturb.toml").read_text())["debias"]["prior"] == json.loads(GIVEN)
    assert workplace.run("predict", "images", "--no-resume").code == 0
    assert Path("predictions.csv").read_bytes() == expected
    own = 'model.model = "model.pth"\nmodel.counts = "counts.json"\n[debias]\nmethod = "la"\n[debias.prior]\n'
    own += "".join(f"{name} = {share}\n" for name, share in json.loads(GIVEN).items())
    Path("imbperturb.toml").write_text(own)
    assert workplace.run("predict", "images", *SMALL, "--no-resume").code == 0
    assert Path("predictions.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (("--prior", '{"a": 0.5, "b": 0.5}'), "missing c, d; unknown none", 2),
        (
            ("--prior", '{"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}'),
            "prior: the shares sum to 2; shares of all images sum to 1",
            2,
        ),
        (("--prior", '{"a": 0, "b": 0.5, "c": 0.25, "d": 0.25}'), "expected balanced, a .json file, or a share", 2),
        (("--prior", '{"a": 0.5'), "is not JSON (line 1", 2),
        (("--prior", "none.json"), "none.json: cannot be read", 2),
        (("--prior", GIVEN, "--method", "tau-norm"), "takes no account of a prior", 2),
        (("--prior", GIVEN, "--target", "target.json"), "target is target.json, which says it all", 2),
        (
            ("--prior", '{"a": 900, "b": 90, "c": 30, "d": 3}'),
            "prior: the shares sum to 1023; shares of all images sum to 1",
            2,
        ),
    ],
)
def test_what_is_no_prior_is_refused_in_one_line(
    workplace: Workplace, options: tuple[str, ...], message: str, code: int
) -> None:
    """Wrong classes, sums and shares, files that are not there, and what a prior does not go with."""
    Path("target.json").write_text("[0.1, 0.2, 0.3, 0.4]")
    assert message in workplace.fails(*PREDICT, *options, code=code)


def test_a_choice_is_for_balanced_classes(workplace: Workplace) -> None:
    """`tune-eps` and `compare` refuse a prior, also that of the recipe, and say what to give."""
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "--prior", GIVEN).code == 0
    names = [path.relative_to("images").as_posix() for path in sorted(Path("images").rglob("*.png"))]
    Path("labels.csv").write_text("image,label\n" + "".join(f"{name},a\n" for name in names))
    for command in ("tune-eps", "compare"):
        refused = workplace.fails(command, "--val", "images", "--labels", "labels.csv", code=2)
        assert "corrections are chosen here for balanced classes" in refused
        assert "use --prior balanced, and give the prior to predict" in refused

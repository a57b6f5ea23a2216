"""``imbperturb shares``: the class shares of unlabelled images, with intervals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import imbalance_perturb as ip
from tests.functional.conftest import SMALL, Workplace
from tests.unit.method.test_class_shares import em_as_written

NAMES = list("abcd")
COUNTS = np.array([900, 90, 30, 3])

SHARES = ("shares", "model.pth", "counts.json", "images", *SMALL)


def written(path: str = "shares.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_shares_are_em_on_the_plain_probabilities(workplace: Workplace) -> None:
    """The shares are those of EM line by line on the plain probabilities; all are in the table."""
    assert workplace.run("predict", *SHARES[1:], "--probs", "--precision", "fp32").code == 0
    posteriors = pandas.read_csv("predictions.csv")[[f"base_p_{name}" for name in NAMES]].to_numpy()
    done = workplace.run(*SHARES)
    assert done.code == 0, done.err
    data = written()
    assert list(data["shares"]) == list(data["ci95"]) == NAMES
    expected = em_as_written(posteriors, COUNTS / COUNTS.sum(), 5000)
    assert list(data["shares"].values()) == pytest.approx(expected, abs=1e-4)
    for name, (low, high) in data["ci95"].items():
        assert 0 <= low <= data["shares"][name] <= high <= 1
    assert (data["images"], data["failed"], data["resamples"]) == (9, 0, 1000)
    assert list(data["training"].values()) == pytest.approx(COUNTS / COUNTS.sum())
    assert data["model"]["sha256"] == hashlib.sha256(Path("model.pth").read_bytes()).hexdigest()
    assert data["counts"]["sha256"] == hashlib.sha256(Path("counts.json").read_bytes()).hexdigest()
    for name, share in data["shares"].items():
        low, high = data["ci95"][name]
        assert f"{share:.4f} {low:.4f} to {high:.4f}" in " ".join(done.out.split())
    assert "class shares alone differ from training" in " ".join(done.out.split())
    assert "9 images, 0 failed -> shares.json" in done.err
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_function_and_json_give_what_is_written(workplace: Workplace) -> None:
    """`estimate_shares` and --json have the file's values; another seed moves the intervals alone."""
    done = workplace.run(*SHARES, "--json", "--quiet", "--resamples", "200", "-o", "other.json")
    assert json.loads(done.out) == written("other.json")
    assert done.err == ""
    settings = ip.Settings(
        model=ip.ModelSettings(model="model.pth", counts="counts.json"),
        preprocess=ip.PreprocessSettings(resize=32, crop=32),
        debias=ip.DebiasSettings(eps="auto", method="perturb+la"),
    )
    numbers: list[int] = []
    found = ip.estimate_shares(settings, "images", ip.SharesOptions(resamples=200), numbers.append)
    assert found.to_dict()["shares"] == written("other.json")["shares"]
    assert found.to_dict()["ci95"] == written("other.json")["ci95"]
    assert sum(numbers) == 9
    other = ip.estimate_shares(settings, "images", ip.SharesOptions(resamples=200, seed=1))
    assert other.shares == found.shares
    assert other.intervals != found.intervals


def test_images_that_fail_are_named_and_counted(workplace: Workplace) -> None:
    """Exit code 3, the reason on stderr and in the file, and the shares of the others."""
    assert workplace.run(*SHARES).code == 0
    whole = written()["shares"]
    Path("images/broken.png").write_bytes(b"no picture")
    done = workplace.run(*SHARES)
    assert done.code == 3
    data = written()
    assert (data["images"], data["failed"], list(data["errors"])) == (9, 1, ["broken.png"])
    assert f"  failed: broken.png: {data['errors']['broken.png']}" in done.err
    assert data["shares"] == pytest.approx(whole, abs=1e-6)
    Path("images/nothing.png").write_bytes(b"")
    refused = workplace.fails("shares", "model.pth", "counts.json", "images/broken.png", "images/nothing.png", *SMALL)
    assert "none of the images can be used (first: broken.png: " in refused


def test_what_cannot_be_is_refused_in_one_line(workplace: Workplace) -> None:
    """No images, a file that is no JSON, too few resamples: before a model is loaded."""
    assert "imbperturb shares MODEL COUNTS IMAGES" in workplace.fails("shares", "model.pth", "counts.json", code=2)
    assert "shares.csv: the suffix names no format" in workplace.fails(*SHARES, "-o", "shares.csv")
    assert "resamples is 10; expected" in workplace.fails(*SHARES, "--resamples", "10", code=2)


def test_equal_counts_and_a_recipe(workplace: Workplace) -> None:
    """Balanced training is nothing to correct but a prior to start from; the recipe names MODEL and COUNTS."""
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "--method", "la").code == 0
    assert workplace.run("shares", "images").code == 0
    unequal = written()
    assert list(unequal["training"].values()) != [0.25] * 4
    Path("counts.json").write_text(json.dumps(dict.fromkeys(NAMES, 30)))
    done = workplace.run("shares", "images")
    assert done.code == 0, done.err
    assert list(written()["training"].values()) == [0.25] * 4
    assert written()["shares"] != unequal["shares"]

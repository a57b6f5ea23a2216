"""``--eps auto``: one eps for the run, found without labels, printed and recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model
from torchvision.transforms import v2

from imbalance_perturb import DebiasSettings, ModelSettings, PreprocessSettings, Settings, predict_folder
from tests.functional.conftest import SMALL, Workplace

PREDICT = ("predict", "model.pth", "counts.json", "images", *SMALL)


def predicted(workplace: Workplace, eps: str, out: str, *more: str) -> dict[str, Any]:
    finished = workplace.run(*PREDICT, "--eps", eps, "-o", out, *more)
    assert finished.code == 0, finished.err
    run: dict[str, Any] = json.loads(Path(out).with_suffix(".run.json").read_text())
    if eps.startswith("auto"):
        full = run["strength"]["full_eps"]
        assert f"correction: eps {run['settings']['debias']['eps']:g} ({eps}: {full:g} takes" in finished.err
    return run


def full_correction(checkpoint: dict[str, torch.Tensor], counts: Sequence[float] = (900, 90, 30, 3)) -> float:
    """||l||^2 over the median of ||J^T l||_1, by torchvision and autograd."""
    model = get_model("shufflenet_v2_x0_5", weights=None, num_classes=4).eval()
    model.load_state_dict(checkpoint)
    prior = torch.tensor(counts).double().log()
    centred = prior - prior.mean()
    transform = v2.Compose(
        [
            v2.Resize(32, antialias=True),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    norms = []
    for path in sorted(Path("images").rglob("*.png")):
        x = transform(Image.open(path))[None].requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(x)[0] @ centred.float(), x)
        norms.append(float(gradient.abs().sum()))
    return float((centred**2).sum()) / float(np.median(norms))


def test_auto_is_the_eps_of_median_strength_one(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """The eps is an independent computation's, is what the rows are made with, and is in the run file."""
    run = predicted(workplace, "auto", "auto.csv")
    found = run["settings"]["debias"]["eps"]
    assert found == pytest.approx(full_correction(checkpoint), rel=6e-3)
    assert run["strength"] == {"asked": "auto", "full_eps": found, "images": 9}
    predicted(workplace, str(found), "number.csv")
    assert Path("auto.csv").read_bytes() == Path("number.csv").read_bytes()
    half = predicted(workplace, "auto*0.5", "half.csv")
    assert half["settings"]["debias"]["eps"] == pytest.approx(found / 2, rel=6e-3)
    pixel = predicted(workplace, "auto", "pixel.csv", "--eps-space", "pixel")
    assert found / pixel["settings"]["debias"]["eps"] == pytest.approx(1 / 0.226, rel=0.05)
    assert "strength" not in json.loads(Path("number.run.json").read_text())


def test_parts_and_runs_that_go_on_have_the_eps_of_the_whole(workplace: Workplace) -> None:
    """The sample is of all images: parts merge to the run's bytes, --resume finds the finished run, verify repeats."""
    predicted(workplace, "auto", "whole.csv")
    for part in "123":
        predicted(workplace, "auto", f"{part}.csv", "--shard", f"{part}/3")
    assert workplace.run("merge", "1.csv", "2.csv", "3.csv", "-o", "merged.csv").code == 0
    assert Path("merged.csv").read_bytes() == Path("whole.csv").read_bytes()
    again = workplace.run(*PREDICT, "--eps", "auto", "-o", "whole.csv", "--resume")
    assert again.code == 0, again.err
    assert "resumed: 9 of 9 images had been done before" in again.err
    assert workplace.run("verify", "whole.run.json").code == 0


def test_a_recipe_may_say_auto(workplace: Workplace) -> None:
    """`init` keeps the word, since the number is of the images; `inspect` and a broken image do not mind it."""
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "--eps", "auto*0.5").code == 0
    assert 'eps = "auto*0.5"' in Path("imbperturb.toml").read_text()
    Path("images/broken.png").write_bytes(b"")
    finished = workplace.run("predict", "images", "-o", "p.csv")
    assert finished.code == 3, finished.err
    run = json.loads(Path("p.run.json").read_text())
    assert (run["strength"]["asked"], run["strength"]["images"]) == ("auto*0.5", 9)


@pytest.mark.parametrize("eps", ["auto*0", "auto*-1", "auto*", "auto*x", "auto*inf", "median"])
def test_what_is_no_eps_is_refused(workplace: Workplace, eps: str) -> None:
    """One line that says what eps may be."""
    message = workplace.fails(*PREDICT, "--eps", eps, "-o", "p.csv", code=2)
    assert message.endswith(f"eps is {eps!r}; expected a number, at least 0, auto, or auto*X with X above 0")
    with pytest.raises(ValueError, match="eps is"):
        DebiasSettings(eps=eps)


def test_where_auto_cannot_be_found_the_run_says_so(workplace: Workplace) -> None:
    """More than one step, equal counts, no usable image: one line each."""
    assert "auto is of one step" in workplace.fails(*PREDICT, "--eps", "auto", "--steps", "2", "-o", "p.csv", code=2)
    Path("counts.json").write_text(json.dumps(dict.fromkeys("abcd", 5)))
    equal = workplace.fails(*PREDICT, "--eps", "auto", "-o", "p.csv")
    assert "same count" in equal
    Path("counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 3}))
    for path in Path("images").rglob("*.png"):
        path.write_bytes(b"no image")
    message = workplace.fails(*PREDICT, "--eps", "auto", "-o", "p.csv")
    assert "none of 9 sampled images can be used (first: " in message


def test_the_summary_says_how_strong_the_step_was(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """A number comes to a share of the full correction; other targets have none, nor does a run without a step."""
    full = full_correction(checkpoint)
    said = workplace.run(*PREDICT, "--eps", f"{full / 4:.5g}", "-o", "p.csv").err
    found = re.search(
        r"strength: the step takes (0\.\d+) of the log prior from the logits of the median image; --eps", said
    )
    assert found is not None, said
    # Of the nine images eight tell.
    assert float(found[1]) == pytest.approx(0.25, rel=0.15)
    assert "strength: the step takes 1 of" in workplace.run(*PREDICT, "--eps", "auto", "-o", "p.csv").err
    for more in (("--target", "sqrt"), ("--temperature", "2"), ("--eps", "0"), ("--method", "la")):
        assert "strength" not in workplace.run(*PREDICT, *more, "-o", "p.csv").err
    summary = predict_folder(
        Settings(
            model=ModelSettings(model="model.pth", counts="counts.json"),
            preprocess=PreprocessSettings(resize=32, crop=32),
            debias=DebiasSettings(eps=full),
        ),
        "images",
        "q.csv",
    )
    assert summary.strength == pytest.approx(1, rel=0.15)

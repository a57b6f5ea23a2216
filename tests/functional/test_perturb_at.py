"""``--perturb-at``: the step behind a layer, in every command that has a step."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model
from torchvision.transforms import v2

import imbalance_perturb as ip
from tests.functional.conftest import SMALL, Workplace

PREDICT = ("predict", "model.pth", "counts.json", "images", *SMALL, "--precision", "fp32")


def recorded(out: str) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(Path(out).with_suffix(".run.json").read_text())
    return run


def by_hooks(checkpoint: dict[str, torch.Tensor], layer: str, eps: float) -> dict[str, np.ndarray]:
    """Corrected probabilities of each image, in float64, by hooks on torchvision's own network."""
    network = get_model("shufflenet_v2_x0_5", weights=None, num_classes=4).double().eval()
    network.load_state_dict(checkpoint)
    norm = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.PILToTensor(), v2.ToDtype(torch.float64, scale=True)])
    g = np.log(900 / np.array([900, 90, 30, 3]))
    target = torch.tensor(g / g.sum())
    found = {}
    for path in sorted(Path("images").rglob("*.png")):
        x, held = norm(transform(Image.open(path)))[None], []

        def replace(*found: torch.Tensor, held: list[torch.Tensor] = held) -> torch.Tensor:
            held.append(held[0] if held else found[2].detach().requires_grad_(True))
            return held[-1]

        hook = network.get_submodule(layer).register_forward_hook(replace)
        loss = -(target * torch.log_softmax(network(x) / 1000, dim=1)).sum()
        (gradient,) = torch.autograd.grad(loss, held[0])
        held[0] = (held[0] - eps * gradient.sign()).detach()
        found[path.relative_to("images").as_posix()] = torch.softmax(network(x), dim=1)[0].detach().numpy()
        hook.remove()
    return found


def test_rows_are_those_of_a_transcription(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """A layer by its name, eps in units of its output: the probabilities that hooks come to, and in the run file."""
    finished = workplace.run(*PREDICT, "--perturb-at", "stage3", "--eps", "0.05", "--probs")
    assert finished.code == 0, finished.err
    assert "correction: eps 0.05 in units of the output of stage3, T 1000" in finished.err
    expected = by_hooks(checkpoint, "stage3", 0.05)
    rows = [line.split(",") for line in Path("predictions.csv").read_text().splitlines()]
    at = {name: index for index, name in enumerate(rows[0])}
    for row in rows[1:]:
        probs = [float(row[at[f"p_{name}"]]) for name in "abcd"]
        np.testing.assert_allclose(probs, expected[row[0]], atol=5e-3)
    moved = [abs(float(row[at["p_a"]]) - float(row[at["base_p_a"]])) for row in rows[1:]]
    assert max(moved) > 0.05
    assert recorded("predictions.csv")["settings"]["debias"]["perturb_at"] == "stage3"
    assert workplace.run("verify", "predictions.run.json").code == 0


def test_auto_settles_layer_and_eps_for_all_parts(workplace: Workplace) -> None:
    """The layer's name and a number are recorded; parts merge to the whole's bytes, and --resume finds the run."""
    whole = workplace.run(*PREDICT, "--perturb-at", "auto", "-o", "whole.csv")
    assert whole.code == 0, whole.err
    run = recorded("whole.csv")
    debias = run["settings"]["debias"]
    assert debias["perturb_at"] == "stage4.1"
    assert debias["eps"] == run["strength"]["full_eps"]
    assert run["strength"]["asked"] == "auto"
    assert f"eps {debias['eps']:g} (auto: " in whole.err
    assert "strength: the step takes 1 of the log prior" in whole.err
    assert run["execution"]["network"].startswith("cut behind stage4.1; up to there ")
    for part in "12":
        assert workplace.run(*PREDICT, "--perturb-at", "auto", "-o", f"{part}.csv", "--shard", f"{part}/2").code == 0
    assert workplace.run("merge", "1.csv", "2.csv", "-o", "merged.csv").code == 0
    assert Path("merged.csv").read_bytes() == Path("whole.csv").read_bytes()
    again = workplace.run(*PREDICT, "--perturb-at", "auto", "-o", "whole.csv", "--resume")
    assert again.code == 0, again.err
    assert "resumed: 9 of 9" in again.err
    assert workplace.run("verify", "whole.run.json").code == 0
    by_name = ("--perturb-at", "stage4.1", "--eps", str(debias["eps"]))
    assert workplace.run(*PREDICT, *by_name, "-o", "named.csv").code == 0
    assert Path("named.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--perturb-at", "stage9"), "this network has no such layer; it can be cut behind"),
        (("--perturb-at", "stage3.0.branch1"), "more than its output goes on behind that layer"),
        (("--perturb-at", "stage3", "--clip"), "leave out clip and eps_space, which are about pixels"),
        (("--perturb-at", "stage3", "--eps-space", "pixel"), "leave out clip and eps_space, which are about pixels"),
        (("--perturb-at", "stage 3"), "expected one of input, auto or the name of a layer"),
    ],
)
def test_what_cannot_be_is_refused(workplace: Workplace, options: tuple[str, ...], reason: str) -> None:
    """One line that says what can be had."""
    assert reason in workplace.fails(*PREDICT, *options, code=2)


def test_another_place_drops_the_recipes_eps(workplace: Workplace) -> None:
    """An eps is in units of its place: of another it is auto, unless one is given."""
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "--eps", "0.5").code == 0
    assert workplace.run("predict", "images", "--perturb-at", "stage3").code == 0
    run = recorded("predictions.csv")
    assert run["strength"]["asked"] == "auto"
    assert workplace.run("predict", "images", "--perturb-at", "stage3", "--eps", "0.25", "-o", "b.csv").code == 0
    assert recorded("b.csv")["settings"]["debias"]["eps"] == 0.25
    assert workplace.run("predict", "images", "--perturb-at", "input", "-o", "c.csv").code == 0
    assert recorded("c.csv")["settings"]["debias"]["eps"] == 0.5


@pytest.fixture
def labels(workplace: Workplace) -> str:
    """Labels of each image, which a strong correction gets right more often."""
    names = sorted(path.relative_to("images").as_posix() for path in Path("images").rglob("*.png"))
    assert workplace.run(*PREDICT, "--perturb-at", "stage3", "--eps", "0.3", "-o", "strong.csv").code == 0
    preds = {row["image"]: row["pred"] for row in csv.DictReader(Path("strong.csv").read_text().splitlines())}
    Path("labels.csv").write_text("image,label\n" + "".join(f"{name},{preds[name]}\n" for name in names))
    return "labels.csv"


def test_tune_eps_chooses_in_units_of_the_layer(workplace: Workplace, labels: str) -> None:
    """The recipe gets the layer and the eps that was tried there, and `predict` reads both."""
    assert workplace.run("init", "model.pth", "counts.json", *SMALL).code == 0
    tuned = workplace.run(
        "tune-eps", "--val", "images", "--labels", labels, "--perturb-at", "auto", "--folds", "2", "--json"
    )
    assert tuned.code == 0, tuned.err
    found = json.loads(tuned.out)
    debias = tomllib.loads(Path("imbperturb.toml").read_text())["debias"]
    assert debias["perturb_at"] == "stage4.1" == found["settings"]["debias"]["perturb_at"]
    assert debias["eps"] == found["choice"]["eps"]
    assert "in units of the output of stage4.1" in tuned.err
    assert workplace.run("predict", "images").code == 0
    assert recorded("predictions.csv")["settings"]["debias"]["eps"] == debias["eps"]


def test_compare_has_it_as_a_method_that_predict_carries_out(workplace: Workplace, labels: str) -> None:
    """Beside the step at the input, with its layer and its cost; what it would write is what `predict` then does."""
    compared = workplace.run(
        "compare", "model.pth", "counts.json", *SMALL, "--val", "images", "--labels", labels, "--folds", "2",
        "--methods", "perturb,perturb-at", "--perturb-at", "stage3", "--json",
    )  # fmt: skip
    assert compared.code == 0, compared.err
    method = json.loads(Path("compare.json").read_text())["methods"]["perturb-at"]
    assert method["available"]
    assert method["perturb_at"] == "stage3"
    assert method["parameters"]["eps"] >= 0
    assert method["forward_equivalents"] == 1 or 1 < method["forward_equivalents"] < 3
    refused = workplace.fails(
        "compare", "model.pth", "counts.json", *SMALL, "--val", "images", "--labels", labels, "--folds", "2",
        "--perturb-at", "stage9", code=2,
    )  # fmt: skip
    assert "this network has no such layer" in refused


def test_an_exported_file_steps_there(workplace: Workplace) -> None:
    """Its rows are those of ``predict``, it says where its step is, and what lies before is in it once."""
    options = ("--perturb-at", "auto", "--eps", "0.05")
    assert workplace.run(*PREDICT, *options, "-o", "own.csv").code == 0
    ended = workplace.run("export", "model.pth", "counts.json", *SMALL, *options, "-o", "a.pt2")
    assert ended.code == 0, ended.err
    layer = recorded("own.csv")["settings"]["debias"]["perturb_at"]
    assert layer not in ("auto", "input")
    assert f"eps 0.05 in units of the output of {layer}" in ended.err
    card = ip.read_card("a.pt2")
    assert (card.correction.perturb_at, card.correction.eps) == (layer, 0.05)
    module = torch.export.load("a.pt2").module()
    made = [node for node in module.graph.nodes if "conv" in str(node.target)]
    plain = sum(isinstance(one, torch.nn.Conv2d) for one in get_model("shufflenet_v2_x0_5", weights=None).modules())
    assert plain < len(made) < 1.5 * plain
    assert workplace.run("predict", "a.pt2", "counts.json", "images", "-o", "again.csv").code == 0
    found = []
    for name in ("own.csv", "again.csv"):
        with Path(name).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        labels = [(row["image"], row["base_pred"], row["pred"]) for row in rows]
        confidences = [float(row[kind]) for row in rows for kind in ("base_confidence", "confidence")]
        found.append((labels, confidences))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)
    assert found[0][1][::2] != found[0][1][1::2]
    assert workplace.run("verify", "again.run.json").code == 0


def test_a_gallery_says_what_it_has(workplace: Workplace, labels: str) -> None:
    """A gallery shows the images, of which no pixel moved."""
    shown = workplace.run("evaluate", "strong.csv", "--labels", labels, "--gallery", "2", "--report", "page.html")
    assert shown.code == 0, shown.err
    assert "moves no pixel" in Path("page.html").read_text()

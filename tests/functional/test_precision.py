from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.functional.conftest import SMALL, Workplace

MANY = 300


class Colours(torch.nn.Module):
    """A network that is sure of most images and not of all, as a trained one is."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(3, 16, 5, stride=4), torch.nn.Linear(16, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
            self.last.weight.mul_(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.adaptive_avg_pool2d(torch.tanh(self.first(x)), 1).flatten(1))


@pytest.fixture
def many(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A workplace with 300 images in ``many/`` and ``colours.pt``, on a machine that has bf16 or is said to."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    torch.jit.script(Colours()).save(workplace.folder / "colours.pt")
    rng = np.random.default_rng(0)
    (workplace.folder / "many").mkdir()
    for index in range(MANY):
        # Noise around a colour of the image's own.
        pixels = rng.integers(0, 256, 3) + rng.normal(0, 60, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(workplace.folder / "many" / f"{index:03d}.png")
    return workplace


def predict(workplace: Workplace, images: str, *more: str) -> tuple[list[dict[str, str]], dict[str, object], str]:
    """The rows, the run file and what was said of a run with ``--eps 0.01``."""
    model = "colours.pt" if images == "many" else "model.pth"
    finished = workplace.run("predict", model, "counts.json", images, *SMALL, "--eps", "0.01", *more)
    assert finished.code == 0, finished.err
    with Path("predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return rows, json.loads(Path("predictions.run.json").read_text()), finished.err


def labels(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["base_pred"], row["pred"]) for row in rows]


def test_auto_has_the_labels_of_fp32(many: Workplace) -> None:
    """auto is bf16 with close calls in fp32: the labels of fp32, and everything about it in the run file."""
    exact, run, said = predict(many, "many", "--precision", "fp32")
    assert run["execution"]["precision"] == "fp32"
    assert run["agreement"] is None
    assert ", fp32, batches of" in said
    found, run, said = predict(many, "many")
    assert sum(ours == theirs for ours, theirs in zip(labels(found), labels(exact), strict=True)) >= MANY - 1
    assert (run["execution"]["precision"], run["execution"]["low_dtype"]) == ("auto", "bf16")
    assert "bf16" in run["execution"]["low_network"] or "bfloat16" in run["execution"]["low_network"]
    agreement = run["agreement"]
    assert (agreement["images"], agreement["low_dtype"]) == (MANY, "bf16")
    assert 16 <= agreement["calibrated_on"] <= 64
    assert (agreement["corrected"], agreement["safety"]) == (MANY, 3.0)
    assert agreement["bound"] > 0
    assert agreement["base_bound"] > 0
    assert agreement["share_recomputed"] == agreement["recomputed"] / MANY < 0.5
    assert agreement["sampled"] > 10
    assert agreement["sampled_agreement"] == agreement["agreed"] / agreement["sampled"]
    assert {"calibration", "gradient pass", "final pass", "refinement"} <= run["seconds"].keys()
    assert ", bf16, close calls in fp32, batches of" in said
    assert "precision: bf16, " in said
    assert f" of {agreement['sampled']} sampled labels agree" in said


def test_bf16_runs_throughout(workplace: Workplace) -> None:
    """bf16 by name holds for a few images too: nothing is recomputed, the agreement is measured."""
    rows, run, said = predict(workplace, "images", "--precision", "bf16")
    assert len(rows) == 9
    assert (run["execution"]["precision"], run["execution"]["low_dtype"]) == ("bf16", "bf16")
    assert (run["agreement"]["recomputed"], run["agreement"]["bound"], run["agreement"]["images"]) == (0, None, 9)
    assert "recomputed" not in said.split("precision: ")[-1]


def test_few_images_are_computed_in_full(workplace: Workplace) -> None:
    """For a few images auto is fp32 and close calls only corrects all, bit for bit, and both are said."""
    plain, run, _ = predict(workplace, "images", "--precision", "fp32")
    rows, run, said = predict(workplace, "images", "--close-calls-only")
    assert [{key: value for key, value in row.items() if key != "corrected"} for row in rows] == plain
    assert {row["corrected"] for row in rows} == {"1"}
    assert "all images corrected: fewer than 256" in said
    assert run["execution"]["precision"] == "fp32"
    assert run["execution"]["close_calls_only"] is False
    assert any("fewer than 256" in note for note in run["execution"]["notes"])
    assert run["agreement"] is None


def test_close_calls_only_leaves_clear_ones_out(many: Workplace) -> None:
    """Close calls only corrects a part, marks it, keeps the labels, and the file can be evaluated."""
    exact, _, _ = predict(many, "many", "--precision", "fp32")
    assert "corrected" not in exact[0]
    for precision in ("fp32", "auto"):
        rows, run, said = predict(many, "many", "--close-calls-only", "--precision", precision, "--probs")
        assert list(rows[0])[5:9] == ["changed", "error", "corrected", "p_a"]
        assert sum(ours == theirs for ours, theirs in zip(labels(rows), labels(exact), strict=True)) >= MANY - 1
        marked = sum(int(row["corrected"]) for row in rows)
        assert 0 < marked < MANY
        assert all(row["corrected"] == "1" for row in rows if row["changed"] == "1")
        left = [row for row in rows if row["corrected"] == "0"]
        assert all(row["confidence"] == row["base_confidence"] for row in left)
        agreement = run["agreement"]
        assert (agreement["corrected"], agreement["close_calls_only"]) == (marked, True)
        assert agreement["share_corrected"] == marked / MANY
        assert agreement["reach_slope"] is not None
        assert "plain pass" in run["seconds"]
        assert f"{marked / MANY:.1%} of the images corrected" in said
    Path("labels.csv").write_text("image,label\n" + "".join(f"{row['image']},{row['base_pred']}\n" for row in rows))
    finished = many.run("evaluate", "--labels", "labels.csv", "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["n"] == MANY
    many.run(
        "predict", "colours.pt", "counts.json", "many", *SMALL, "--eps", "0.01", "--close-calls-only", "-o", "p.jsonl"
    )
    assert {json.loads(line)["corrected"] for line in Path("p.jsonl").read_text().splitlines()} == {True, False}
    assert many.run("evaluate", "p.jsonl", "--labels", "labels.csv", "--json").code == 0


def test_the_recipe_takes_both(many: Workplace) -> None:
    """Precision and close calls may stand in the recipe, and the command line wins."""
    Path("imbperturb.toml").write_text('[run]\nprecision = "bf16"\nclose_calls_only = true\n')
    rows, run, _ = predict(many, "many")
    assert "corrected" in rows[0]
    assert run["settings"]["run"]["close_calls_only"] is True
    assert run["execution"]["precision"] == "bf16"
    rows, run, _ = predict(many, "many", "--no-close-calls-only", "--precision", "fp32")
    assert "corrected" not in rows[0]
    assert run["execution"]["precision"] == "fp32"


def test_a_model_that_fails_in_bf16(many: Workplace) -> None:
    """auto goes on in fp32 with a model that bf16 breaks, and says so; bf16 by name is a one-line error."""

    class Picky(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 4)
            self.register_buffer("mix", torch.eye(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # In-place products take no two formats, whatever autocast makes of the others.
            return self.first(x.mean(dim=(2, 3))).addmm_(self.mix[:1].T.T.expand(x.shape[0], 4), self.mix)

    torch.jit.script(Picky()).save("picky.pt")
    finished = many.run("predict", "picky.pt", "counts.json", "many", *SMALL)
    assert finished.code == 0, finished.err
    assert "fp32 (auto: the model fails in bf16 (" in finished.err
    assert (
        "precision is bf16, but the model fails in it"
        in many.run("predict", "picky.pt", "counts.json", "many", *SMALL, "--precision", "bf16").err
    )


def test_wrong_uses(many: Workplace) -> None:
    """fp16 on a CPU, and low precision where corrections are compared, are wrong uses with the remedy."""
    message = many.fails("predict", "model.pth", "counts.json", "many", *SMALL, "--precision", "fp16", code=2)
    assert "fp16, which is for CUDA" in message or torch.cuda.is_available()
    Path("labels.csv").write_text("image,label\n" + "".join(f"{i:03d}.png,{'abcd'[i % 4]}\n" for i in range(MANY)))
    for command in ("tune-eps", "compare"):
        message = many.fails(
            *(command, "model.pth", "counts.json", "--val", "many", "--labels", "labels.csv", *SMALL),
            *("--precision", "bf16"),
            code=2,
        )
        assert "a choice between corrections must not depend on rounding: use fp32" in message


def test_inspect_says_what_auto_would_be(many: Workplace) -> None:
    """inspect names the precision that a run over many images would take."""
    finished = many.run("inspect", "model.pth", "counts.json", *SMALL, "--json")
    assert json.loads(finished.out)["precision"] == "bf16, close calls in fp32"
    finished = many.run("inspect", "model.pth", "counts.json", *SMALL, "--precision", "fp32")
    assert "precision" in finished.out

"""What people get wrong, each through the command line: one line that names file, cause and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.functional.conftest import SMALL, Workplace, checkpoint, workplace  # noqa: F401 - fixtures

FILES = ("model.pth", "counts.json", "images")


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("", "is empty", "expected"),
        ("counts: 3", "is not JSON (line 1, column 1", "expected"),
        ('{"a": 9, "b": -3, "c": 1, "d": 1}', "the count of class 'b' is -3", "needs at least one"),
        ('{"a": 9, "b": 0, "c": 1, "d": 1}', "the count of class 'b' is 0", "leave out a class"),
        ('{"a": 9, "b": 2.5, "c": 1, "d": 1}', "the count of class 'b' is 2.5", "expected a whole number"),
        ('{"a": 9}', "1 class found", "needs at least two"),
        ('{"a": 5, "b": 5, "c": 5, "d": 5}', "all 4 classes have the same count (5)", "nothing to correct"),
        ('{"a": 9, "b": 3, "a": 1, "d": 2}', "'a' stands more than once", "expected"),
        ('{"classes": ["a", "b", "b", "d"], "counts": [9, 3, 2, 1]}', "'b' stands more than once", "must be distinct"),
        ('{"a": 9, "b": 3}', "the model has 4 classes but COUNTS has 2", "give the counts"),
    ],
    ids=[
        "empty",
        "not JSON",
        "negative",
        "zero",
        "fractional",
        "one class",
        "all equal",
        "duplicate names",
        "duplicate names in a list",
        "wrong length",
    ],
)
def test_bad_counts(workplace: Workplace, text: str, cause: str, remedy: str) -> None:  # noqa: F811
    """Counts that cannot be used end the command before anything is written."""
    Path("counts.json").write_text(text)
    message = workplace.fails("predict", *FILES, *SMALL)
    assert cause in message
    assert remedy in message
    assert ("model.pth: " if "COUNTS has" in cause else "counts.json: ") in message


def test_missing_files(workplace: Workplace) -> None:  # noqa: F811
    """A model, counts or images that are not there are named."""
    assert "nowhere.json: cannot be read (No such file" in workplace.fails(
        "predict", "model.pth", "nowhere.json", "images"
    )
    assert "nowhere.pth" in workplace.fails("predict", "nowhere.pth", "counts.json", "images", *SMALL)
    assert "nowhere: no such file or folder" in workplace.fails("predict", "model.pth", "counts.json", "nowhere")


def test_truncated_and_foreign_model_files(workplace: Workplace) -> None:  # noqa: F811
    """A model file that is cut off, empty or something else is named with what it looks like."""
    whole = Path("model.pth").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x08\x07\x12\x07pytorch\x1a\x05", b"hello world"):
        Path("model.pth").write_bytes(content)
        assert "model.pth" in workplace.fails("predict", *FILES, *SMALL)


class RunsCode:
    """A pickle of this runs code when it is loaded without care."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        import os

        return os.system, ("touch code-ran",)


def test_a_pickle_that_would_run_code_does_not(workplace: Workplace) -> None:  # noqa: F811
    """A checkpoint that carries code is refused with the reason, and its code does not run."""
    torch.save({"state_dict": torch.load("model.pth", weights_only=True), "extra": RunsCode()}, "model.pth")
    message = workplace.fails("predict", *FILES, *SMALL)
    assert "model.pth" in message
    assert "--trust-model-file" in message
    assert "system" in message
    assert not Path("code-ran").exists()
    # The same file accepted on request: the run says so (and the code runs, which is what trust means).
    finished = workplace.run("predict", *FILES, *SMALL, "--trust-model-file")
    assert finished.code == 0, finished.err
    assert "trust" in finished.err
    assert Path("code-ran").exists()


def test_unknown_architectures(workplace: Workplace) -> None:  # noqa: F811
    """An architecture that does not exist, or tensors of none that is known, are named with the remedy."""
    assert "shufflenet_v2_x0_5" in workplace.fails("predict", *FILES, *SMALL, "--arch", "shufflenet_v2_x05")
    torch.save({"body.weight": torch.randn(4, 3), "body.bias": torch.randn(4)}, "model.pth")
    message = workplace.fails("predict", *FILES, *SMALL)
    assert "--arch" in message
    assert "--factory" in message


def test_mismatched_tensors_are_listed(workplace: Workplace) -> None:  # noqa: F811
    """With the wrong architecture the tensors that do not fit are listed by name and shape."""
    message = workplace.fails("predict", *FILES, *SMALL, "--arch", "shufflenet_v2_x1_0")
    assert "model.pth" in message
    assert "tensors: 266 of another shape (stage2.0.branch" in message


class Detached(nn.Module):
    """A model that cuts the graph, as quantised or post-processed exports do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)).detach())


def test_a_model_without_gradient(workplace: Workplace) -> None:  # noqa: F811
    """A model that lets no gradient through to its input is refused before any image is read."""
    torch.jit.script(Detached().eval()).save("model.pth")
    assert "no gradient reaches the model's input" in workplace.fails("predict", *FILES, *SMALL)


def test_folders_without_images(workplace: Workplace) -> None:  # noqa: F811
    """An empty folder and a folder without an image are errors, not empty results."""
    Path("empty").mkdir()
    assert "empty: no image in this folder (it is empty)" in workplace.fails(
        "predict", "model.pth", "counts.json", "empty"
    )
    Path("empty/notes.txt").write_text("x")
    assert "none of its 1 files is one" in workplace.fails("predict", "model.pth", "counts.json", "empty")


def test_a_bad_target_file(workplace: Workplace) -> None:  # noqa: F811
    """A target file that is no distribution over the classes is named with the cause."""
    Path("t.json").write_text(json.dumps([0.5, 0.5]))
    assert "t.json: 2 numbers for 4 classes" in workplace.fails("predict", *FILES, *SMALL, "--target", "t.json")
    assert "missing.json: cannot be read" in workplace.fails("predict", *FILES, *SMALL, "--target", "missing.json")
    assert "M is 10, below the largest class count 900" in workplace.fails(
        "predict", *FILES, *SMALL, "--target-m", "10"
    )


def test_a_model_that_cannot_take_the_input(workplace: Workplace) -> None:  # noqa: F811
    """Preprocessing that the model cannot take is an error before the first image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    torch.jit.script(model).save("model.pth")
    assert "32" in workplace.fails("predict", *FILES, *SMALL)


def test_a_folder_that_cannot_be_written(workplace: Workplace) -> None:  # noqa: F811
    """An output place that does not exist is named before the model is loaded."""
    assert "there is no folder" in workplace.fails("predict", *FILES, *SMALL, "-o", "no/such/p.csv")

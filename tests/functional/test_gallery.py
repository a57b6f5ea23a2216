"""``evaluate --gallery``: images whose label changed, as the model received them, and what moved their pixels."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.transforms import v2

from imbalance_perturb.errors import printable
from imbalance_perturb.files.csv_tables import decode_path
from imbalance_perturb.inference import gallery as gallery_module
from tests import reference
from tests.functional.conftest import SMALL, Workplace
from tests.functional.test_merge import predict_parts

EVALUATE = ("evaluate", "--labels", "labels.csv", "--report", "r.html")
EPS = 0.3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Cards(HTMLParser):
    """The pictures of a page with their descriptions, the captions' texts, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[tuple[str, bytes]] = []
        self.titles: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        if tag == "img":
            given = dict(attrs)
            kind, _, content = str(given["src"]).partition(";base64,")
            assert kind in ("data:image/jpeg", "data:image/png")
            self.images.append((str(given["alt"]), base64.b64decode(content, validate=True)))

    def handle_data(self, data: str) -> None:
        if self._inside == "strong":
            self.titles.append(data)
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def predict(workplace: Workplace, *more: str, model: str = "model.pth", images: str = "images", code: int = 0) -> None:
    done = workplace.run("predict", model, "counts.json", images, *SMALL, "--eps", str(EPS), "--device", "cpu", *more)
    assert done.code == code, done.err


def label(path: str = "predictions.csv") -> dict[str, list[str]]:
    """Write labels by which the changed images are right afterwards and before by turns; their names by kind."""
    kinds: dict[str, list[str]] = {"gained": [], "lost": []}
    with Path(path).open(newline="") as rows, Path("labels.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("image", "label"))
        for row in csv.DictReader(rows):
            if row["error"]:
                continue
            kind = "gained" if len(kinds["gained"]) <= len(kinds["lost"]) else "lost"
            writer.writerow((row["image"], row["pred" if kind == "gained" else "base_pred"]))
            if row["changed"] == "1":
                kinds[kind].append(decode_path(row["image"]))
    return kinds


def gallery(workplace: Workplace, *more: str, number: int = 100, code: int = 0) -> _Cards:
    """The cards of the report that ``evaluate --gallery`` writes."""
    finished = workplace.run(*EVALUATE, "--gallery", str(number), *more)
    assert finished.code == code, finished.err
    return _Cards(Path("r.html").read_text())


def decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).astype(np.float64)


def expected_step(x: Tensor) -> Tensor:
    """x̃ - x of one model input (1, C, H, W), from Eq. (1)-(3) in float64."""
    model = get_model("shufflenet_v2_x0_5", weights=None, num_classes=4).double().eval()
    model.load_state_dict(torch.load("model.pth", weights_only=True))
    target = torch.from_numpy(reference.target([900, 90, 30, 3]))
    x = x.double().requires_grad_(True)
    loss = -(target * torch.log_softmax(model(x) / 1000, dim=1)).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return -EPS * gradient.sign()


def test_changed_images_are_shown_with_what_moved_them(workplace: Workplace) -> None:
    """Of each kind every changed image: its pixels as the model has them, and the step as the equations say."""
    for path in Path("images").rglob("*.png"):
        with Image.open(path) as noise:  # smooth, as photographs are: JPEG does not keep noise
            noise.resize((6, 5)).resize((40, 36), Image.Resampling.BICUBIC).save(path)
    Path("images/broken.png").write_bytes(b"no image")
    predict(workplace, "--probs", "--margin", code=3)
    kinds = label()
    assert min(map(len, kinds.values())) >= 1
    found = gallery(workplace, code=3)
    names = kinds["gained"] + kinds["lost"]
    assert found.titles == names
    assert [alt for alt, _ in found.images] == [
        f"{name}, {what}" for name in names for what in ("as the model received it", "its perturbation, amplified")
    ]
    words = " ".join(" ".join(found.words).split())
    assert f"Wrong to right: {len(kinds['gained'])} of {len(kinds['gained'])}" in words
    assert f"Right to wrong: {len(kinds['lost'])} of {len(kinds['lost'])}" in words
    assert "This page holds images; they may be of patients." in words
    # A step of 0.3 in units of the widest channel's 0.229, drawn as 127 of 255 levels.
    assert f"amplified {127 / 255 / (EPS * 0.229):.2g} times" in words
    shape = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.PILToTensor()])
    for name, (_, image), (_, step) in zip(names, found.images[::2], found.images[1::2], strict=True):
        with Image.open(Path("images", name)) as original:
            pixels = shape(original)
        assert np.abs(decode(image) - pixels.permute(1, 2, 0).numpy()).mean() < 3
        x = v2.functional.normalize(pixels / 255, MEAN, STD)[None]
        moved = expected_step(x)[0] * torch.tensor(STD).view(3, 1, 1) / (EPS * 0.229)
        drawn = (decode(step) - 128) / 127
        assert np.mean(np.abs(drawn - moved.permute(1, 2, 0).numpy()) < 0.01) > 0.999


def test_it_is_off_unless_asked_for(workplace: Workplace) -> None:
    """Without --gallery a report holds no image."""
    predict(workplace)
    label()
    assert workplace.run(*EVALUATE).code == 0
    page = Path("r.html").read_text()
    assert "<img" not in page
    assert "patients" not in page


def test_a_few_are_drawn_by_the_seed(workplace: Workplace) -> None:
    """--gallery 1 shows one image of each kind, the same for the same seed, and says of how many."""
    predict(workplace)
    kinds = label()
    first = gallery(workplace, number=1)
    assert first.titles == gallery(workplace, number=1).titles
    assert len(first.titles) == 2
    assert first.titles[0] in kinds["gained"]
    assert f"1 of {len(kinds['gained'])}" in " ".join(first.words)
    assert len({tuple(gallery(workplace, "--seed", str(seed), number=1).titles) for seed in range(4)}) > 1


def test_wrong_uses_are_one_line(workplace: Workplace) -> None:
    """A gallery without a report, of no image or of too many, or without a run file is refused before any work."""
    predict(workplace)
    label()
    needs = workplace.fails("evaluate", "--labels", "labels.csv", "--gallery", "3", code=2)
    assert "--gallery puts images into the report; say where that is to be, with --report FILE" in needs
    assert "gallery is 0; expected" in workplace.fails(*EVALUATE, "--gallery", "0", code=2)
    assert "gallery is 101; expected" in workplace.fails(*EVALUATE, "--gallery", "101", code=2)
    Path("predictions.run.json").unlink()
    message = workplace.fails(*EVALUATE, "--gallery", "3", "--counts", "counts.json")
    assert "predictions.run.json: no such file; --gallery computes" in message


def test_what_is_not_of_the_run_any_more_is_refused(workplace: Workplace) -> None:
    """An image that is gone or another, and another model, are named with what to do; nothing is written."""
    predict(workplace)
    kinds = label()
    command = (*EVALUATE, "--gallery", "9")
    shutil.move("images", "moved")
    assert "images: the images of the run are not there; say where with --images PATH" in workplace.fails(*command)
    assert gallery(workplace, "--images", "moved").titles == kinds["gained"] + kinds["lost"]
    Path("r.html").unlink()
    name = min(kinds["gained"] + kinds["lost"])
    (Path("moved") / name).rename("kept.png")
    gone = workplace.fails(*command, "--images", "moved")
    assert f"moved/{name}: the gallery cannot show this image of the run (no such file" in gone
    Image.new("RGB", (40, 40), (255, 0, 0)).save(Path("moved") / name)
    other = workplace.fails(*command, "--images", "moved")
    assert f"moved/{name}: is not predicted as in predictions.run.json any more (" in other
    Path("model.pth").rename("old.pth")
    assert "model.pth: the model file of the run is not there" in workplace.fails(*command, "--images", "moved")
    shutil.copy("old.pth", "model.pth")
    with Path("model.pth").open("ab") as stream:
        stream.write(b"\0")
    assert "model.pth: is not the model file" in workplace.fails(*command, "--images", "moved")
    Path("kept.png").rename(Path("moved") / name)
    assert gallery(workplace, "--images", "moved", "--model", "old.pth").titles


def test_an_image_that_goes_while_it_is_shown_is_named(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is there when its row is computed again, and gone when it is drawn, is the same one line."""
    predict(workplace)
    kinds = label()
    name = kinds["gained"][0]
    checked = gallery_module._check_rows

    def check_and_remove(*arguments: Any) -> None:
        checked(*arguments)
        Path("images", name).unlink()

    monkeypatch.setattr(gallery_module, "_check_rows", check_and_remove)
    finished = workplace.run(*EVALUATE, "--gallery", "9")
    assert finished.code == 1
    assert f"images/{name}: the gallery cannot show this image of the run (no such file" in finished.err
    assert not Path("r.html").exists()


def test_the_counts_are_those_of_the_run_file(workplace: Workplace) -> None:
    """The file of the counts is not needed."""
    predict(workplace)
    kinds = label()
    Path("counts.json").unlink()
    assert gallery(workplace).titles == kinds["gained"] + kinds["lost"]


def test_nothing_changed_is_said(workplace: Workplace) -> None:
    """Where no label went from wrong to right or back the section says so."""
    predict(workplace, "--eps", "0")
    label()
    found = gallery(workplace)
    assert found.images == []
    assert "No label went from wrong to right or from right to wrong." in " ".join(" ".join(found.words).split())


@pytest.mark.parametrize("more", [("--method", "la", "--tau", "2"), ("--eps", "0", "--tau", "2")])
def test_a_correction_of_scores_shows_the_image_alone(workplace: Workplace, more: tuple[str, ...]) -> None:
    """Where no pixel moves there is one picture for each image, and the page says why."""
    predict(workplace, *more)
    kinds = label()
    found = gallery(workplace)
    assert [alt for alt, _ in found.images] == [
        f"{name}, as the model received it" for name in kinds["gained"] + kinds["lost"]
    ]
    assert found.images
    assert "moves no pixel" in " ".join(found.words)


class Gray(nn.Module):
    """Takes one channel of any size; images differ by how much brighter one half is."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        left, right = x[:, :, :, :half].mean((1, 2, 3)), x[:, :, :, half:].mean((1, 2, 3))
        return torch.stack([left - right, right - left], dim=1) * 40


def test_large_gray_images_are_small_pictures(workplace: Workplace) -> None:
    """Pictures have 224 pixels at most; of a large perturbation pixels are shown as they are, never their mean."""
    torch.jit.script(Gray().eval()).save("gray.pt")
    Path("counts.json").write_text(json.dumps({"common": 900, "rare": 3}))
    options = ("--color", "gray", "--resize", "300,400", "--crop", "none", "--mean", "0.5", "--std", "0.5")
    predict(workplace, *options, "--eps", "0.01", model="gray.pt")
    kinds = label()
    found = gallery(workplace)
    assert found.titles == kinds["gained"] + kinds["lost"]
    assert found.titles
    for index, (_, content) in enumerate(found.images):
        with Image.open(io.BytesIO(content)) as image:
            assert (image.mode, image.size) == ("L", (224, 168))
        if index % 2:
            # One step up or down everywhere: to the left it darkens, to the right it brightens.
            assert set(np.unique(decode(content))) == {1, 255}
            assert (decode(content)[:, :110] == 1).all()


def test_a_factory_runs_only_where_this_command_grants_it(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run file that names a factory makes no code run; --factory on the command line does."""
    Path("gallery_nets.py").write_text(
        "from torchvision.models import shufflenet_v2_x0_5\n"
        "def build(num_classes):\n    return shufflenet_v2_x0_5(weights=None, num_classes=num_classes)\n"
    )
    monkeypatch.delitem(sys.modules, "gallery_nets", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    predict(workplace, "--factory", "gallery_nets:build")
    label()
    message = workplace.fails(*EVALUATE, "--gallery", "2", code=2)
    assert "if you trust where it comes from, give --factory gallery_nets:build" in message
    assert gallery(workplace, "--factory", "gallery_nets:build").images


def test_names_are_text(workplace: Workplace) -> None:
    """An image may be called anything: the page says its name and takes none of it for markup."""
    name = "<b onload=x>&\"'\x1b[31m.png"
    for path in sorted(Path("images").rglob("*.png")):
        path.rename(Path("images", f"{path.stem} {name}"))
    predict(workplace)
    kinds = label()
    found = gallery(workplace)
    shown = [printable(image) for image in kinds["gained"] + kinds["lost"]]
    assert [alt.rpartition(", ")[0] for alt, _ in found.images[::2]] == shown
    assert "".join(found.titles) == "".join(shown)
    page = Path("r.html").read_text()
    assert not re.search(r"<b[ >]", page)
    assert "\x1b" not in page


def test_merged_parts_have_a_gallery(workplace: Workplace) -> None:
    """Of a merged file each image is computed again with what its part had."""
    parts = predict_parts(workplace, ".csv", "--eps", str(EPS), n=2)
    assert workplace.run("merge", *parts, "-o", "merged.csv").code == 0
    kinds = label("merged.csv")
    finished = workplace.run("evaluate", "merged.csv", *EVALUATE[1:], "--gallery", "9")
    assert finished.code == 0, finished.err
    assert _Cards(Path("r.html").read_text()).titles == kinds["gained"] + kinds["lost"]

"""Every command, in and on folders, files and classes whose names are markup, terminal commands, or no UTF-8 at all."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from imbalance_perturb.cli.app import main
from imbalance_perturb.errors import printable
from imbalance_perturb.files.csv_tables import encode_text
from imbalance_perturb.predictions.predicted_classes import load_predictions
from imbalance_perturb.predictions.run_file import run_path
from tests.functional.conftest import Finished, Workplace

#: Of a folder, and of every file in it before its suffix.
ODD = os.fsdecode(b"da[ta] [b]\x1b[31m\xff\"q'")

CLASSES = (
    "nevus [benign]",
    "melanoma [/in situ]",
    'a"b',
    "c'd",
    "$x_2$",
    "<b>&",
    "=1+1",
    "esc\x1b[31m\x9b2J",
    "rtl\u202eabc",
    ":mole:",
    "new\nline",
    "_hidden",
    "caf\udce9",
)

IMAGES = (
    "a [/b]",
    "e\x1b[2J\x07",
    "q\"'",
    "=1",
    "n\nl",
    "\udcff\udc80",
    "r\u202e",
    "<b>&",
    ":mole:",
    "$x$",
    "c\rr",
    "-",
)

#: Options that leave the 4 x 4 images as they are.
PLAIN = ("--preset", "none", "--resize", "4,4", "--workers", "0", "--device", "cpu", "--precision", "fp32")


class Place(Workplace):
    """A folder of the name :data:`ODD` with a model, counts, images and labels of such names, as what is current."""

    model, counts, images, labels = f"{ODD}.pt", f"{ODD}.json", f"{ODD} images", f"{ODD} labels.csv"

    def odd(self, *arguments: str, code: int = 0) -> Finished:
        """Run a command, which must end well, and show nothing that a terminal would take for more than letters."""
        finished = self.run(*arguments)
        assert finished.code == code, finished
        for text in (finished.out, finished.err):
            assert not re.findall(
                r"[^\n -~\u00a1-\u200a\u2010-\u2027\u2030-\u205e\u2070-\ud7ff\ue000-\U0010ffff]", text
            )
        return finished

    def predict(self, *more: str, code: int = 0) -> Finished:
        return self.odd("predict", self.model, self.counts, self.images, *PLAIN, "--eps", "0.05", *more, code=code)

    @property
    def names(self) -> list[str]:
        return sorted(path.relative_to(self.images).as_posix() for path in Path(self.images).rglob("*.png"))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, len(CLASSES))).eval()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.jit.script(network).save(str(path))
    return path.read_bytes()


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_file: bytes
) -> Iterator[Place]:
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    found = Place(folder, capsys)
    Path(found.model).write_bytes(model_file)
    counts = {name: 900 // (index + 1) for index, name in enumerate(CLASSES)}
    Path(found.counts).write_text(json.dumps(counts))
    random = np.random.default_rng(0)
    for index in range(2 * len(CLASSES)):
        path = Path(found.images) / (ODD if index % 2 else ".") / f"{IMAGES[index % len(IMAGES)]}{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    with Path(found.labels).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label"])
        # As predict writes them: a class whose name is no UTF-8 could not stand in a CSV else.
        for index, name in enumerate(found.names):
            escaped = name.encode("utf-8", "backslashreplace").decode()
            writer.writerow([escaped, encode_text(CLASSES[index % len(CLASSES)])])
    yield found
    monkeypatch.undo()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_and_what_reads_it(place: Place, suffix: str) -> None:
    """Predictions in every format hold the images' and the classes' own names, and evaluate and verify read them."""
    out = f"{ODD}{suffix}"
    finished = place.predict("-o", out, "--probs", "--json")
    assert json.loads(finished.out)["predictions"] == out
    assert printable(place.model) in finished.err
    found = load_predictions(out, CLASSES)
    assert list(found.images) == place.names
    assert found.probs is not None
    assert found.probs.shape[1] == len(CLASSES)
    beside = run_path(Path(out))
    run = json.loads(beside.read_bytes())
    assert [entry["name"] for entry in run["classes"]] == list(CLASSES)
    assert run["settings"]["model"]["model"] == place.model
    shown = json.loads(place.odd("verify", str(beside), "--json").out)
    assert (shown["predictions"], shown["reproduced"]) == (out, len(place.names))
    shown = json.loads(place.odd("evaluate", out, "--labels", place.labels, "--json").out)
    assert shown["classes"] == list(CLASSES)
    assert list(shown["base"]["per_class"]) == list(CLASSES)


def test_evaluate_shows_classes_as_they_are_called(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, page and plot hold every class name as text: no markup, no formula, no emoji."""
    monkeypatch.setenv("COLUMNS", "120")
    place.predict()
    page, plot = f"{ODD}.html", f"{ODD}.png"
    finished = place.odd("evaluate", "--labels", place.labels, "--report", page, "--plot", plot)
    for name in (
        "nevus [benign]",
        'a"b',
        "c'd",
        "$x_2$",
        "<b>&",
        "=1+1",
        ":mole:",
        "new\\nline",
        "_hidden",
        "caf\\udce9",
    ):
        assert re.search(rf"^ *{re.escape(name)} ", finished.out, flags=re.MULTILINE), name
    assert "melanoma [/in" in finished.out
    assert printable(page) in finished.err
    text = Path(page).read_text(encoding="utf-8")
    assert "<b>&" not in text
    for name in ("nevus [benign]", "$x_2$", "<b>&", ":mole:", "_hidden"):
        assert unescape(text).count(name) >= 4, name  # in tables and in drawings, where names are cut at 18
    assert "melanoma [/in situ]" in text
    assert Path(plot).read_bytes().startswith(b"\x89PNG")


def test_resume_shards_and_merge(place: Place) -> None:
    """Shards, their merging, resuming and failing name such files, and the merged file is that of one run."""
    place.predict("-o", "whole.csv")
    for index in (1, 2):
        place.predict("-o", f"{ODD}{index}.csv", "--shard", f"{index}/2")
    finished = place.odd("merge", f"{ODD}1.csv", f"{ODD}2.csv", "-o", f"{ODD}.csv", "--json")
    assert json.loads(finished.out)["predictions"] == f"{ODD}.csv"
    assert Path(f"{ODD}.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert "had been done before" in place.predict("-o", "whole.csv", "--resume").err
    broken = Path(place.images) / "\x1b[2J\nbroken\udcff.png"
    broken.write_bytes(b"none")
    finished = place.predict("-o", "whole.csv", code=3)
    assert "  failed: \\x1b[2J\\nbroken\\udcff.png: " in finished.err
    place.predict("-o", "whole.csv", "--on-error", "fail", "--no-resume", code=1)
    place.odd("merge", f"{ODD}1.csv", "-o", f"{ODD}.csv", code=1)


def test_inspect_init_and_the_recipe(place: Place) -> None:
    """inspect shows every class in full; a recipe beside the model serves, also where names are terminal commands."""
    finished = place.odd("inspect", place.model, place.counts, *PLAIN)
    for name in CLASSES:
        assert f" {printable(name)} " in finished.out
    shown = json.loads(place.odd("inspect", place.model, place.counts, *PLAIN, "--json").out)
    assert [row["name"] for row in shown["classes"]] == list(CLASSES)
    (refused,) = place.odd("init", place.model, place.counts, *PLAIN, code=1).err.splitlines()
    assert "a name that is not UTF-8, as a recipe is; rename the file" in refused
    assert not Path("imbperturb.toml").exists()
    for name in (place.model, place.counts):
        Path(name).rename(name.replace("\udcff", ""))
    model, counts = (name.replace("\udcff", "") for name in (place.model, place.counts))
    place.odd("init", model, counts, *PLAIN)
    recipe = tomllib.loads(Path("imbperturb.toml").read_text(encoding="utf-8"))["model"]
    assert (recipe["model"], recipe["counts"]) == (model, counts)
    assert printable(model) in place.odd("predict", place.images).err
    Path("imbperturb.toml").rename(f"{ODD}.toml")
    assert f"recipe: {printable(ODD)}.toml" in place.odd("predict", place.images, "--recipe", f"{ODD}.toml").err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt2"])
def test_every_kind_of_model_file(place: Place, checkpoint: dict[str, torch.Tensor], suffix: str) -> None:
    """A model file is loaded whatever its name, and no note or table takes that for more than a name."""
    path = ODD + suffix
    if suffix == ".pth":
        torch.save(checkpoint, path)
    elif suffix == ".safetensors":
        Path(path).write_bytes(save(checkpoint))
    else:
        network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).eval()
        with Path(path).open("wb") as stream:
            torch.export.save(torch.export.export(network, (torch.rand(2, 3, 4, 4),)), stream)
    Path(place.counts).write_text(json.dumps({name: 9 + len(name) for name in CLASSES[:4]}))
    shown = json.loads(place.odd("inspect", path, place.counts, *PLAIN, "--json").out)
    assert shown["model"]["path"] == path
    assert place.odd("inspect", path, place.counts, *PLAIN).out.startswith(f"model         {printable(path)} ")


def test_tune_eps(place: Place) -> None:
    """tune-eps names the smallest class in table, plot and page, and writes JSON that is valid."""
    files = (f"{ODD}.tune.json", f"{ODD}.png", f"{ODD}.html")
    command = ["tune-eps", place.model, place.counts, "--val", place.images, "--labels", place.labels, *PLAIN]
    command += ["--folds", "2", "--repeats", "2", "--eps-grid", "0.01,0.1", "-o", files[0]]
    finished = place.odd(*command, "--plot", files[1], "--report", files[2])
    assert "SCR (caf\\udce9)" in finished.out
    assert "caf\\udce9" in Path(files[2]).read_text(encoding="utf-8")
    written = json.loads(Path(files[0]).read_bytes())
    assert written["choice"] == json.loads(place.odd(*command, "--json").out)["choice"]
    assert written["smallest_class"] == CLASSES[-1]


def test_compare(place: Place) -> None:
    """Compare names files and classes so, too, on stdout and in its files."""
    files = (f"{ODD}.compare.json", f"{ODD}.html")
    command = ["compare", place.model, place.counts, "--val", place.images, "--labels", place.labels, *PLAIN]
    command += [
        "--methods",
        "none,perturb,la",
        "--eps-grid",
        "0.01",
        "--tau-grid",
        "1",
        "--folds",
        "2",
        "--repeats",
        "2",
    ]
    finished = place.odd(*command, "-o", files[0], "--report", files[1])
    assert "recall of caf\\udce9, the class" in " ".join(finished.out.split())
    assert printable(files[0]) in finished.err
    shown = json.loads(place.odd(*command, "-o", files[0], "--json").out)
    assert shown["smallest_class"] == json.loads(Path(files[0]).read_bytes())["smallest_class"] == CLASSES[-1]


def test_counts_of_class_folders(place: Place) -> None:
    """counts gives back the names of class folders, whatever their bytes, and labels of such folders fit them."""
    names = sorted(name for name in CLASSES if "/" not in name)
    for name in names:
        folder = Path(f"{ODD} train") / name
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "1.png")
    Image.new("RGB", (4, 4)).save(folder / "2.png")
    finished = place.odd("counts", f"{ODD} train")
    assert list(json.loads(finished.out)) == names
    assert printable(ODD) in place.odd("counts", f"{ODD} train", "-o", f"{ODD}.new.json").err
    written = json.loads(Path(f"{ODD}.new.json").read_bytes())
    assert list(written) == names
    place.odd("inspect", place.model, f"{ODD}.new.json", *PLAIN, code=1)  # a class is missing


def test_demo_writes_into_such_a_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Demo names its folder harmlessly; its commands are those of the other tests."""
    monkeypatch.setattr("imbalance_perturb.cli.demo.COMMANDS", ())
    finished = place.odd("demo", f"{ODD} demo")
    assert f"{printable(ODD)} demo: a small network" in finished.out
    place.odd("demo", f"{ODD} demo", code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", f"{ODD}no", f"{ODD}no", f"{ODD}no"),
        ("evaluate", f"{ODD}no", "--labels", f"{ODD}no"),
        ("tune-eps", f"{ODD}no", f"{ODD}no", "--val", f"{ODD}no"),
        ("compare", f"{ODD}no", f"{ODD}no", "--val", f"{ODD}no"),
        ("inspect", f"{ODD}no", f"{ODD}no"),
        ("inspect", f"{ODD}.pt", f"{ODD}.json", "--recipe", f"{ODD}no"),
        ("init", f"{ODD}no", f"{ODD}no"),
        ("counts", f"{ODD}no"),
        ("merge", f"{ODD}no", "-o", f"{ODD}no.csv"),
        ("verify", f"{ODD}no"),
        ("predict", f"--{ODD}"),
        ("predict", "--loss", ODD, f"{ODD} images"),
        (ODD,),
    ],
)
def test_messages_of_every_command(place: Place, arguments: tuple[str, ...]) -> None:
    """What is not there, or no option, is named in one line of printable characters."""
    before = place.run(*arguments)
    assert before.code in (1, 2)
    (line,) = place.odd(*arguments, code=before.code).err.splitlines()
    assert line.startswith("imbperturb: error: ")
    assert "a fault of imbperturb" not in line
    assert "\\x1b[31m\\udcff" in line


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_console_that_lacks_characters(place: Place, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdout is not UTF-8 characters it lacks are escaped, and JSON is UTF-8 all the same."""
    counts = {name: 9 - index for index, name in enumerate(("皮肤", "🙂", "é", *CLASSES[3:]))}
    Path(place.counts).write_text(json.dumps({name: abs(count) + 1 for name, count in counts.items()}))
    shown = []
    for more in ((), ("--json",)):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", streams[0])
            patched.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as ended:
                main(["inspect", place.model, place.counts, *PLAIN, *more])
        assert not ended.value.code
        for stream in streams:
            stream.flush()
        shown.append(streams[0].buffer.getvalue())  # type: ignore[attr-defined]
    assert ("皮肤" if encoding == "utf-8" else "\\u76ae\\u80a4") in shown[0].decode(encoding)
    assert [row["name"] for row in json.loads(shown[1].decode("utf-8"))["classes"]] == list(counts)

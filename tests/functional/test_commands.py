from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from imbalance_perturb import ClassCounts, target_distribution
from tests.functional.conftest import SMALL, Workplace


def python(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **more)  # type: ignore[call-overload,no-any-return]


def test_help_is_quick_and_loads_no_torch() -> None:
    """--help takes under half a second of a core and imports neither torch nor any other large library."""
    seconds = []
    for _ in range(5):
        # Of the processor and the least of five: other tests run beside this one, and the clock is theirs, too.
        start = os.times()
        shown = python("-m", "imbalance_perturb", "--help")
        end = os.times()
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert "predict" in shown.stdout
    loaded = python("-X", "importtime", "-m", "imbalance_perturb", "--help").stderr
    assert "imbalance_perturb.cli.options" in loaded
    large = {"torch", "numpy", "PIL", "scipy", "joblib", "jinja2", "matplotlib", "sklearn", "transformers", "timm"}
    assert not large & {line.split("|")[-1].strip() for line in loaded.splitlines()}
    assert 0 < min(seconds) < 0.5


def test_importing_the_package_loads_no_torch() -> None:
    """import imbalance_perturb loads no torch until a name that needs it is used, and every name is there."""
    code = (
        "import sys, imbalance_perturb as ip; assert 'torch' not in sys.modules;"
        "ip.ClassCounts(('a', 'b'), (2, 1)); assert 'torch' not in sys.modules;"
        "assert all(getattr(ip, name) is not None for name in ip.__all__); assert 'torch' in sys.modules;"
        "print(hasattr(ip, 'nonsense'), 'perturb' in dir(ip))"
    )
    assert python("-c", code).stdout.split() == ["False", "True"]


@pytest.mark.parametrize("command", ["predict", "inspect", "init", "counts", "demo"])
def test_every_command_has_its_help(workplace: Workplace, command: str) -> None:
    """Each command explains itself and ends with exit code 0."""
    finished = workplace.run(command, "--help")
    assert finished.code == 0
    assert f"imbperturb {command}" in finished.out


def test_the_version_is_printed(workplace: Workplace) -> None:
    """--version prints the package's version alone."""
    import imbalance_perturb

    assert workplace.run("--version").out.strip() == imbalance_perturb.__version__


def test_wrong_usage_is_exit_code_2(workplace: Workplace) -> None:
    """Unknown options, missing arguments and values out of range all end with exit code 2."""
    assert workplace.run("predict", "--no-such-option").code == 2
    assert workplace.run("frobnicate").code == 2
    assert "no images are given" in workplace.fails("predict", code=2)
    assert "no model is given" in workplace.fails("inspect", code=2)
    script = ("predict", "model.pth", "counts.json", "images")
    assert "eps is -1.0; expected a number, at least 0" in workplace.fails(*script, "--eps", "-1", code=2)
    assert "loss is 'hinge'" in workplace.fails(*script, "--loss", "hinge", code=2)
    assert "resize is 'big'" in workplace.fails(*script, "--resize", "big", code=2)
    assert "mean is '0.5;0.5'" in workplace.fails(*script, "--mean", "0.5;0.5", code=2)
    assert "preset 'imagnet' is not known" in workplace.fails(*script, "--preset", "imagnet", code=2)
    assert "device is 'tpu'" in workplace.fails(*script, "--device", "tpu", code=2)
    assert "names no format" in workplace.fails(*script, "-o", "p.xlsx")


def test_debug_shows_the_traceback(workplace: Workplace) -> None:
    """--debug, wherever it stands, lets the exception through."""
    from imbalance_perturb.cli.app import main
    from imbalance_perturb.errors import ImageFolderError

    for arguments in (["--debug", "predict", "m", "c", "nowhere"], ["predict", "m", "c", "nowhere", "--debug"]):
        with pytest.raises(ImageFolderError):
            main(arguments)


def test_inspect_shows_the_table(workplace: Workplace) -> None:
    """inspect shows what the file holds, how the trial went, and class -> index -> count -> p*."""
    finished = workplace.run("inspect", "model.pth", "counts.json", *SMALL)
    assert finished.code == 0, finished.err
    for text in ("shufflenet_v2_x0_5", "finite, non-zero at", "same images twice", "p*", "900"):
        assert text in finished.out
    data = json.loads(workplace.run("inspect", "model.pth", "counts.json", *SMALL, "--json").out)
    target = target_distribution(ClassCounts(("a", "b", "c", "d"), (900, 90, 30, 3))).tolist()
    assert [row["target"] for row in data["classes"]] == target
    assert data["model"]["num_classes"] == 4
    alone = json.loads(workplace.run("inspect", "model.pth", *SMALL, "--json").out)
    assert [row["count"] for row in alone["classes"]] == [None] * 4


def test_a_recipe_serves_the_commands(workplace: Workplace) -> None:
    """init writes every setting; predict reads it, says so, and the command line wins over it."""
    made = workplace.run("init", "model.pth", "counts.json", *SMALL, "--eps", "0.05", "--batch-size", "4")
    assert made.code == 0, made.err
    recipe = tomllib.loads(Path("imbperturb.toml").read_text())
    assert recipe["model"]["model"] == "model.pth"
    assert recipe["preprocess"]["resize"] == 32
    assert recipe["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert recipe["debias"]["eps"] == 0.05
    finished = workplace.run("predict", "images")
    assert finished.code == 0, finished.err
    assert "recipe: imbperturb.toml" in finished.err
    run = json.loads(Path("predictions.run.json").read_text())
    assert (run["settings"]["debias"]["eps"], run["execution"]["batch_size"]) == (0.05, 4)
    assert workplace.run("predict", "images", "--eps", "0.01").code == 0
    assert json.loads(Path("predictions.run.json").read_text())["settings"]["debias"]["eps"] == 0.01
    assert "there is a recipe already" in workplace.fails("init", "model.pth", "counts.json", *SMALL)
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "--force").code == 0
    assert tomllib.loads(Path("imbperturb.toml").read_text())["debias"]["eps"] == 0.001


def test_a_recipe_elsewhere_keeps_its_paths(workplace: Workplace) -> None:
    """A recipe in another folder names its files relative to itself and serves from anywhere."""
    Path("recipes").mkdir()
    assert workplace.run("init", "model.pth", "counts.json", *SMALL, "-o", "recipes/r.toml").code == 0
    assert tomllib.loads(Path("recipes/r.toml").read_text())["model"]["model"] == "../model.pth"
    assert workplace.run("predict", "images", "--recipe", "recipes/r.toml").code == 0
    assert "cannot be read" in workplace.fails("predict", "images", "--recipe", "missing.toml", code=2)


def test_the_last_line_names_an_assumption(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """An activation that the file does not show ends the summaries of predict and inspect, until it is said."""
    state = {name: tensor for name, tensor in checkpoint.items() if not name.startswith("fc.")}
    head = torch.nn.Sequential(torch.nn.Linear(1024, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    torch.save({**state, **{f"fc.{name}": tensor for name, tensor in head.state_dict().items()}}, "head.pth")
    predict = ("predict", "head.pth", "counts.json", "images", *SMALL, "-o")
    for command in ((*predict, "a.csv"), ("inspect", "head.pth", "counts.json", *SMALL)):
        assert "--head-activation relu|gelu" in workplace.run(*command).err.splitlines()[-1]
    said = workplace.run(*predict, "b.csv", "--head-activation", "relu")
    assert said.code == 0
    assert "--head-activation" not in said.err
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    run = json.loads(Path("b.run.json").read_text())
    assert run["settings"]["model"]["head_activation"] == "relu"
    assert workplace.run(*predict, "c.csv", "--head-activation", "tanh").code == 0
    assert Path("c.csv").read_bytes() != Path("b.csv").read_bytes()


def test_the_models_class_names_hold(workplace: Workplace, checkpoint: dict[str, torch.Tensor]) -> None:
    """COUNTS in another order than the model's names are refused by every command; a bare list takes the names."""
    torch.save({"state_dict": checkpoint, "class_to_idx": {"b": 0, "a": 1, "c": 2, "d": 3}}, "named.pth")
    for command in (("predict", "named.pth", "counts.json", "images"), ("inspect", "named.pth", "counts.json")):
        message = workplace.fails(*command, *SMALL)
        assert "counts.json: the classes are in another order than the model's" in message
        assert "here: a, b, c, d; there: b, a, c, d" in message
    Path("list.json").write_text("[900, 90, 30, 3]")
    assert workplace.run("predict", "named.pth", "list.json", "images", *SMALL).code == 0
    run = json.loads(Path("predictions.run.json").read_text())
    assert [row["name"] for row in run["classes"]] == ["b", "a", "c", "d"]
    assert {line.split(",")[3] for line in Path("predictions.csv").read_text().splitlines()[1:]} <= set("abcd")
    images = [line.split(",")[0] for line in Path("predictions.csv").read_text().splitlines()[1:]]
    Path("labels.csv").write_text(
        "image,label\n" + "".join(f"{name},{'abcd'[i % 4]}\n" for i, name in enumerate(images))
    )
    assert workplace.run("evaluate", "--labels", "labels.csv", "--counts", "list.json").code == 0
    alone = json.loads(workplace.run("inspect", "named.pth", *SMALL, "--json").out)
    assert [row["name"] for row in alone["classes"]] == ["b", "a", "c", "d"]


def test_counts_says_its_order_and_reads_it_back(workplace: Workplace) -> None:
    """What counts writes of folders called 0 to 11 is what load_class_counts takes, in the order that it says."""
    for name in range(12):
        Path("train", str(name)).mkdir(parents=True)
        Path("images/0.png").rename(f"train/{name}/x.png") if name == 0 else Path(f"train/{name}/x.png").write_bytes(
            Path("train/0/x.png").read_bytes()
        )
    finished = workplace.run("counts", "train", "-o", "counts.json")
    assert "sorted as text, as torchvision's ImageFolder has it" in finished.err
    assert ": 0, 1, 10, 11, 2" in finished.err
    from imbalance_perturb import load_class_counts

    assert load_class_counts("counts.json").names == tuple(sorted(map(str, range(12))))
    Path("l.csv").write_text("image,label\na,10\nb,2\n")
    finished = workplace.run("counts", "l.csv")
    assert "class-index order by value" in finished.err
    assert "ImageFolder has it" not in finished.err
    assert json.loads(finished.out) == {"2": 1, "10": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "none.pth", "counts.json", "images", "-o", "/proc/x.csv"),
        ("predict", "none.pth", "counts.json", "images", "-o", "/proc/x.parquet"),
        ("tune-eps", "none.pth", "counts.json", "--val", "images", "-o", "/proc/x.json"),
        ("tune-eps", "none.pth", "counts.json", "--val", "images", "--plot", "/proc/x.png"),
        ("tune-eps", "none.pth", "counts.json", "--val", "images", "--report", "/proc/x.html"),
        ("compare", "none.pth", "counts.json", "--val", "images", "-o", "/proc/x.json"),
        ("compare", "none.pth", "counts.json", "--val", "images", "--report", "/proc/x.html"),
        ("evaluate", "none.csv", "--labels", "none.csv", "--report", "/proc/x.html"),
        ("evaluate", "none.csv", "--labels", "none.csv", "--plot", "/proc/x.png"),
        ("counts", "none", "-o", "/proc/x.json"),
        ("init", "none.pth", "counts.json", "-o", "/proc/x.toml"),
        ("merge", "none.csv", "-o", "/proc/x.csv"),
        ("demo", "/proc/x"),
    ],
)
def test_a_place_that_cannot_be_written_is_tried_first(workplace: Workplace, arguments: tuple[str, ...]) -> None:
    """Every command that writes finds out before it works: the other files it is to read are not even looked at."""
    message = workplace.fails(*arguments)
    assert message.startswith("imbperturb: error: /proc/x")
    assert ": cannot be " in message


@pytest.mark.parametrize("name", ["out.run.json", "out.csv", "out.csv.partial", "out.csv.progress"])
def test_what_stands_in_the_way_of_a_run_is_found_first(workplace: Workplace, name: str) -> None:
    """A folder in the place of any of a run's files ends it before the model is looked at."""
    Path(name).mkdir()
    message = workplace.fails("predict", "none.pth", "counts.json", "images", "-o", "out.csv")
    assert message.startswith(f"imbperturb: error: {name}: is ")


def test_a_recipe_that_cannot_be_updated_is_found_first(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """tune-eps tries the recipe that is to get its choice, and only that one."""
    Path("imbperturb.toml").write_text('[model]\nmodel = "none.pth"\ncounts = "counts.json"\n')
    opened = os.open

    def immutable(path: object, flags: int, *more: object, **others: object) -> int:
        if str(path).endswith("imbperturb.toml") and flags & os.O_WRONLY:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        return opened(path, flags, *more, **others)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", immutable)
    message = workplace.fails("tune-eps", "--val", "images")
    assert "imbperturb.toml: cannot be written (Operation not permitted); copy it to a place that can be" in message
    assert "imbperturb.toml" not in workplace.fails("tune-eps", "other.pth", "counts.json", "--val", "images")

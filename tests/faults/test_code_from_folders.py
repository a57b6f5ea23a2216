"""A folder from somebody else: what lies beside the images may ask for code, and nothing of it runs unasked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imbalance_perturb
from imbalance_perturb import __main__
from imbalance_perturb.cli import app
from imbalance_perturb.errors import ArchitectureError, SettingsError
from imbalance_perturb.inference import rerun, verification
from imbalance_perturb.inference.verification import VerifyOptions, verify_run
from imbalance_perturb.models import load_classifier
from imbalance_perturb.models.formats.trust import importable_from_here
from tests.biased import PLAIN, Biased, write_biased
from tests.faults.test_model_files import RunsCode
from tests.functional.conftest import Workplace
from tests.functional.test_merge import change_run

HELPERS = """
import os
from tests.faults.test_code_from_folders import Net
os.makedirs({mark!r}, exist_ok=True)
def build(num_classes):
    return Net(num_classes)
"""
FILES = ("model.pth", "counts.json")
FACTORY = ("--factory", "helpers:build")


class Net(nn.Module):
    """A network of nobody's architecture."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.odd = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x.mean(dim=(2, 3)))


@pytest.fixture
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mark") / "it-ran"


@pytest.fixture
def place(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Workplace:
    """A folder with images, a model that only ``helpers.py`` beside it can build, and its counts."""
    write_biased(tmp_path)
    torch.save(Net(2).state_dict(), tmp_path / "model.pth")
    (tmp_path / "helpers.py").write_text(HELPERS.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helpers", raising=False)
    yield Workplace(tmp_path, capsys)
    sys.modules.pop("helpers", None)


def write_recipe(name: str = "imbperturb.toml", model: str = "model.pth", **entries: object) -> None:
    lines = [f'model = "{model}"', 'counts = "counts.json"']
    lines += [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in entries.items()]
    Path(name).write_text("[model]\n" + "\n".join(lines) + '\n[preprocess]\npreset = "none"\n[run]\nworkers = 0\n')


# ---- recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["imbperturb.toml", "theirs.toml"])
@pytest.mark.parametrize("command", ["inspect", "predict val", "tune-eps --val val", "compare --val val"])
@pytest.mark.parametrize(
    ("entry", "asked", "option"),
    [
        ({"factory": "helpers:build"}, "factory = 'helpers:build'", "--factory helpers:build"),
        ({"trust_model_file": True}, "trust-model-file = true", "--trust-model-file"),
        ({"trust_model_file": "0" * 64}, "trust-model-file = '000", "--trust-model-file"),
    ],
)
def test_a_recipe_cannot_grant_code(
    place: Workplace, mark: Path, command: str, recipe: str, entry: dict[str, object], asked: str, option: str
) -> None:
    """Every command that loads a model refuses a recipe that asks for code, naming file, entry and option."""
    write_recipe(recipe, **entry)
    given = [] if recipe == "imbperturb.toml" else ["--recipe", recipe]
    message = place.fails(*command.split(), *given, code=2)
    assert f"{recipe}: {asked}" in message
    assert option in message
    assert not mark.exists()
    assert "helpers" not in sys.modules


def test_the_command_line_grants_a_recipes_factory(place: Workplace, mark: Path) -> None:
    """The same recipe runs the factory once the command line names it: the test above tests something."""
    write_recipe(factory="helpers:build")
    finished = place.run("inspect", *FACTORY)
    assert finished.code == 0, finished.err
    assert mark.exists()


def test_another_network_on_the_command_line_answers_a_recipes_factory(place: Workplace, mark: Path) -> None:
    """Where the command line names another factory or an architecture, the recipe's factory is not imported."""
    write_recipe(factory="helpers:build")
    Path("mine.py").write_text("from tests.faults.test_code_from_folders import Net as build\n")
    assert place.run("inspect", "--factory", "mine:build").code == 0
    sys.modules.pop("mine")
    assert "do not fit --arch resnet18" in place.fails("inspect", "--arch", "resnet18")
    assert not mark.exists()


def test_an_option_to_type_is_quoted(place: Workplace) -> None:
    """A recipe cannot bring a user to paste a second command, or terminal commands, with the option."""
    write_recipe(factory="a:b; touch \x1b[31m pasted")
    assert "--factory 'a:b; touch \\x1b[31m pasted'" in place.fails("inspect", code=2)


def test_a_command_without_a_model_reads_such_a_recipe(place: Workplace, mark: Path) -> None:
    """`evaluate`, which takes the counts from a recipe and loads no model, goes on, and no code runs."""
    assert place.run("predict", "model.pt", "counts.json", "val", *PLAIN).code == 0
    Path("predictions.run.json").unlink()
    write_recipe(factory="helpers:build", trust_model_file=True)
    assert place.run("evaluate", "--labels", "val").code == 0
    assert not mark.exists()


@pytest.fixture
def unsafe(place: Workplace, mark: Path) -> Path:
    """A model file that runs code when it is loaded without the guard."""
    torch.save({"model": Biased(), "extra": RunsCode(mark)}, "unsafe.pt")
    return Path("unsafe.pt")


def test_the_guard_can_be_kept_on(place: Workplace, unsafe: Path, mark: Path) -> None:
    """An explicit no loads the file with the guard on: no word about the recipe, and a safe file loads."""
    write_recipe(model="unsafe.pt", trust_model_file=True)
    message = place.fails("inspect", "--no-trust-model-file")
    assert "unsafe.pt: this pickle needs code to load" in message
    write_recipe(model="model.pt", trust_model_file=True)
    assert place.run("inspect", "--no-trust-model-file").code == 0
    assert not mark.exists()


def test_init_writes_down_what_was_trusted(place: Workplace, unsafe: Path, mark: Path) -> None:
    """`init --trust-model-file` binds trust to the file's bytes, and each later run has to grant it again."""
    finished = place.run("init", "unsafe.pt", "counts.json", "--trust-model-file", *PLAIN)
    assert finished.code == 0, finished.err
    assert "--trust-model-file" in finished.err
    written = tomllib.loads(Path("imbperturb.toml").read_text())["model"]
    assert written["trust_model_file"] == sha256(unsafe.read_bytes()).hexdigest()
    mark.rmdir()
    assert "--trust-model-file" in place.fails("inspect", code=2)
    assert not mark.exists()
    assert place.run("inspect", "--trust-model-file").code == 0
    assert mark.exists()


def test_another_file_in_the_place_of_the_trusted_one_is_refused(place: Workplace, unsafe: Path, mark: Path) -> None:
    """With the option, too, only the file that the recipe's hash is of is loaded without the guard."""
    assert place.run("init", "unsafe.pt", "counts.json", "--trust-model-file", *PLAIN).code == 0
    shutil.copy(unsafe, "other.pt")
    mark.rmdir()
    torch.save({"model": Biased(), "extra": RunsCode(mark), "more": 1}, unsafe)
    for named in ((), ("./unsafe.pt",)):
        message = place.fails("inspect", *named, "--trust-model-file")
        assert "unsafe.pt: this is not the file that was trusted" in message
    assert not mark.exists()
    # The hash is not of a file that the command line names instead.
    assert place.run("inspect", "other.pt", "--trust-model-file").code == 0
    assert mark.exists()


def test_tuning_writes_its_eps_beside_a_hash(place: Workplace) -> None:
    """A recipe with what was trusted gets the chosen eps all the same, and its hash stays."""
    torch.save(Biased(), "pickled.pt")
    assert place.run("init", "pickled.pt", "counts.json", "--trust-model-file", *PLAIN).code == 0
    before = tomllib.loads(Path("imbperturb.toml").read_text())["model"]
    tune = ("tune-eps", "--val", "val", "--eps-grid", "0.01,0.05,0.2", "--repeats", "2", "--trust-model-file")
    finished = place.run(*tune)
    assert finished.code == 0, finished.err
    after = tomllib.loads(Path("imbperturb.toml").read_text())
    assert after["debias"]["eps"] == 0.05
    assert after["model"] == before


@pytest.mark.parametrize("trust", ["yes", "", 3, "A" * 64])
def test_trust_of_another_form_is_refused(place: Workplace, trust: object) -> None:
    """Neither a word nor a number switches the guard off."""
    write_recipe(model="model.pt", trust_model_file=trust)
    assert "trust_model_file is" in place.fails("inspect", "--trust-model-file", code=2)


# ---- run files -------------------------------------------------------------------------------------------------


@pytest.fixture
def predicted(place: Workplace, mark: Path) -> Path:
    """The run file of a run with a factory."""
    assert place.run("predict", *FILES, "val", *PLAIN, *FACTORY).code == 0
    del sys.modules["helpers"]
    mark.rmdir()
    return Path("predictions.run.json")


def test_a_run_file_cannot_grant_its_factory(place: Workplace, predicted: Path, mark: Path) -> None:
    """`verify` takes a factory from its own command line only, and refuses a run file's with the option."""
    message = place.fails("verify", str(predicted), code=2)
    assert "predictions.run.json: factory = 'helpers:build'" in message
    assert "--factory helpers:build" in message
    with pytest.raises(SettingsError, match="factory"):
        verify_run(predicted)
    assert not mark.exists()
    finished = place.run("verify", str(predicted), *FACTORY)
    assert finished.code == 0, finished.err
    assert mark.exists()


def test_a_run_file_cannot_grant_trust(place: Workplace, unsafe: Path, mark: Path) -> None:
    """What a run was trusted with, its verification has to be trusted with again."""
    assert place.run("predict", "unsafe.pt", "counts.json", "val", *PLAIN, "--trust-model-file").code == 0
    mark.rmdir()
    assert "--trust-model-file" in place.fails("verify", "predictions.run.json")
    assert not mark.exists()
    assert place.run("verify", "predictions.run.json", "--trust-model-file").code == 0
    assert mark.exists()


def test_a_factory_of_another_run_is_not_looked_for_beside_its_file(
    place: Workplace, predicted: Path, mark: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    """From another folder, ``helpers.py`` beside the run file or the model is not found even where it is granted."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ArchitectureError, match="'helpers' is not found"):
        verify_run(place.folder / predicted, VerifyOptions(factory="helpers:build"))
    with pytest.raises(ArchitectureError, match="'helpers' is not found"):
        load_classifier(place.folder / "model.pth", factory="helpers:build")
    assert not mark.exists()


@pytest.mark.parametrize("what", ["model", "counts"])
def test_a_file_that_is_replaced_after_its_check_is_not_verified(
    place: Workplace, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `verify` computes with are the files whose hashes it has checked."""
    assert place.run("predict", "model.pt", "counts.json", "val", *PLAIN).code == 0
    module = rerun if what == "model" else verification
    find = getattr(module, f"find_{what}")

    def find_and_replace(*arguments: Any) -> str:
        found = find(*arguments)
        if what == "model":
            torch.jit.script(Biased().eval()).save(found, _extra_files={"other": b"bytes"})
        else:
            Path(found).write_text(json.dumps({"common": 900, "rare": 31}))
        return found

    monkeypatch.setattr(module, f"find_{what}", find_and_replace)
    assert "was replaced while it was read" in place.fails("verify", "predictions.run.json")


# ---- where modules are looked for ------------------------------------------------------------------------------


def test_the_current_folder_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Granted code finds modules of the current folder, but none in the place of an installed one."""
    for name in ("cmd", "only_here"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with importable_from_here():
        import cmd

        import only_here  # type: ignore[import-not-found]

        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before
    assert only_here.mine
    assert not hasattr(cmd, "mine")
    del sys.modules["only_here"]


def test_a_pickles_modules_are_not_those_beside_the_images(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted pickle that names an installed module gets that one, not its namesake in the current folder."""
    source = f"import os\nos.mkdir({str(mark)!r})\nclass Cmd: pass\n"
    (tmp_path / "cmd.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    import cmd

    torch.save({"model": Biased(), "extra": cmd.Cmd}, "m.pt")
    monkeypatch.delitem(sys.modules, "cmd")
    assert load_classifier("m.pt", trust_model_file=True).info.num_classes == 2
    assert not mark.exists()


def test_an_architecture_from_a_recipe_loads_no_other_file(place: Workplace) -> None:
    """timm's builder would load, or download, other files that an option of --arch names: unchecked ones."""
    for option in ("checkpoint_path=other.pth", "pretrained=true", "cache_dir=here"):
        write_recipe(arch=f"timm:resnet18,{option}")
        assert f"leave out {option.partition('=')[0]}" in place.fails("inspect")


# ---- every command in a folder full of traps -------------------------------------------------------------------

#: Modules that Python, the tests' runner or the commands import, or might.
TRAPS = (
    "helpers", "sitecustomize", "usercustomize", "conftest", "torch", "torchvision", "numpy", "PIL", "scipy", "sklearn",
    "matplotlib", "typer", "click", "rich", "shellingham", "tomlkit", "safetensors", "timm", "pydicom", "pyarrow",
    "pandas", "defusedxml", "threadpoolctl", "google", "triton", "setuptools", "readline", "multiprocessing", "random",
)  # fmt: skip
TRAP = "import os\nos.makedirs(os.path.join({marks!r}, __name__), exist_ok=True)\ndef build(num_classes): pass\n"

#: Tells which files of the folder a process opens; found by PYTHONPATH before any trap of this name.
WATCH = """
import os, sys
_folder, _log = os.environ["WATCHED"] + os.sep, os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND)
def _watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(_folder):
            os.write(_log, os.fsencode(path[len(_folder):]) + b"\\n")
sys.addaudithook(_watch)
"""

#: Commands one after the other in one process, which begins as ``python -m imbalance_perturb`` does.
ALL = """
import json, sys
from imbalance_perturb.__main__ import leave_current_folder
assert sys.path[0] == ""
leave_current_folder()
from imbalance_perturb.cli.app import main
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(json.dumps(codes))
"""

COMMANDS = (
    ("counts", "val", "-o", "out/counts.json"),
    ("init", "model.pt", "counts.json", "-o", "out/recipe.toml"),
    ("inspect",),
    ("predict", "val", "--workers", "2", "-o", "out/predictions.csv"),
    ("predict", "val", "--shard", "1/2", "-o", "out/1.csv"),
    ("predict", "val", "--shard", "2/2", "-o", "out/2.csv"),
    ("merge", "out/1.csv", "out/2.csv", "-o", "out/merged.csv"),
    ("verify", "out/merged.run.json"),
    ("evaluate", "out/predictions.csv", "--labels", "val", "--report", "out/e.html", "--plot", "out/e.png"),
    ("tune-eps", "--val", "val", "--repeats", "2", "-o", "out/t.json", "--report", "out/t.html", "--plot", "out/t.png"),
    ("compare", "--val", "val", "--repeats", "2", "-o", "out/c.json", "--report", "out/c.html"),
)


class Trapped:
    """A folder of images with a trap for every import beside them, and what came of running something in it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.marks, self._root = folder, root / "marks", root
        for made in (self.marks, root / "watch", folder / "out"):
            made.mkdir()
        (root / "watch" / "sitecustomize.py").write_text(WATCH)
        self._log = root / "log"
        self._log.touch()
        write_biased(folder)
        for name in TRAPS:
            (folder / f"{name}.py").write_text(TRAP.format(marks=str(self.marks)))
        for name in ("pyproject.toml", "setup.cfg", "pytest.ini", ".env", "matplotlibrc", "torch.pth", "typer.toml"):
            (folder / name).write_text("[tool]\n")
        (folder / "matplotlibrc").write_text("figure.facecolor: red\n")

    def run(self, *command: str, watched: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the folder, with the package importable from wherever these tests have it."""
        package = str(Path(imbalance_perturb.__file__).parents[1])
        paths = [str(self._root / "watch"), package] if watched else [package]
        environment = os.environ | {"WATCHED": str(self.folder), "WATCH_LOG": str(self._log)}
        environment.pop("PYTHONSAFEPATH", None)
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"} | more
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def run_all(self, commands: Sequence[Sequence[str]]) -> list[int]:
        """The exit codes of commands run in the folder."""
        done = self.run("-c", ALL, json.dumps(commands))
        assert done.returncode == 0, done.stderr
        codes: list[int] = json.loads(done.stdout.splitlines()[-1])
        assert len(codes) == len(commands)
        return codes

    def opened(self) -> set[str]:
        """Files of the folder, beside images and what the commands wrote, that were opened."""
        names = set(self._log.read_text().splitlines())
        # A recipe that is written anew is another file until it is whole.
        return {name for name in names if not name.startswith(("val/", "out/")) and "imbperturb.toml." not in name}

    def marked(self) -> list[str]:
        return sorted(path.name for path in self.marks.iterdir())


@pytest.fixture
def trapped(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Trapped:
    return Trapped(tmp_path, tmp_path_factory.mktemp("watching"))


def test_every_command_in_a_folder_of_traps(trapped: Trapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands do their work among modules and settings of other programs, and open none of them."""
    monkeypatch.chdir(trapped.folder)
    write_recipe(model="model.pt")
    assert trapped.run_all(COMMANDS) == [0] * len(COMMANDS)
    assert trapped.marked() == []
    # The folder of the results is opened, too, for its names to be on the disk.
    assert trapped.opened() <= {"imbperturb.toml", "model.pt", "counts.json", "out"}
    assert {"imbperturb.toml", "model.pt", "counts.json"} <= trapped.opened()
    assert (trapped.folder / "out" / "e.png").stat().st_size > 0


def test_every_command_with_a_recipe_that_asks_for_code(trapped: Trapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the recipe names the folder's own code, commands refuse it, or have no use for it, and none runs."""
    monkeypatch.chdir(trapped.folder)
    write_recipe(model="model.pt", factory="helpers:build", trust_model_file=True)
    # Those that read no recipe, or nothing of a model from it, and what those need that are refused.
    free = [*COMMANDS[:2], ("predict", "--recipe", "out/recipe.toml", "val", "-o", "out/predictions.csv")]
    asking = [command for command in COMMANDS if command[0] in ("inspect", "predict", "tune-eps", "compare")]
    assert trapped.run_all([*free, COMMANDS[8], *asking]) == [0] * 4 + [2] * len(asking)
    assert trapped.marked() == []
    assert trapped.opened() <= {"imbperturb.toml", "model.pt", "counts.json", "out"}


def test_python_m_does_not_import_from_the_folder(trapped: Trapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m imbalance_perturb`` and an empty entry of PYTHONPATH put the folder in the way; both are undone."""
    monkeypatch.chdir(trapped.folder)
    write_recipe(model="model.pt")
    package = str(Path(imbalance_perturb.__file__).parents[1])
    # Python itself imports the traps of these names before any of the package's code runs.
    for name in ("sitecustomize", "usercustomize"):
        (trapped.folder / f"{name}.py").unlink()
    done = trapped.run("-m", "imbalance_perturb", "inspect", watched=False, PYTHONPATH=f":{package}")
    assert done.returncode == 0, done.stderr
    assert trapped.marked() == []


def test_processes_that_a_command_starts_do_not_either(
    place: Workplace, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that are started afresh begin as ``python -c`` does, which would look in the current folder first."""
    started = []

    def start() -> None:
        command = [sys.executable, "-c", "import helpers"]
        started.append(subprocess.run(command, capture_output=True, text=True, check=False))

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    start()
    assert started.pop().stderr.count("No module named 'helpers'") == 0
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # to be put back after the test
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(app, "main", start)
    shutil.rmtree(mark, ignore_errors=True)
    __main__.run()
    assert "No module named 'helpers'" in started.pop().stderr
    assert not mark.exists()


def test_the_traps_would_have_sprung(trapped: Trapped) -> None:
    """Python run in the folder without such care imports from it: the tests above test something."""
    trapped.run("-m", "torch")
    trapped.run("-c", "import numpy, helpers, conftest")
    trapped.run("-c", "", watched=False, PYTHONPATH=":")
    trapped.run("-c", "import matplotlib", PYTHONSAFEPATH="1")
    assert {"__main__", "numpy", "helpers", "conftest", "sitecustomize"} <= set(trapped.marked())
    assert {"numpy.py", "helpers.py", "matplotlibrc"} <= trapped.opened()


def test_granted_code_beside_the_images_runs(trapped: Trapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one trap that the command line names does spring, and no other: the current folder is looked at last."""
    monkeypatch.chdir(trapped.folder)
    torch.save(Net(2).state_dict(), "model.pth")
    write_recipe(factory="helpers:build")
    assert trapped.run_all([("inspect", *FACTORY)]) == [1]  # it builds nothing
    assert trapped.marked() == ["helpers"]


# ---- a run file that was changed -------------------------------------------------------------------------------


def test_a_factory_written_into_a_run_file_does_not_run(place: Workplace, mark: Path) -> None:
    """A run file that somebody gave a factory of theirs is refused before anything is imported."""
    assert place.run("predict", "model.pt", "counts.json", "val", *PLAIN).code == 0
    settings = json.loads(Path("predictions.run.json").read_text())["settings"]["model"]
    change_run("predictions.run.json", "settings", model=settings | {"factory": "helpers:build"})
    assert "--factory helpers:build" in place.fails("verify", "predictions.run.json", code=2)
    assert not mark.exists()

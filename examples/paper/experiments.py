"""One cell of Table 2: a folder in which a network is trained, then corrected and scored by the commands of users.

    settings.json        what was asked for      train.csv validation.csv test.csv official.csv   image,label,group
    log.csv              an epoch a line         model.safetensors counts.json imbperturb.toml    what the commands take
    tune-eps.json        eps by the validation part
    test-paper.csv       predictions at the paper's eps      official-paper.csv
    test-tuned.csv       at the eps of tune-eps              official-tuned.csv
    figure3-eps.json figure3-temperature.json     eps and T swept on the test part, where asked for
    compare.json         all methods, chosen on the validation part and scored on the test part
    seconds.json         what each stage took

A file under its final name is whole, a stage whose file is there is done: a run that was cut off goes on where it was.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from examples.paper.datasets import DataSet, Table
from examples.paper.folders import locked
from examples.paper.folds import Split, split
from examples.paper.settings import Machine, Settings
from examples.paper.training import train
from examples.paper.trainings import COSINE_HEADS
from imbalance_perturb.files.writing import open_whole, write_json, write_whole

REPOSITORY = Path(__file__).resolve().parents[2]

# Figure 3: MCR against eps in [0, 0.01] at T = 1000, and against T at the paper's eps; 0 is always tried.
SWEEPS = {
    "figure3-eps": ["--eps-grid", "0.0001,0.0002,0.0005,0.001,0.0015,0.002,0.003,0.005,0.007,0.01"],
    "figure3-temperature": ["--eps-grid", "0.001", "--temperatures", "1,10,100,1000,10000,100000"],
}
LATER = ("compare", *SWEEPS)  # when Table 2 has all its rows


@dataclass(frozen=True)
class Experiment:
    """Settings with the images they are about."""

    settings: Settings
    data: DataSet
    out: Path
    pretrained: str
    figure3: bool = False

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.settings.folder(self.out)

    @cached_property
    def split(self) -> Split:
        """Its training, validation and test images."""
        chosen = self.settings
        return split(self.data, chosen.fold, chosen.folds, chosen.validation_parts, chosen.limit)

    def stages(self) -> dict[str, Path]:
        """Stages in their order, each with the file that says it is done."""
        names = {
            "train": "model.safetensors",
            "tune": "tune-eps.json",
            "test-paper": "test-paper.csv",
            "test-tuned": "test-tuned.csv",
        }
        if self.scores_official:
            names |= {"official-paper": "official-paper.csv", "official-tuned": "official-tuned.csv"}
        names |= {"compare": "compare.json"}
        if self.figure3:
            names |= {stage: f"{stage}.json" for stage in SWEEPS}
        return {stage: self.folder / name for stage, name in names.items()}

    @property
    def scores_official(self) -> bool:
        """Whether there is a test set beside the folds."""
        return self.data.folded and self.data.official is not None

    def left(self) -> list[str]:
        """Stages that are not done."""
        return [stage for stage, path in self.stages().items() if not path.exists()]

    def run(self, machine: Machine, report: Callable[[str], None], later: bool = False) -> None:
        """Do what is left: what Table 2 is of, or what is `later`. Where another process is at work, that is said."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock") as mine:
            if not mine:
                report("another process is at work here")
                return
            self.prepare()
            for stage in self.left():
                if (stage in LATER) != later:
                    continue
                begun = time.perf_counter()
                report(f"{stage} ...")
                if stage == "train":
                    self.train(machine, report)
                else:
                    self.command(stage, machine)
                    note_seconds(self.folder / "seconds.json", stage, time.perf_counter() - begun)

    def prepare(self) -> None:
        """settings.json, which must be the same as before, and the tables that commands read."""
        wanted = json.loads(json.dumps(asdict(self.settings)))
        path = self.folder / "settings.json"
        if path.exists():
            there = json.loads(path.read_text())
            other = [name for name in wanted if there.get(name) != wanted[name]]
            if other:
                name = other[0]
                raise SystemExit(
                    f"{self.folder}: made with {name} {there.get(name)}, now {wanted[name]}; give another --out"
                )
            return
        parts = self.split
        counts = np.bincount(parts.train.labels, minlength=len(self.data.classes))
        tables = {"train": parts.train, "validation": parts.validation, "test": parts.test}
        if self.scores_official:
            assert self.data.official is not None
            tables["official"] = self.data.official
        for name, table in tables.items():
            write_table(self.folder / f"{name}.csv", table, self.data.classes)
        lines = "".join(
            f"{key} = {json.dumps(value)}\n" for key, value in self.data.preprocess(self.settings.size).items()
        )
        write_whole(self.folder / "imbperturb.toml", f"[preprocess]\n{lines}".encode())
        named = {name: int(n) for name, n in zip(self.data.classes, counts, strict=True)}
        write_json(self.folder / "counts.json", named)
        write_json(path, wanted)

    def train(self, machine: Machine, report: Callable[[str], None]) -> None:
        """Train the network, or go on with it."""
        train(self.folder, self.data, self.split.train, self.settings, machine, self.pretrained, report)

    def command(self, stage: str, machine: Machine) -> None:
        """Run the `imbperturb` command of a stage in the folder."""
        grouped = ["--group", "group"] if self.data.train.groups and self.settings.folds == "group" else []
        common = [*self.network(), "--device", machine.device, "--quiet"]
        if stage == "tune":
            imbperturb(self.folder, "tune-eps", *common, "--val", "validation.csv", *grouped)
        elif stage in SWEEPS:
            # With a recipe of its own: what is best on the test part must never become the eps that predict takes.
            shutil.copy(self.folder / "imbperturb.toml", self.folder / "figure3.toml")
            sweep = ["--val", "test.csv", *grouped, *SWEEPS[stage], "--repeats", "1", "--recipe", "figure3.toml"]
            imbperturb(self.folder, "tune-eps", *common, *sweep, "-o", f"{stage}.json")
        elif stage == "compare":
            images = ["--val", "validation.csv", "--test", "test.csv", *grouped]
            imbperturb(self.folder, "compare", *common, *images, "--methods", self.settings.methods, "--no-recipe")
        else:
            images, which = stage.split("-")
            eps = self.data.eps if which == "paper" else self.tuned_eps()
            imbperturb(self.folder, "predict", *common, f"{images}.csv", "--eps", repr(eps), "-o", f"{stage}.csv")

    def network(self) -> list[str]:
        """MODEL COUNTS, and how the model is built where its tensors do not say it."""
        cosine = self.settings.training in COSINE_HEADS
        factory = ["--factory", f"examples.paper.networks:cosine_{self.settings.backbone}"] if cosine else []
        return ["model.safetensors", "counts.json", *factory]

    def tuned_eps(self) -> float:
        """The eps of tune-eps; 0 where it believes in none."""
        return float(json.loads((self.folder / "tune-eps.json").read_text())["choice"]["eps"])


def imbperturb(folder: Path, *words: str) -> None:
    """Run a command in a folder; its one line of error ends the run."""
    search = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "imbalance_perturb", *words]
    environment = {**os.environ, "PYTHONPATH": search}  # --factory names a module of this program
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: imbperturb {' '.join(words)} ended with {done.returncode}")


def write_table(path: Path, table: Table, classes: tuple[str, ...]) -> None:
    """image,label and, where ids exist, group."""
    with open_whole(path) as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", *(["group"] if table.groups else [])])
        for i, image in enumerate(table.images):
            writer.writerow([image, classes[table.labels[i]], *([table.groups[i]] if table.groups else [])])


def note_seconds(path: Path, stage: str, seconds: float) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**known, stage: round(seconds, 1)})

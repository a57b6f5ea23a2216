from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from imbalance_perturb.cli.demo import COMMANDS
from imbalance_perturb.data.demo_files import write_demo
from imbalance_perturb.errors import OutputFileError


def test_the_demo_runs_the_real_commands(tmp_path: Path) -> None:
    """imbperturb demo writes its folder, runs every command in it and shows what came out, within a minute."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What lies where the demonstration is started is not imported, there or by the commands that it starts.
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')\n")
    command = [sys.executable, "-m", "imbalance_perturb", "demo", "here"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    # In seconds of the processor, which does not depend on what else the machine is doing: two cores for a minute.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
    for each in COMMANDS:
        assert f"$ imbperturb {each.arguments[0]}" in shown.stdout
    folder = tmp_path / "here"
    with (folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "labels.csv").open(newline="") as stream:
        labels = {row["image"]: row["label"] for row in csv.DictReader(stream)}
    assert [row["image"] for row in rows] == sorted(labels)
    assert len(rows) == 540
    assert not any(row["error"] for row in rows)
    run = json.loads((folder / "predictions.run.json").read_text())
    assert run["model"]["arch"] == "shufflenet_v2_x0_5"
    assert run["settings"]["debias"]["eps"] == tomllib.loads((folder / "imbperturb.toml").read_text())["debias"]["eps"]
    # The network is a real one: it reads digits it has not seen, plain and corrected.
    for column in ("base_pred", "pred"):
        right = sum(row[column] == labels[row["image"]] for row in rows)
        assert right / len(rows) > 0.8
    # What evaluate printed is of these very rows.
    mcr = (
        sum(
            sum(row["base_pred"] == name for row in rows if labels[row["image"]] == name) / 54
            for name in set(labels.values())
        )
        / 10
    )
    assert f"{mcr:.4f}" in shown.stdout


def test_the_demo_leaves_a_used_folder_alone(tmp_path: Path) -> None:
    """A folder with something in it is refused by name, and nothing in it is touched."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputFileError, match="is there already and not empty"):
        write_demo(tmp_path)
    with pytest.raises(OutputFileError, match="is there already and not empty"):
        write_demo(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

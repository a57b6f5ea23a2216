"""The runner and the report: the whole way at a small size, cut off and gone on with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats
from sklearn.metrics import recall_score
from typer import Typer
from typer.testing import CliRunner

from examples.paper import experiments, report, results
from examples.paper.datasets import skin7
from examples.paper.experiments import Experiment
from examples.paper.folders import locked
from examples.paper.run import main
from examples.paper.settings import Machine, Schedule, Settings
from imbalance_perturb.cli.app import main as imbperturb

ROOT = Path(__file__).resolve().parents[2]


def an_experiment(data: Path, out: Path, training: str = "drs", epochs: int = 2) -> Experiment:
    schedule = Schedule(epochs=epochs, warmup=0.5, decay_every=1, defer=0.5)
    settings = Settings(
        "skin7", "mobilenet_v2", training, 0, "group", 32, "none", 0, 4, None, "fp32", "none,la", schedule
    )
    return Experiment(settings, skin7(data), out, "none")


class CutOff(Exception):
    """What a power cut is to the program."""


def test_a_training_cut_off_goes_on_to_the_same_weights(small_skin7: Path, tmp_path: Path) -> None:
    """After an epoch, and its state file, comes the next one, bit for bit as if nothing had happened."""
    weights = {}
    for name in ("whole", "cut"):
        experiment = an_experiment(small_skin7, tmp_path / name)
        experiment.folder.mkdir(parents=True)
        experiment.prepare()

        def cut(text: str, name: str = name) -> None:
            if name == "cut" and text.startswith("epoch 1"):
                raise CutOff

        try:
            experiment.train(Machine(), cut)
        except CutOff:
            assert not (experiment.folder / "model.safetensors").exists()
            an_experiment(small_skin7, tmp_path / name).train(Machine(), print)
        weights[name] = load_file(experiment.folder / "model.safetensors")
        with (experiment.folder / "log.csv").open(newline="") as stream:
            assert [row["late"] for row in csv.DictReader(stream)] == ["0.0", "1.0"]
        assert not (experiment.folder / "state.pt").exists()
    assert all(np.array_equal(weights["whole"][key], weights["cut"][key]) for key in weights["whole"])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def in_this_process(folder: Path, *words: str) -> None:
    """What the runner does in a process of its own; here torch is loaded."""
    with chdir(folder), pytest.raises(SystemExit) as ended:
        imbperturb(list(words))
    assert not ended.value.code


def run(*words: object) -> str:
    app = Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_whole_way(small_skin7: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LDAM, whose head needs a factory: trained, tuned, predicted, compared, swept and reported; not done twice."""
    monkeypatch.setattr(experiments, "imbperturb", in_this_process)
    words = [
        *("--data", small_skin7, "--official", small_skin7, "--out", tmp_path, "--backbone", "mobilenet_v2"),
        *("--training", "ldam", "--fold", "0", "--pretrained", "none", "--size", "32", "--epochs", "1"),
        *("--validation-parts", "4", "--device", "cpu", "--methods", "none,la", "--figure3", "ldam"),
    ]
    assert "left: train, tune, test-paper" in run(*words, "--list")
    run(*words)
    folder = tmp_path / "skin7" / "mobilenet_v2" / "ldam" / "fold-0"
    assert "done before" in run(*words)
    assert " done" in run(*words, "--list")
    assert set(json.loads((folder / "seconds.json").read_text())) == {
        *("tune", "test-paper", "test-tuned", "official-paper", "official-tuned", "compare"),
        *("figure3-eps", "figure3-temperature"),
    }
    recipe = (folder / "imbperturb.toml").read_text()
    assert "resize = 43" in recipe

    report.main(tmp_path)
    cell = next(iter(results.finished(tmp_path)))
    truth = {row["image"]: row["label"] for row in rows_of(folder / "test.csv")}
    rows = rows_of(folder / "test-paper.csv")
    assert set(truth) == {row["image"] for row in rows}
    recalls = recall_score(
        [truth[r["image"]] for r in rows], [r["pred"] for r in rows], labels=cell.classes, average=None
    )
    assert cell.parts["test-paper"].recalls == pytest.approx(list(recalls))
    assert cell.parts["test-paper"].eps == 0.001
    assert set(cell.sweeps) == {"figure3-eps", "figure3-temperature"}
    text = (tmp_path / "report.md").read_text()
    assert "| skin7 | MobileNetV2 | LDAM | 1 |" in text
    assert f"{100 * recalls.mean():.2f}" in text
    for name in ("figure2.png", "figure3.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_other_settings_need_another_folder(small_skin7: Path, tmp_path: Path) -> None:
    """What lies there is never mixed with what was trained otherwise: one line says what differs."""
    for epochs in (1, 2):
        experiment = an_experiment(small_skin7, tmp_path, epochs=epochs)
        experiment.folder.mkdir(parents=True, exist_ok=True)
        if epochs == 1:
            experiment.prepare()
    with pytest.raises(SystemExit, match=r"made with schedule .*'epochs': 1.* another --out"):
        experiment.prepare()


def test_two_at_work_on_one_folder(small_skin7: Path, tmp_path: Path) -> None:
    """The second one says that another is at work, and leaves the folder alone."""
    experiment = an_experiment(small_skin7, tmp_path)
    experiment.folder.mkdir(parents=True)
    holder = (
        "import sys; from pathlib import Path; from examples.paper.folders import locked\n"
        "with locked(Path(sys.argv[1])) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", holder, str(experiment.folder / "lock")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        said: list[str] = []
        experiment.run(Machine(), said.append)
        assert said == ["another process is at work here"]
        assert not (experiment.folder / "settings.json").exists()
        other.communicate()
    with locked(experiment.folder / "lock") as mine:
        assert mine


def test_a_command_that_fails_ends_the_run(tmp_path: Path) -> None:
    """Its own line says what is wrong; the run says which command it was."""
    with pytest.raises(SystemExit, match=r"imbperturb predict none\.pt .* ended with"):
        experiments.imbperturb(tmp_path, "predict", "none.pt", "counts.json", "images")


def test_the_test_over_folds() -> None:
    """With no shared training images the corrected test is SciPy's paired t-test; sharing makes it less sure."""
    differences = np.array([0.02, 0.05, -0.01, 0.03, 0.04])
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert results.corrected_t_test(differences, 0.0) == pytest.approx(expected)
    assert results.corrected_t_test(differences, 0.25) > expected
    assert np.isnan(results.corrected_t_test(differences[:1], 0.25))


def test_the_papers_table() -> None:
    """All 54 rows of Table 2 are there, and in each the paper's correction raises MCR and SCR."""
    rows = report.published()
    assert len(rows) == 54
    assert all(float(row[f"ours_{figure}"]) > float(row[figure]) for row in rows.values() for figure in ("mcr", "scr"))

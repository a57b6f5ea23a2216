"""``--engine ray``: the same bytes as one machine's, whatever is killed; on a cluster of this machine's loopback."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imbalance_perturb as ip
from imbalance_perturb.inference.ray_engine import pool, ray_rows
from imbalance_perturb.inference.ray_engine.cluster import _on_loopback
from imbalance_perturb.predictions.progress_file import ahead_path, rows_path
from tests.conftest import ROOT
from tests.faults.kill_runs import command_line
from tests.functional.conftest import Finished, Workplace
from tests.functional.slow_network import DEADLY, SECONDS, SlowNetwork

ray = pytest.importorskip("ray", reason="needs Ray (the extra ray)")

pytestmark = [
    pytest.mark.ray,
    # Ray's own, of this release.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

#: Images; one is white, three are broken, one has a name that is not UTF-8.
IMAGES = 300

FACTORY = ("--factory", "tests.functional.slow_network:build")
COMMAND = (
    "predict", "model.pth", "counts.json", "images", *FACTORY, "--resize", "32", "--crop", "32", "--batch-size", "4",
    "--workers", "0",
)  # fmt: skip
ON_RAY = ("--engine", "ray", "--ray-worker-cpus", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, counts and images."""
    made = tmp_path_factory.mktemp("cluster")
    torch.manual_seed(0)
    network = SlowNetwork(4)
    torch.nn.init.normal_(network.last.weight, std=0.3)
    torch.save(network.state_dict(), made / "model.pth")
    (made / "counts.json").write_text(json.dumps({"a": 900, "b": 90, "c": 30, "d": 3}))
    (made / "target.json").write_text(json.dumps({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}))
    rng = np.random.default_rng(0)
    (made / "images").mkdir()
    for index in range(IMAGES):
        pixels = np.full((32, 32, 3), 255) if index == 150 else rng.integers(0, 256, (32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(made / "images" / f"{index:04d}.png")
    for index in (3, 77, 200):
        (made / "images" / f"{index:04d}.png").write_bytes(b"broken")
    if sys.platform == "linux":
        (made / "images" / "0010.png").rename(os.fsdecode(bytes(made / "images") + b"/0010-\xff.png"))
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[str]:
    """The address of a cluster for all tests, which listens on this machine's loopback alone."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_worker_niceness", SECONDS, DEADLY)}
    own = {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", SECONDS: "0.02", DEADLY: str(folder / "deadly")}
    os.environ.update(own)
    for left in (2, 1, 0):
        try:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=2,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    object_store_memory=100_000_000,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                )
            break
        except Exception:  # on a busy machine Ray may not be up within the 30 s that it waits
            ray.shutdown()
            if not left:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def place(folder: Path, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Workplace]:
    """The command line in that folder, in this process, which is connected to the cluster."""
    monkeypatch.chdir(folder)
    yield Workplace(folder, capsys)
    for left in (
        *folder.glob("*.csv*"),
        *folder.glob("*.jsonl*"),
        *folder.glob("*.parquet*"),
        *folder.glob("*.run.json"),
    ):
        left.unlink(missing_ok=True)


def without(run: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in names}


def assert_same_run(one: Path, other: Path) -> None:
    """Two run files say the same but for when, how fast and by what it was computed."""
    runs = [json.loads(path.with_suffix(".run.json").read_text()) for path in (one, other)]
    assert runs[1].pop("engine") == {"name": "ray", "version": ray.__version__, "workers": 2, "machines": 1}
    for run in runs:
        run["execution"] = without(run["execution"], "threads", "takes_turns")
        run["settings"]["run"] = {
            name: value for name, value in run["settings"]["run"].items() if not name.startswith(("ray_", "engine"))
        }
    times = ("finished", "seconds", "images_per_second", "predictions")
    assert without(runs[0], *times) == without(runs[1], *times)


def assert_same_bytes(place: Workplace, name: str, *options: str) -> None:
    """A file is that of a run on this machine, and nothing else is left."""
    suffix = Path(name).suffix
    assert place.run(*COMMAND, *options, "-o", f"one{suffix}").code == 3
    assert Path(name).read_bytes() == Path(f"one{suffix}").read_bytes()
    assert not [*place.folder.glob("*.partial*"), *place.folder.glob("*.progress"), *place.folder.glob("*.ahead")]


def test_the_same_bytes_and_run_file(place: Workplace) -> None:
    """Two workers with decoders of their own write what one machine does: close calls, names, errors, run file."""
    options = ("--close-calls-only", "--probs", "--workers", "1")
    finished = place.run(*COMMAND, *options, *ON_RAY, "-o", "many.csv")
    assert finished.code == 3, finished.err
    assert "1 machine: 2 workers with 1 CPU each" in finished.err
    assert "running on CPU" in finished.err
    assert "strength: the step takes" in finished.err
    assert "Traceback" not in finished.err
    assert_same_bytes(place, "many.csv", *options)
    assert b"0010-" in Path("many.csv").read_bytes()
    assert_same_run(Path("one.csv"), Path("many.csv"))


def workers() -> dict[int, bytes]:
    """The processes of workers that predict, as Ray names them."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes()
        except OSError:
            continue
    return {pid: line for pid, line in found.items() if b"ray::Worker.predict" in line}


def kill_one(path: Path, over: threading.Event, killed: list[int]) -> None:
    """Kill a worker that predicts, once there are rows of ``path``."""
    while not (killed or over.is_set()):
        if rows_path(path).exists() and rows_path(path).stat().st_size > 200:
            for pid in list(workers())[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.01)


def test_a_worker_that_is_killed_costs_nothing(place: Workplace) -> None:
    """Its slices go to another, and the file is the same."""
    over, killed = threading.Event(), list[int]()
    thread = threading.Thread(target=kill_one, args=(Path("many.csv"), over, killed))
    thread.start()
    finished = place.run(*COMMAND, *ON_RAY, "-o", "many.csv")
    over.set()
    thread.join()
    assert killed
    assert finished.code == 3, finished.err
    assert_same_bytes(place, "many.csv")


def test_the_leading_process_may_end(place: Workplace, cluster: str) -> None:
    """Killed, the run goes on without Ray; stopped by Ctrl-C it goes on with it: the same bytes each time."""
    on_ray = (*ON_RAY, "--ray-address", cluster)
    with command_line(place.folder) as run:
        ended = run(*COMMAND, *on_ray, "-o", "killed.jsonl", kill_when="killed.jsonl")
        assert ended.code == -signal.SIGKILL, ended.err
        assert "rows of a run that did not end" in place.run(*COMMAND, "-o", "killed.jsonl").err
        assert "images had been done before" in place.run(*COMMAND, "-o", "killed.jsonl", "--resume").err
        assert_same_bytes(place, "killed.jsonl")
        ended = run(*COMMAND, *on_ray, "-o", "stopped.jsonl", kill_when="stopped.jsonl", number=signal.SIGINT)
    assert ended.code == 1, ended.err
    assert "error: stopped by SIGINT after " in ended.err
    assert "the same command with --resume goes on" in ended.err
    assert "Traceback" not in ended.err
    finished = place.run(*COMMAND, *ON_RAY, "-o", "stopped.jsonl", "--resume")
    assert "images had been done before" in finished.err
    assert Path("stopped.jsonl").read_bytes() == Path("one.jsonl").read_bytes()


def test_a_slice_that_ends_its_process_is_given_up(place: Workplace) -> None:
    """After three tries one line names the images and the machine; once it is put right the rest is done."""
    Path("deadly").touch()
    finished = place.run(*COMMAND, *ON_RAY, "-o", "many.csv")
    Path("deadly").unlink()
    assert finished.code == 1
    *_, last = finished.err.splitlines()
    assert last.startswith("imbperturb: error: images 0")
    assert "the process that predicts them ended 3 times, on 127.0.0.1 (out of memory?)" in last
    assert "go on with --resume" in last
    assert ahead_path(Path("many.csv")).stat().st_size > 0  # what came after it, and is not lost
    finished = place.run(*COMMAND, *ON_RAY, "-o", "many.csv", "--resume")
    assert finished.code == 3, finished.err
    assert_same_bytes(place, "many.csv")


def test_failures_are_counted_in_the_order_of_the_list(place: Workplace) -> None:
    """The image that is one too many is that of a run on one machine."""
    found: list[Finished] = [
        place.run(*COMMAND, "--max-failures", "1", "-o", f"{name}.csv", *engine)
        for name, engine in (("one", ()), ("many", (*ON_RAY, "--ray-workers", "1")))
    ]
    assert [finished.code for finished in found] == [1, 1]
    lines = [finished.err.splitlines()[-1].replace("many.csv", "one.csv") for finished in found]
    assert lines[0] == lines[1]
    assert "0077.png" in lines[0]


def test_shards_are_merged_to_one_run(place: Workplace) -> None:
    """Two parts of the list on a cluster, merged, are the file of one machine; the recipe may name the engine."""
    Path("imbperturb.toml").write_text('[run]\nengine = "ray"\nray-worker-cpus = 1\n')
    for part in ("1/2", "2/2"):
        finished = place.run(*COMMAND, "--shard", part, "-o", f"part{part[0]}.parquet")
        assert finished.code == 3, finished.err
        assert "2 workers with 1 CPU each" in finished.err
    Path("imbperturb.toml").unlink()
    assert place.run("merge", "part1.parquet", "part2.parquet", "-o", "many.parquet").code == 3
    assert "engine" not in json.loads(Path("many.parquet.run.json").read_text())
    assert_same_bytes(place, "many.parquet")


@pytest.mark.parametrize("kind", ["version", "folder"])
def test_another_kind_of_machine_is_refused(place: Workplace, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """One line names the machine and the version that differs, or the folder it does not see; nothing is written."""
    if kind == "version":
        grow = pool.WorkerPool.grow

        def of_another(self: pool.WorkerPool, workers: int, task: Any, scouted: Any) -> None:
            versions = replace(scouted.machine["versions"], pillow="0.1")
            grow(self, workers, task, replace(scouted, machine=scouted.machine | {"versions": versions}))
            # Else the first may be through with all before the second has been heard.
            ray.wait([member.joining for member in self._members[1:]], timeout=300)

        monkeypatch.setattr(pool.WorkerPool, "grow", of_another)
        expected = "this machine of the cluster would make other rows than 127.0.0.1; different: Pillow (0.1 on"
    else:
        make_task = ray_rows._make_task

        def elsewhere(*arguments: Any) -> Any:
            return replace(make_task(*arguments), root=Path("/nowhere"))

        monkeypatch.setattr(ray_rows, "_make_task", elsewhere)
        expected = "/nowhere: none of its first 100 images is there on 127.0.0.1"
    finished = place.run(*COMMAND, *ON_RAY, "-o", "many.csv")
    assert finished.code == 1
    assert expected in finished.err.splitlines()[-1]
    assert not Path("many.csv").exists()


class Heard(ip.Progress):
    """What is told of the cluster."""

    def __init__(self) -> None:
        self.done, self.most, self.loaded_from = 0, 0, ""

    def loaded(self, pipeline: ip.LoadedPipeline) -> None:
        self.loaded_from = pipeline.model.path

    def advance(self, n: int) -> None:
        self.done += n

    def workers(self, at_work: int, wanted: int) -> None:
        self.most = max(self.most, at_work)


def test_as_a_library(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """``predict_folder(..., engine="ray")`` settles eps as one machine does; model and counts are at no shared path."""
    monkeypatch.syspath_prepend(str(ROOT))
    settings = ip.Settings(
        model=ip.ModelSettings(model="model.pth", counts="counts.json", factory="tests.functional.slow_network:build"),
        preprocess=ip.PreprocessSettings(resize=32, crop=32),
        debias=ip.DebiasSettings(eps="auto"),
        run=ip.RunSettings(workers=0, batch_size=4, ray_workers=1),
    )
    heard = Heard()
    summary = ip.predict_folder(settings, "images", "many.csv", progress=heard, engine="ray")
    assert (summary.total, summary.failed, heard.done, heard.most) == (IMAGES, 3, IMAGES, 1)
    assert heard.loaded_from == "model.pth"
    ip.predict_folder(settings, "images", "one.csv")
    assert Path("many.csv").read_bytes() == Path("one.csv").read_bytes()
    runs = [json.loads(Path(f"{name}.run.json").read_text()) for name in ("one", "many")]
    assert runs[0]["strength"] == runs[1]["strength"]
    assert runs[1]["model"]["path"] == "model.pth"
    pipeline = ip.load_pipeline(settings, ip.find_images("images"))
    with pytest.raises(ip.SettingsError, match="give settings, not a pipeline"):
        ip.predict_folder(pipeline, "images", engine="ray")

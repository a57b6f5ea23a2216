"""The parts of the speed benchmarks that can be checked without measuring anything."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from imbalance_perturb import ClassCounts, PerturbedClassifier, target_distribution
from imbalance_perturb.config.settings import PreprocessSettings, RunSettings
from imbalance_perturb.data.preprocessing import select_preprocessing
from imbalance_perturb.inference.decoding.workers import in_slices, iter_decoded
from imbalance_perturb.inference.execution import select_execution

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"
CPU = torch.device("cpu")

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a benchmark as running it does: beside its neighbours."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def network() -> nn.Module:
    """Small, smooth, with batch norm."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32, 3)).eval()


COUNTS = ClassCounts(("a", "b", "c"), (100, 20, 5))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_finds_what_it_measures(load: Load, name: str) -> None:
    """Every benchmark's imports are there: none is run here, so nothing else would say that a name has moved."""
    assert load(name).__doc__


def test_every_contender_is_measured_once_a_round_in_changing_order(load: Load) -> None:
    """In each round each contender runs once; the order is not always the same; answers are kept."""
    ran: list[str] = []
    contenders = {name: lambda name=name: ran.append(name) or name for name in "abcd"}
    measured = load("measuring").alternate(contenders, 6, CPU)
    rounds = [ran[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert all(len(own.seconds) == 6 and own.found == [name] * 6 for name, own in measured.items())


def test_ratios_are_of_medians_with_the_range_within_rounds(load: Load) -> None:
    """The ratio is median over median; its range is that of the rounds' own ratios."""
    measuring = load("measuring")
    own, unit = measuring.Measured([2.0, 4.0, 30.0]), measuring.Measured([1.0, 4.0, 10.0])
    assert measuring.ratios(own, unit) == (1.0, 1.0, 3.0)


def test_a_section_replaces_its_own_text_and_nothing_else(load: Load, tmp_path: Path) -> None:
    """Written once a section is added at the end; written again it is replaced where it stands."""
    measuring, path = load("measuring"), tmp_path / "RESULTS.md"
    path.write_text("# Measured\n\nby hand\n")
    measuring.write_section("speed", "Speed", ["old"], path)
    path.write_text(path.read_text() + "\n## After\n")
    measuring.write_section("speed", "Speed", ["new", "| a |"], path)
    text = path.read_text()
    assert text.startswith("# Measured\n\nby hand\n\n<!-- speed: begin -->\n\n## Speed (20")
    assert text.endswith(")\n\nnew\n| a |\n\n<!-- speed: end -->\n\n## After\n")
    assert "old" not in text


def test_a_section_without_its_end_is_refused(load: Load, tmp_path: Path) -> None:
    """Where the end marker is gone nobody can say what to replace: the file is left alone."""
    path = tmp_path / "RESULTS.md"
    path.write_text("<!-- speed: begin -->\nby hand\n")
    with pytest.raises(SystemExit, match="without '<!-- speed: end -->'"):
        load("measuring").write_section("speed", "Speed", ["new"], path)
    assert path.read_text() == "<!-- speed: begin -->\nby hand\n"


def test_the_command_is_written_without_the_users_paths(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into RESULTS.md names no folder of whoever ran it."""
    monkeypatch.setattr(sys, "argv", ["/home/x/benchmarks/speed.py", "--shared", "/home/x/data", "--write"])
    found = load("measuring").command_line((Path("/home/x/data"), "SHARED"))
    assert found == "python benchmarks/speed.py --shared SHARED"


def test_a_table_is_markdown(load: Load) -> None:
    """Words on the left, figures on the right."""
    found = load("measuring").table(("name", "ms"), [("a", "1.0")])
    assert found == ["| name | ms |", "| --- | ---: |", "| a | 1.0 |"]


def test_contenders_that_could_not_run_have_a_row_that_says_so(load: Load) -> None:
    """A peer that is missing, and low precision on a device without, are never left out in silence."""
    speed, peers, measuring = load("speed"), load("peers"), load("measuring")
    missing = peers.Peer("nobody's step", "no-such-thing", "no_such_thing", peers.authors_loop, "")
    same, other = (speed.Answer(preds) for preds in ([0, 1, 2, 2], [0, 1, 2, 0]))
    measured = {
        speed.PLAIN: measuring.Measured([4.0], [other]),
        speed.OPTIMISED: measuring.Measured([1.0], [other]),
        "authors' loop": measuring.Measured([12.0], [other]),
        "ours, auto": measuring.Measured([3.8], [same._replace(recomputed=1)]),
    }
    expected = speed.Expected([other], [same])
    found = speed.Found("resnet50", measured, expected, 4, CPU, (peers.AUTHORS, missing))
    table = {row[0]: row[1:] for row in speed.rows(found)}
    assert table["nobody's step"][0] == "not installed"
    assert table["ours, bf16"][0] == "no fast bf16 on this device"
    assert table[speed.PLAIN] == ["1000.0", "1.00", "1.00-1.00", "", "4/4", "", ""]
    assert table["authors' loop"] == ["3000.0", "3.00", "3.00-3.00", "", "3/4", "4/4", ""]
    assert table["ours, auto"] == ["950.0", "0.95", "0.95-0.95", "<= 0.9, MISSED", "4/4", "3/4", "25.0%"]
    assert list(speed._against_peers(measured)) == [
        "Throughput of `auto`: 3.2 times that of authors' loop (asked: 2.5, met)."
    ]


def test_each_contender_answers_from_a_process_of_its_own(load: Load) -> None:
    """Processes are asked for the same request in a round, keep what they have built, and burn nothing meanwhile."""
    processes = load("processes")
    with processes.Team(_count_calls, ["a", "b"], 10, threads=1) as team:
        measured = team.take_turns(3)
        assert [worker.notes for worker in team.workers.values()] == [["a is ready"], ["b is ready"]]
        assert team.idle_share < 0.5
    pids = {name: {pid for pid, _, _ in own.found} for name, own in measured.items()}
    assert all(len(own) == 1 for own in pids.values())
    assert len(pids["a"] | pids["b"] | {os.getpid()}) == 3
    assert [answer[1:] for answer in measured["a"].found] == [(1, 10), (2, 11), (3, 12)]
    assert all(seconds < 5 for seconds in measured["a"].seconds)
    assert not any(worker.process.is_alive() for worker in team.workers.values())


def test_a_process_that_cannot_build_its_contender_ends_the_run(load: Load) -> None:
    """The error is one line that names the contender, and no process is left over."""
    with pytest.raises(SystemExit, match="b ended with 1"):
        load("processes").Team(_count_calls, ["a", "b"], "no number", threads=1)


def _count_calls(name: str, start: int | str) -> object:
    """What such a process builds: its id, how often it was asked, and the request's number on top of ``start``."""
    if name == "b":
        start = int(start)
    calls: list[int] = []

    def run(index: int) -> tuple[int, int, object]:
        calls.append(index)
        return os.getpid(), len(calls), start + index  # type: ignore[operator]

    return importlib.import_module("processes").Ready(run, [f"{name} is ready"])


def test_labels_are_compared_request_by_request(load: Load) -> None:
    """Where all requests are about the same images, each is compared with the one answer that is expected."""
    contenders = load("contenders")
    found = [contenders.Answer([0, 1]), contenders.Answer([0, 2])]
    assert contenders.count_same(found, [contenders.Answer([0, 1])]) == 3
    assert contenders.count_same(found, found) == 4


def test_our_modes_and_the_others_have_the_references_labels(load: Load, network: nn.Module, tmp_path: Path) -> None:
    """Contenders built from a model file as their processes do it come to the labels of the transcription."""
    contenders, peers = load("contenders"), load("peers")
    torch.jit.save(torch.jit.script(network), tmp_path / "model.pt")
    x = torch.randn(80, 3, 16, 16)
    torch.save(([x[:8], x[8:16]], x[16:48], x[16:]), tmp_path / "inputs.pt")
    task = contenders.Task(tmp_path / "model.pt", None, tmp_path / "inputs.pt", COUNTS, 0.5, 4, 8, CPU)
    expected = contenders.expect(task)
    assert contenders.count_same(expected.base, expected.corrected) < 16
    for name in (contenders.PLAIN, contenders.OPTIMISED, peers.AUTHORS.title, "ours, fp32"):
        run = contenders.build(name, task).run
        assert contenders.count_same([run(0), run(1)], expected.labels_of(name)) == 16


@pytest.mark.parametrize("index", range(4))
def test_every_peer_does_the_methods_step(load: Load, network: nn.Module, index: int) -> None:
    """Corrected logits of each peer are those of the package, and the model stays in eval mode."""
    peer = load("peers").PEERS[index]
    if not peer.installed:
        pytest.skip(f"{peer.distribution} is not installed")
    x, target = torch.randn(4, 3, 16, 16), target_distribution(COUNTS).float()
    expected = PerturbedClassifier(network, COUNTS, eps=0.01)(x)
    assert not torch.allclose(expected, network(x), atol=1e-3)
    torch.testing.assert_close(peer.step(network, x, target, 0.01), expected, rtol=0, atol=1e-4)
    assert not network.training


def test_the_reference_has_the_packages_labels(load: Load, network: nn.Module) -> None:
    """The transcription that labels are checked against agrees with the package, for base and corrected."""
    x = torch.randn(40, 3, 16, 16)
    both = PerturbedClassifier(network, COUNTS, eps=0.05).predict_both(x)
    found = load("contenders").written_plainly(network, target_distribution(COUNTS).float(), 0.05, x)
    for own, logits in zip(found, both, strict=True):
        assert torch.equal(own, logits.argmax(1))
    assert not torch.equal(*found)


def test_heads_are_as_confident_as_those_of_trained_networks(load: Load) -> None:
    """On the images that set its scale, the mean top probability of a made-up network is what was asked."""
    subjects = load("subjects")
    pool = subjects.synthetic_pool(80, 64, seed=0)
    model = subjects.make_subject("mobilenet_v3_small", pool)
    with torch.no_grad():
        confidence = torch.softmax(model(pool.x[60:]), dim=1).amax(1).mean().item()
    assert confidence == pytest.approx(subjects.CONFIDENCE, abs=0.01)
    assert not model.training


def test_photographs_of_one_seed_are_the_same(load: Load) -> None:
    """The same seed makes the same pixels, in the size asked for."""
    photograph = load("subjects").photograph
    first, second = (photograph(np.random.default_rng(3), 45, 60, 2) for _ in range(2))
    assert first.shape == (45, 60, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_batches_from_memory_are_those_from_files(load: Load, tmp_path: Path) -> None:
    """What is computed alone is what the pipeline computes, links to the same file included."""
    pipeline = load("pipeline")
    images = load("subjects").write_photographs(tmp_path / "images", 7, 3, (30, 40))
    assert len(images) == 7
    assert (tmp_path / "images" / "000005.jpg").samefile(tmp_path / "images" / "000002.jpg")
    preprocessing = select_preprocessing(PreprocessSettings(resize=(16, 16), crop="none"))
    execution = select_execution(RunSettings(device="cpu", batch_size=4, workers=0), 7)
    loaded = SimpleNamespace(preprocessing=preprocessing, execution=execution)
    found = list(
        pipeline.FromMemory(loaded, images)(
            images.root, in_slices(images.names, 4), preprocessing, 0, takes_turns=False
        )
    )
    expected = list(iter_decoded(images.root, in_slices(images.names, 4), preprocessing, 0))
    assert [batch.names for batch in found] == [batch.names for batch in expected]
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own.groups[0][1], other.groups[0][1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory of processes is read from /proc")
def test_the_peak_covers_a_process_and_its_children(load: Load) -> None:
    """Memory of a child counts in the tree and not in the main process."""
    hold = "import time; held = bytearray(80 << 20); time.sleep(1)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    peak = load("memory")._peak_of([sys.executable, "-c", nested])
    assert peak.tree > 80
    assert peak.main < 80
    assert os.getpid() in load("memory").family(os.getpid())

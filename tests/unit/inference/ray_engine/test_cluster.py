"""What of a cluster each worker gets."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from imbalance_perturb.config.settings import RunSettings
from imbalance_perturb.errors import ClusterError, SettingsError
from imbalance_perturb.inference.ray_engine.cluster import Share, connected, settle_share


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([node(2)], {}, Share(2, 0.0, 1, 1)),
        ([node(0), node(16), node(8), node(8, alive=False)], {}, Share(8, 0.0, 3, 2)),
        ([node(2)], {"ray_worker_cpus": 1}, Share(1, 0.0, 2, 1)),
        ([node(4), node(32, 4), node(24, 4)], {}, Share(6, 1.0, 8, 2)),
        ([node(4), node(32, 4)], {"device": "cpu"}, Share(4, 0.0, 9, 2)),
        ([node(8, 1)], {"ray_worker_gpus": 0.25}, Share(2, 0.25, 4, 1)),
        ([node(8, 1)], {"ray_workers": 3, "ray_worker_cpus": 2}, Share(2, 1.0, 3, 1)),
    ],
)
def test_a_worker_has_a_machine_or_a_gpu(nodes: list[dict[str, Any]], options: dict[str, Any], expected: Share) -> None:
    """A worker has the CPUs of the smallest machine, or a GPU with its share of them; a head without CPUs has none."""
    assert settle_share(RunSettings(engine="ray", **options), nodes) == expected


def test_what_no_machine_has_is_refused() -> None:
    """A worker for which there is no room would be waited for without end: it is refused, with what there is."""
    with pytest.raises(ClusterError, match=r"no machine of the cluster has 4 CPUs and 1 GPUs .*\(2 CPUs, 0 GPUs\)"):
        settle_share(RunSettings(ray_worker_cpus=4, ray_worker_gpus=1), [node(2)])


def test_a_device_that_ray_assigns_is_refused() -> None:
    """Which GPU a worker has is Ray's choice."""
    with (
        pytest.raises(SettingsError, match="device is cuda:1; Ray assigns GPUs itself"),
        connected(RunSettings(engine="ray", device="cuda:1")),
    ):
        pass


@pytest.mark.ray
def test_an_address_where_nothing_answers_is_refused() -> None:
    """Ray would wait: it is asked first whether anything listens there."""
    pytest.importorskip("ray", reason="needs Ray (the extra ray)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(
                ClusterError, match=f"^{address}: no Ray cluster answers there .*--ray-address names another"
            ),
            connected(RunSettings(engine="ray", ray_address=address)),
        ):
            pass


def test_without_ray_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for it without the extra is told what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install 'imbalance-perturb\[ray\]'"), connected(RunSettings()):
        pass


def test_who_leads_loads_no_torch() -> None:
    """The process that hands out slices and writes rows needs no torch, nor pandas."""
    code = (
        "import sys, imbalance_perturb.inference.ray_engine.ray_rows, imbalance_perturb.inference.folder_prediction;"
        "print({'torch', 'torchvision', 'pandas', 'ray'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"

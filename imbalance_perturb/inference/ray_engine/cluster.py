"""The Ray cluster that a run is spread over: found or started, and what of it each worker gets."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imbalance_perturb
from imbalance_perturb.config.settings import RunSettings
from imbalance_perturb.errors import ClusterError, SettingsError, first_line

#: Seconds that a cluster's address may take to answer.
_PATIENCE = 10

_HOST_PORT = re.compile(r"([\w.-]+):(\d+)")


@dataclass(frozen=True)
class Share:
    """What a worker gets of the cluster, and how many of them there are to be."""

    cpus: int
    gpus: float
    workers: int
    machines: int

    def describe(self, version: str) -> str:
        """Describe it in a line."""
        each = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        machines = f"{self.machines} machine{'s' if self.machines > 1 else ''}"
        return f"Ray {version}, {machines}: {self.workers} worker{'s' if self.workers > 1 else ''} with {each} each"


@contextmanager
def connected(settings: RunSettings) -> Iterator[Any]:
    """Inside: Ray is connected to a cluster; yields the module.

    That is the cluster of ``ray_address``, or of the variable RAY_ADDRESS, or one that runs here, or else one
    of this machine's own, which ends with the block. Where Ray is connected already, that is used and stays.

    Raises:
        SettingsError: if Ray is not installed, or the device is one that Ray assigns.
        ClusterError: if no cluster answers at the address.
    """
    if settings.device.startswith("cuda:"):
        raise SettingsError(f"device is {settings.device}; Ray assigns GPUs itself: use auto or cuda")
    try:
        import ray
    except ImportError:
        raise SettingsError(
            "engine is ray, which is not installed: pip install 'imbalance-perturb[ray]' on every machine"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    # What a hospital computes is nobody's business; for a cluster that runs already its own switch decides.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _away_from_here():
        _connect(ray, settings.ray_address)
    try:
        with _silenced():
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _silenced() -> Iterator[None]:
    """Inside: Ray does not print what it thinks of a lost worker, which it does to stdout, where rows may go."""
    from ray._private import worker

    # A private name, that a later Ray may not have: then it prints.
    before = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    given = address or os.environ.get("RAY_ADDRESS")
    place = _HOST_PORT.fullmatch(given or "")
    on_loopback = place is not None and _answers_on_loopback(place[1], int(place[2]))
    try:
        with _on_loopback() if on_loopback else nullcontext():
            ray.init(address=given or "auto", **({"_node_ip_address": "127.0.0.1"} if on_loopback else {}), **quiet)
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds
        # Where none was named, and none is found, there is one to be made.
        if given or not isinstance(error, ConnectionError):
            raise ClusterError(
                f"{given or 'the Ray cluster of this machine'}: cannot be used ({first_line(error)}); ray status says"
                " whether it runs, and --ray-address names another"
            ) from None
    if not ray.is_initialized():
        # For this machine alone: work has the priority that a run without Ray has, and nothing listens to others.
        os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            with _on_loopback():
                ray.init(address="local", _node_ip_address="127.0.0.1", include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises no narrower one
            raise ClusterError(f"Ray does not start on this machine ({first_line(error)}); try again") from error


def _answers_on_loopback(host: str, port: int) -> bool:
    """Whether what answers at an address does so on the loopback alone, which Ray takes for the machine's own address.

    Raises:
        ClusterError: if nothing answers: Ray itself would wait for it.
    """
    from ray._private import services

    for place in dict.fromkeys((services.resolve_ip_for_localhost(host), host)):
        try:
            socket.create_connection((place, port), _PATIENCE).close()
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return bool(place == host and host.startswith("127."))
    raise ClusterError(
        f"{host}:{port}: no Ray cluster answers there ({reason}); ray status says whether it runs, and --ray-address"
        " names another"
    )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Inside: Ray takes the loopback as it is named, and not for the machine's own address."""
    from ray._private import services

    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


@contextmanager
def _away_from_here() -> Iterator[None]:
    """Inside: the current folder is where this package is installed.

    Ray adds the current folder to where its workers look for modules: a ``torch.py`` among someone's images would be
    imported for torch.
    """
    here = os.getcwd()  # noqa: PTH109 - of which no path is made
    os.chdir(Path(imbalance_perturb.__file__).parents[1])
    try:
        yield
    finally:
        os.chdir(here)


def settle_share(settings: RunSettings, nodes: Sequence[dict[str, Any]]) -> Share:
    """Choose what each worker gets, and how many fit.

    Args:
        settings: what is asked for.
        nodes: the machines, as Ray lists them.

    Raises:
        ClusterError: if no machine has room for such a worker.
    """
    sizes = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    with_gpus = [size for size in sizes if size.get("GPU", 0) > 0]
    gpus = settings.ray_worker_gpus
    if gpus is None:
        gpus = 1.0 if with_gpus and settings.device != "cpu" else 0.0
    able = with_gpus if gpus else sizes
    cpus = settings.ray_worker_cpus
    if cpus is None and able:
        smallest = min(able, key=lambda size: size["CPU"] / (size["GPU"] if gpus else 1))
        shares = max(1.0, smallest["GPU"] / gpus) if gpus else 1.0
        cpus = max(1, int(smallest["CPU"] / shares))
    fits = [min(int(size["CPU"] // (cpus or 1)), int(size["GPU"] // gpus) if gpus else 1 << 30) for size in able]
    machines = sum(fit > 0 for fit in fits)
    if not machines:
        has = "; ".join(f"{size['CPU']:g} CPUs, {size.get('GPU', 0):g} GPUs" for size in sizes) or "no CPUs"
        raise ClusterError(
            f"no machine of the cluster has {cpus or 1} CPUs and {gpus:g} GPUs for a worker ({has}); give less with"
            " --ray-worker-cpus and --ray-worker-gpus, or start more"
        )
    assert cpus is not None
    return Share(cpus, gpus, settings.ray_workers or sum(fits), machines)

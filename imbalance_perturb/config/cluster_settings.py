"""The settings of ``[run]`` that say which machines predict."""

from __future__ import annotations

from dataclasses import dataclass

from imbalance_perturb.config.allowed import Number, Text
from imbalance_perturb.config.declarations import Table, setting

#: What they have in common: rows do not depend on them, and no other command takes them.
_COMMON = {"compared": False, "only": "predict"}


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(Table):
    """Which machines ``predict`` computes on; ``None`` is settled by what the cluster has."""

    engine: str = setting("local", Text(("local", "ray")), "What predicts: this machine, or a Ray cluster:", **_COMMON)
    ray_address: str | None = setting(
        None,
        Text(),
        "Where the cluster is, HOST:PORT, or auto for one that runs here.",
        default_text="RAY_ADDRESS, else one that runs here, else this machine alone",
        **_COMMON,
    )
    ray_workers: int | None = setting(
        None,
        Number(whole=True, at_least=1),
        "Workers on the cluster, each with the model.",
        default_text="as many as fit",
        **_COMMON,
    )
    ray_worker_cpus: int | None = setting(
        None,
        Number(whole=True, at_least=1),
        "CPUs of each worker, for its threads and its decoding processes.",
        default_text="those of the smallest machine, or their share for each GPU",
        **_COMMON,
    )
    ray_worker_gpus: float | None = setting(
        None,
        Number(at_least=0),
        "GPUs of each worker; below 1 workers share one.",
        default_text="1 where there are any",
        **_COMMON,
    )

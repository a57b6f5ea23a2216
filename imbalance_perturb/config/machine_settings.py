"""The settings of the machine that a run takes place on: the beginning of those of ``[run]``."""

from __future__ import annotations

from dataclasses import dataclass

from imbalance_perturb.config.allowed import Number, Text
from imbalance_perturb.config.cluster_settings import ClusterSettings
from imbalance_perturb.config.declarations import setting

#: Seconds that one image may take, unless said otherwise.
IMAGE_TIMEOUT = 60.0


@dataclass(frozen=True, kw_only=True)
class MachineSettings(ClusterSettings):
    """Device, batches and workers; ``batch_size`` and ``workers`` of ``None`` are chosen from the machine."""

    device: str = setting(
        "auto",
        Text(pattern=r"auto|cpu|cuda(:\d+)?", form="auto, cpu, cuda or cuda:N"),
        "auto | cpu | cuda[:N].",
        compared=False,
    )
    batch_size: int | None = setting(
        None,
        Number(whole=True, at_least=1),
        "Images a batch.",
        default_text="measured, or from the image size",
        compared=False,
    )
    workers: int | None = setting(
        None,
        Number(whole=True, at_least=0),
        "Decoding processes; 0 decodes in the main one, where an image may end or hold up the run.",
        default_text="from the cores",
        compared=False,
    )
    image_timeout: float = setting(
        IMAGE_TIMEOUT,
        Number(of="seconds", above=0),
        "Longest that one image may take to be read and decoded, in seconds; then its row says so.",
        compared=False,
    )

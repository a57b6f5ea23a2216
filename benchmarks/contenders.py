"""Who is measured: one function that builds a contender by its name, in the process that it will live in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from ours import MODES, Ours, prepare
from peers import PEERS, TEMPERATURE, Peer, Step
from processes import Ready, Team
from torch import Tensor, nn

from imbalance_perturb.inference.batching import usual_batch_size
from imbalance_perturb.inference.execution import fast_dtype
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.inference.sampling import START
from imbalance_perturb.method.counts import ClassCounts
from imbalance_perturb.method.module_state import full_precision
from imbalance_perturb.method.target import target_distribution

PLAIN, OPTIMISED, OPTIMISED_LOW = "plain eager fp32", "plain optimised fp32", "plain optimised bf16"


class Answer(NamedTuple):
    """Labels of the images of one measurement; of these, how many were ``recomputed`` and ``corrected``."""

    preds: list[int]
    recomputed: int = 0
    corrected: int = 0


class Inputs(NamedTuple):
    """Images (N, C, H, W): request number i of all is about ``timed[i]``; ``settling`` only run through before."""

    timed: list[Tensor]
    settling: Tensor
    calibration: Tensor


@dataclass(frozen=True)
class Task:
    """What every contender of a table is given.

    Args:
        model: a file: a ``state_dict`` of the torchvision network ``arch``, or TorchScript where that is ``None``.
        inputs: a file of :class:`Inputs`.
        batch_size: images that the others take at once.
        together: images that ours are given at once, and take in batches that suit the machine.
    """

    model: Path
    arch: str | None
    inputs: Path
    counts: ClassCounts
    eps: float
    batch_size: int
    together: int
    device: torch.device

    @property
    def target(self) -> Tensor:
        """p* (C,)."""
        return target_distribution(self.counts).float().to(self.device)

    def load_inputs(self) -> Inputs:
        """The images, on the device."""
        timed, settling, calibration = torch.load(self.inputs)
        return Inputs([x.to(self.device) for x in timed], settling.to(self.device), calibration.to(self.device))

    def load_eager(self) -> nn.Module:
        """The network as users have it: parameters ask for gradients, eval mode."""
        if self.arch is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated upstream; users' files are in it
                script: nn.Module = torch.jit.load(self.model, map_location=self.device)
            return script.eval()
        network: nn.Module = torchvision.models.get_model(self.arch, num_classes=len(self.counts))
        network.load_state_dict(torch.load(self.model, map_location="cpu", weights_only=True))
        return network.to(self.device).eval()


def possible(device: torch.device, peers: tuple[Peer, ...]) -> list[str]:
    """Names of the contenders that can run here, in the order of the tables, of the peers these."""
    names = [PLAIN, OPTIMISED, OPTIMISED_LOW]
    names += [peer.title for peer in peers if peer.installed]
    low = fast_dtype(device) is not None
    return [name for name in [*names, *MODES] if low or name not in (OPTIMISED_LOW, "ours, auto", "ours, bf16")]


def gather(task: Task, names: list[str]) -> Team[Answer]:
    """A process for each of them, warm."""
    return Team(build, names, task, threads=torch.get_num_threads())


def build(name: str, task: Task) -> Ready[Answer]:
    """Make a contender ready in this process, and send it through the images that come before any time is taken."""
    inputs = task.load_inputs()
    if name in MODES or name in (OPTIMISED, OPTIMISED_LOW):
        ours = prepare(str(task.model), task.arch, task.counts, task.eps, inputs.calibration, task.device, name)
        step, notes = _ours(ours, name), [ours.path, *ours.notes]
        size = task.together
    else:
        step, notes, size = _theirs(task, name), [], task.batch_size
    # Samples are taken more often among a run's first images: measured is the long run.
    sampled = name in MODES and MODES[name] != ("fp32", False)
    settling = inputs.settling if sampled else inputs.settling[: 2 * size]
    for _ in range(-(-START // len(settling)) if sampled else 1):
        for x in settling.split(size):
            step(x)

    def run(index: int) -> Answer:
        found = [step(x) for x in inputs.timed[index % len(inputs.timed)].split(size)]
        return Answer(
            [label for part in found for label in part.preds],
            sum(part.recomputed for part in found),
            sum(part.corrected for part in found),
        )

    return Ready(run, notes)


def _ours(ours: Ours, name: str) -> Callable[[Tensor], Answer]:
    if isinstance(ours.run, Predictor):
        return lambda x: _answer_of(ours.run, x)  # type: ignore[arg-type]
    network, batch_size = ours.run, ours.batch_size
    # As `predict` does: the batches of others, in parts that suit the machine.
    return lambda x: Answer(torch.cat([network.predict_plain(part) for part in x.split(batch_size)]).argmax(1).tolist())


def _answer_of(predictor: Predictor, x: Tensor) -> Answer:
    found = predictor.predict(x)
    return Answer(found.logits.argmax(1).tolist(), int(found.refined.sum()), int(found.corrected.sum()))


def _theirs(task: Task, name: str) -> Callable[[Tensor], Answer]:
    model = task.load_eager()
    if name == PLAIN:
        step = plain(model)
        return lambda x: Answer(step(x).argmax(1).tolist())
    correct: Step = next(peer.step for peer in PEERS if peer.title == name)
    target = task.target
    return lambda x: Answer(correct(model, x, target, task.eps).argmax(1).tolist())


def plain(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A forward pass as users run it: eager, ``no_grad``, torch's switches as they are."""

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(x)
        return logits

    return step


class Expected(NamedTuple):
    """Labels of the float32 reference for each request, plain and corrected."""

    base: list[Answer]
    corrected: list[Answer]

    def labels_of(self, contender: str) -> list[Answer]:
        """Return the labels that a contender should give."""
        return self.base if contender.startswith("plain") else self.corrected


def expect(task: Task) -> Expected:
    """Compute the labels that the images of every request should get."""
    model = task.load_eager()
    pairs = [written_plainly(model, task.target, task.eps, x) for x in task.load_inputs().timed]
    return Expected([Answer(base.tolist()) for base, _ in pairs], [Answer(both.tolist()) for _, both in pairs])


def written_plainly(model: nn.Module, target: Tensor, eps: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Base and corrected labels by a float32 transcription of the paper, which shares no code with the package."""
    base, corrected = [], []
    with full_precision(x.device):
        for part in x.split(usual_batch_size(x.device.type)):
            leaf = part.detach().clone().requires_grad_(True)
            logits = model(leaf)
            loss = -(target * torch.log_softmax(logits / TEMPERATURE, dim=1)).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            with torch.no_grad():
                corrected.append(model(part - eps * gradient.sign()).argmax(1))
            base.append(logits.detach().argmax(1))
    return torch.cat(base).cpu(), torch.cat(corrected).cpu()


def count_same(found: list[Answer], expected: list[Answer]) -> int:
    """Labels that two contenders have in common, over all requests of the first."""
    pairs = [(one, expected[index % len(expected)]) for index, one in enumerate(found)]
    return sum(a == b for one, other in pairs for a, b in zip(one.preds, other.preds, strict=True))

"""The same correction by other people's code: one function a peer, (model, x, target, eps) -> corrected logits.

Each does the step of Chen et al. 2021, x - eps * sign(∇ℓ) with T = 1000 and cross-entropy to p*, through the interface
that the library offers for a single signed step, and then a plain prediction of the result. Where a library
clips, thresholds or takes labels in place of a distribution, the function says what was set so that its step is
the method's. Install them with ``pip install -r benchmarks/requirements.txt``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 1000.0

Step = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


class Peer(NamedTuple):
    """A contender from outside: ``distribution`` and ``module`` as installed, ``note`` what was set, in words."""

    name: str
    distribution: str | None
    module: str | None
    step: Step
    note: str

    @property
    def installed(self) -> bool:
        """Whether it can be run here."""
        return self.module is None or importlib.util.find_spec(self.module) is not None

    @property
    def word(self) -> str:
        """What it is called on the command line."""
        return self.name.split()[0].rstrip("'")

    @property
    def title(self) -> str:
        """Name and version, as the table has it."""
        if self.distribution is None:
            return self.name
        return f"{self.name} {importlib.metadata.version(self.distribution)}" if self.installed else self.name


def authors_loop(model: nn.Module, x: Tensor, target: Tensor, eps: float) -> Tensor:
    """The paper as its equations stand: a loss at temperature T, backward through every parameter, a second forward.

    Written from the paper; like the loop of its authors, neither pass is told that no parameter will be trained.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.zero_grad()
    x = x.detach().clone().requires_grad_(True)
    softened = torch.softmax(model(x) / TEMPERATURE, dim=1)
    loss = -(target * torch.log(softened)).sum(dim=1).mean()
    loss.backward()
    assert x.grad is not None
    moved = x.detach() - eps * torch.sign(x.grad)
    logits: Tensor = model(moved)
    return logits.detach()


def captum_fgsm(model: nn.Module, x: Tensor, target: Tensor, eps: float) -> Tensor:
    """captum's ``FGSM``, targeted, with the method's loss; its threshold of 1e-6 on the gradient is set to 0.

    At T = 1000 that threshold would leave most elements where they are.
    """
    from captum.robust import FGSM

    fgsm = FGSM(model, loss_func=lambda z, p: F.cross_entropy(z / TEMPERATURE, p, reduction="none"))
    fgsm.zero_thresh = 0.0
    moved = fgsm.perturb(x.detach().requires_grad_(True), eps, target.expand(len(x), -1), targeted=True)
    return _predict(model, moved.detach())


def torchattacks_fgsm(model: nn.Module, x: Tensor, target: Tensor, eps: float) -> Tensor:
    """torchattacks' ``FGSM``, targeted at p* (its loss takes distributions), of the model with T built in.

    It clips to [0, 1]: its own normalisation is set so that the batch's range with eps on either side is [0, 1], hence
    nothing is clipped and the step is eps in units of the input in every channel.
    """
    import torchattacks

    low, high = x.min().item() - eps, x.max().item() + eps
    scale = 1 / (high - low)
    # The library restores the mode it finds: a wrapper in training mode would put the model into it.
    fgsm = torchattacks.FGSM(_Softened(model).eval(), eps=eps * scale)
    fgsm.set_mode_targeted_by_label(quiet=True)
    fgsm.set_normalization_used([-low * scale] * x.shape[1], [scale] * x.shape[1])
    return _predict(model, fgsm(x, target.expand(len(x), -1)))


def pytorch_ood_odin(model: nn.Module, x: Tensor, target: Tensor, eps: float) -> Tensor:
    """pytorch-ood's ODIN preprocessing, towards p* instead of the predicted class."""
    from pytorch_ood.detector import odin_preprocessing

    moved = odin_preprocessing(model, x, y=target.expand(len(x), -1), eps=eps, temperature=TEMPERATURE)
    return _predict(model, moved)


class _Softened(nn.Module):
    """A model whose logits are divided by T, for libraries whose loss knows no temperature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) softened logits."""
        return self.model(x) / TEMPERATURE  # type: ignore[no-any-return]


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


AUTHORS = Peer("authors' loop", None, None, authors_loop, "loss.backward() through all parameters")

PEERS = (
    AUTHORS,
    Peer("captum FGSM", "captum", "captum", captum_fgsm, "threshold on the gradient set to 0"),
    Peer("torchattacks FGSM", "torchattacks", "torchattacks", torchattacks_fgsm, "mapped so that nothing is clipped"),
    Peer("pytorch-ood ODIN", "pytorch-ood", "pytorch_ood", pytorch_ood_odin, "towards p*"),
)

"""The traced graph computes what the correction by autograd does, with forward operators alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb.deployment.proof import FLIPPED, make_trials, prove
from imbalance_perturb.deployment.tracing import Correction, trace
from imbalance_perturb.errors import ModelFileError, ModelGradientError
from imbalance_perturb.method.classifier import PerturbedClassifier
from imbalance_perturb.method.counts import ClassCounts

COUNTS = ClassCounts(("a", "b", "c"), (90, 30, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.Hardswish(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.SiLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Attending(nn.Module):
    """Patches, windows turned round, attention and layer norm: what transformers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        patches = torch.roll(self.patches(x), (1, 1), (2, 3)).flatten(2).transpose(1, 2)
        y = self.norm(patches)
        return self.mlp(patches + self.attention(y, y, y, need_weights=False)[0]).mean(1)  # type: ignore[no-any-return]


def without_gradients(graph: Callable[[Tensor], Sequence[Tensor]]) -> Callable[[Tensor], Sequence[Tensor]]:
    """What a file returns of a graph."""
    return lambda x: graph(x)[:2]


def checked(network: nn.Module, shape: tuple[int, int, int], *, any_size: bool = False, **settings: object) -> float:
    """Trace the correction of a network and prove it; returns the largest difference of a logit."""
    debiased = PerturbedClassifier(network.eval().requires_grad_(False), COUNTS, **settings)  # type: ignore[arg-type]
    trials = make_trials(shape, None, any_size=any_size)
    graph = trace(Correction(network, debiased), trials[0].given, any_size=any_size)
    return prove(graph, without_gradients(graph), debiased, trials).logit_difference


@pytest.mark.parametrize("make", [convolutional, Attending])
def test_networks(make: Callable[[], nn.Module]) -> None:
    """Convolutions of all kinds, pooling and activations; attention, layer norm and GELU."""
    assert checked(make(), (3, 32, 32), eps=0.01) < 1e-5


def test_images_of_any_size() -> None:
    """Strided convolutions and pooling in a graph that knows neither height nor width."""
    assert checked(small(), (3, 16, 16), eps=0.01, any_size=True) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 2, "clip": (-1.0, 1.0), "loss": "mse", "temperature": 1.0, "tau": 0.5},
        {"loss": "focal", "eps": torch.tensor([0.01, 0.02, 0.0]).view(1, 3, 1, 1)},
        {"eps": 0.0, "correction": lambda z: z * torch.tensor([1.0, 2.0, 0.5]) + 1},
    ],
)
def test_corrections(settings: dict[str, object]) -> None:
    """Every loss, steps, bounds, a step for each channel, and what is done to logits; without a step one pass."""
    assert checked(small(), (3, 16, 16), **{"eps": 0.01, **settings}) < 1e-5


def test_what_is_only_autograds_is_refused_by_name() -> None:
    """An operator whose gradient is no forward operator here."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    with pytest.raises(ModelFileError, match="adaptive_max_pool2d_backward"):
        checked(network, (3, 16, 16))


def test_a_batch_that_became_a_constant_is_refused() -> None:
    """A network that is written for one batch size has no graph for any."""

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(5, 3, -1).mean(2)

    with pytest.raises((ModelFileError, ModelGradientError, RuntimeError)):
        checked(Fixed(), (3, 8, 8))


def test_the_proof_finds_what_is_wrong() -> None:
    """Other logits, a step the other way, and a gradient of zeros are each refused."""
    network = small().eval().requires_grad_(False)
    debiased = PerturbedClassifier(network, COUNTS, eps=1e-4)
    trials = make_trials((3, 16, 16), None, any_size=False)
    right = Correction(network, debiased)

    def wrong(change: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[Tensor], list[Tensor]]:
        return lambda x: change(list(right(x)))

    assert prove(right, without_gradients(right), debiased, trials).signs_agreed == 1.0
    for change, message in (
        (lambda found: [found[0] * 1.5, *found[1:]], "logits differ"),
        (lambda found: [found[1], *found[1:]], "moves logits otherwise"),
        (lambda found: [*found[:2], -found[2]], "signs"),
        (lambda found: [*found[:2], found[2] * 0], "the gradient is zero"),
    ):
        with pytest.raises(ModelGradientError, match=message):
            prove(wrong(change), without_gradients(right), debiased, trials)
    with pytest.raises(ModelGradientError, match="the file, batch of 5: the correction moves logits otherwise"):
        prove(right, lambda x: [right(x)[1], right(x)[1]], debiased, trials)
    with pytest.raises(
        ModelGradientError, match="3 signs are taken for 1 steps; a network that takes signs of its own"
    ):
        prove(lambda x: [*right(x), *right(x)[2:], *right(x)[2:]], without_gradients(right), debiased, trials)
    with pytest.raises(ModelGradientError, match="1 signs are taken for 2 steps"):
        prove(right, without_gradients(right), PerturbedClassifier(network, COUNTS, eps=1e-4, steps=2), trials)


def test_signs_next_to_zero() -> None:
    """Where the gradient is next to 0 its sign is rounding's; the logits must be those of the image so moved."""
    network = small().eval().requires_grad_(False)
    debiased = PerturbedClassifier(network, COUNTS, eps=0.1)
    trials = make_trials((3, 16, 16), None, any_size=False)
    right = Correction(network, debiased)

    def flipped(x: Tensor) -> list[Tensor]:
        _, base, gradient = right(x)
        unclear = gradient.abs() < 0.009 * gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        assert unclear.any()
        gradient = torch.where(unclear, -gradient, gradient)
        with torch.no_grad():
            return [network(x - 0.1 * gradient.sign()), base, gradient]

    assert prove(flipped, without_gradients(flipped), debiased, trials).logit_difference < 1e-5
    with pytest.raises(ModelGradientError, match="logits"):
        prove(lambda x: [right(x)[0], *flipped(x)[1:]], without_gradients(flipped), debiased, trials)


def test_a_network_that_magnifies_rounding() -> None:
    """What differs no more than the network's own float32 from its float64 is rounding; more is not."""

    class Cancelling(nn.Module):
        def __init__(self, added: float) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Flatten(), nn.Linear(192, 32))
            self.last, self.added = nn.Linear(32, 3), added

        def forward(self, x: Tensor) -> Tensor:
            return self.last(((self.first(x) + self.added) - self.added).relu())  # type: ignore[no-any-return]

    rounding, exact = (Cancelling(added).eval().requires_grad_(False) for added in (2e5, 0.0))
    exact.load_state_dict(rounding.state_dict())
    debiased = PerturbedClassifier(rounding, COUNTS, eps=0.05)
    trials = make_trials((3, 8, 8), None, any_size=False)
    right = Correction(exact, PerturbedClassifier(exact, COUNTS, eps=0.05))
    proof = prove(right, without_gradients(right), debiased, trials)
    assert proof.logit_difference > 1e-3
    assert proof.signs_agreed is not None
    assert 0.9 < proof.signs_agreed < 1 - FLIPPED
    for factors, message in (((1.5, 1, 1), "logits differ"), ((1, 1, -1), "signs")):
        with pytest.raises(ModelGradientError, match=message):
            prove(
                lambda x, f=factors: [a * z for a, z in zip(f, right(x), strict=True)],
                without_gradients(right),
                debiased,
                trials,
            )


class InPlace(nn.Module):
    """What is changed in place is used again, and so is a view of what is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(nn.functional.relu_(y))
        z += y  # after ReLU, which it was not when it was made
        w = z * 1.5
        half = w[:, :2]
        half.clamp_(-0.2, 0.2)  # changes w, too
        return self.head((w + half.sum(1, keepdim=True)).mean((2, 3)))  # type: ignore[no-any-return]


def test_what_works_in_place() -> None:
    """Nothing does in the graph but on views, and it computes the same."""
    network = InPlace().eval().requires_grad_(False)
    debiased = PerturbedClassifier(network, COUNTS, eps=0.01)
    trials = make_trials((3, 8, 8), None, any_size=False)
    graph = trace(Correction(network, debiased), trials[0].given, any_size=False)
    assert prove(graph, without_gradients(graph), debiased, trials).logit_difference < 1e-5
    operators = [node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    mutating = {str(one) for one in operators if one._schema.is_mutable}
    assert "aten.clamp_.default" in mutating
    assert not mutating & {"aten.relu_.default", "aten.add_.Tensor"}

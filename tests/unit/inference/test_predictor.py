from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from imbalance_perturb import ClassCounts, PerturbedClassifier
from imbalance_perturb.errors import ModelGradientError, SettingsError
from imbalance_perturb.inference.calibration import FEWEST_CALIBRATED, BothWays, Sampled, Shortcuts, settle
from imbalance_perturb.inference.predicted import Predicted
from imbalance_perturb.inference.predictor import Predictor
from imbalance_perturb.inference.sampling import START
from imbalance_perturb.inference.stopwatch import Stopwatch
from imbalance_perturb.predictions.run_state import Tally

COUNTS = ClassCounts(("a", "b", "c", "d"), (900, 300, 90, 10))
FEATURES = 12


class Smooth(nn.Module):
    """A small network whose gradient differs from image to image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(FEATURES, 16, generator=generator, dtype=torch.float64))
        self.last = nn.Parameter(0.6 * torch.randn(16, 4, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first / 2) @ self.last


class Noisy(nn.Module):
    """The same, with errors as rounding makes them: small, the same for the same input, without a pattern."""

    def __init__(self, network: nn.Module, size: float) -> None:
        super().__init__()
        self.network, self.size, self.images = network, size, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        found: Tensor = self.network(x)
        errors = torch.sin(1e4 * x.detach().sum(1, keepdim=True) * torch.arange(1, 5))
        return found + self.size * errors


class NanFor(nn.Module):
    """A network that has no number for images whose first value is above a limit."""

    def __init__(self, network: nn.Module, limit: float) -> None:
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x)
        return found * torch.where(x[:, :1].detach() > self.limit, torch.nan, 1.0)


def inputs(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corrected(network: nn.Module, *, eps: float = 0.02, tau: float = 0.0) -> PerturbedClassifier:
    return PerturbedClassifier(network, COUNTS, eps=eps, tau=tau)


def others(x: Tensor) -> list[Sampled]:
    """Images to calibrate on that are none of the run."""
    return [Sampled(part, [None] * len(part)) for part in x.split(16)]


def predict(predictor: Predictor, x: Tensor, batch: int = 32) -> Predicted:
    if predictor.needs_calibration:
        predictor.calibrate(others(inputs(64, seed=99)), ahead=len(x))
    parts = [predictor.predict(part) for part in x.split(batch)]
    return Predicted(*(torch.cat(found) for found in zip(*parts, strict=True)))


def same_labels(found: Predicted, reference: PerturbedClassifier, x: Tensor) -> tuple[float, float]:
    base, logits = reference.predict_both(x)
    return (
        (found.base.argmax(1) == base.argmax(1)).double().mean().item(),
        (found.logits.argmax(1) == logits.argmax(1)).double().mean().item(),
    )


def test_fp32_is_the_reference_bit_for_bit() -> None:
    """In fp32 the logits are the reference's, nothing is recomputed and nothing sampled."""
    reference, x = corrected(Smooth()), inputs(300)
    predictor = Predictor(reference)
    found = predict(predictor, x, batch=300)
    base, logits = reference.predict_both(x)
    assert torch.equal(found.base, base)
    assert torch.equal(found.logits, logits)
    assert not found.refined.any()
    assert found.corrected.all()
    summary = predictor.summary()
    assert (summary.precision, summary.images, summary.recomputed, summary.sampled) == ("fp32", 300, 0, 0)


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_auto_gives_the_references_labels(tau: float) -> None:
    """With errors that flip labels, auto has the reference's labels, recomputing the close calls alone."""
    network, x = Smooth(), inputs(4000)
    reference, low = corrected(network, tau=tau), corrected(Noisy(network, 0.02), tau=tau)
    assert max(same_labels(Predicted(*low.predict_both(x), x, x), reference, x)) < 0.998
    predictor = Predictor(reference, low, precision="auto")
    found = predict(predictor, x)
    assert min(same_labels(found, reference, x)) >= 0.9995
    summary = predictor.summary()
    assert 0.01 < summary.share_recomputed < 0.2
    assert summary.recomputed == int(found.refined.sum())
    assert (summary.calibrated_on in (16, 32, 48, 64), summary.corrected) == (True, 4000)
    # What was recomputed is the reference's own answer, both halves of it.
    base, logits = reference.predict_both(x[found.refined])
    torch.testing.assert_close(found.base[found.refined], base)
    torch.testing.assert_close(found.logits[found.refined], logits)


def test_larger_errors_recompute_more() -> None:
    """The bounds and the share recomputed grow with the errors of the low precision."""
    network, x = Smooth(), inputs(1000)
    found = []
    for size in (0.001, 0.01, 0.04):
        predictor = Predictor(corrected(network), corrected(Noisy(network, size)), precision="auto")
        predict(predictor, x)
        found.append(predictor.summary())
    for low, high in pairwise(found):
        assert (low.base_bound or 0) < (high.base_bound or 0)
        assert (low.bound or 0) < (high.bound or 0)
        assert low.recomputed < high.recomputed


def test_low_precision_throughout_is_kept_and_measured() -> None:
    """bf16 recomputes nothing, and the sampled agreement is about the true one."""
    network, x = Smooth(), inputs(20_000)
    reference, low = corrected(network), corrected(Noisy(network, 0.1))
    predictor = Predictor(reference, low, precision="bf16")
    assert not predictor.needs_calibration
    found = predict(predictor, x, batch=500)
    assert torch.equal(found.logits, torch.cat([low.predict_both(part)[1] for part in x.split(500)]))
    summary = predictor.summary()
    assert summary.recomputed == 0
    assert 250 < summary.sampled < 450
    true = (found.base.argmax(1) == reference.predict_both(x)[0].argmax(1)) & (
        found.logits.argmax(1) == reference.predict_both(x)[1].argmax(1)
    )
    assert true.double().mean() < 0.97
    assert summary.sampled_agreement == pytest.approx(true.double().mean().item(), abs=0.03)
    assert 1 - true.double().mean() < (summary.disagreement_at_most or 0)
    assert summary.agreed <= summary.base_agreed <= summary.sampled
    assert "--precision fp32" in str(summary.warning)


def test_the_sample_does_not_depend_on_batches() -> None:
    """Whatever the batch size, the same images are sampled, with more of them at the start of the run."""
    network, x = Smooth(), inputs(1000)
    found = []
    for batch in (1, 7, 1000):
        predictor = Predictor(corrected(network), corrected(Noisy(network, 0.05)), precision="bf16")
        predict(predictor, x, batch)
        summary = predictor.summary()
        found.append((summary.sampled, summary.base_agreed, summary.agreed))
    assert found[0] == found[1] == found[2]
    short = Predictor(corrected(network), corrected(network), precision="bf16")
    predict(short, x[:START])
    assert short.summary().sampled >= 8
    other = Predictor(corrected(network), corrected(Noisy(network, 0.05)), precision="bf16", seed=1)
    predict(other, x)
    assert (other.summary().sampled, other.summary().agreed) != found[0][::2]


@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_close_calls_only_gives_the_labels_of_correcting_all(precision: str, tau: float) -> None:
    """The correction of close calls alone has the labels of correcting every image, for a part of the passes."""
    network, x = Smooth(), inputs(4000)
    reference, noisy = corrected(network, tau=tau), Noisy(network, 0.003)
    predictor = Predictor(reference, corrected(noisy, tau=tau), precision=precision, close_calls_only=True)
    found = predict(predictor, x)
    base, logits = reference.predict_both(x)
    assert (reference.adjust(base).argmax(1) != logits.argmax(1)).double().mean() > 0.01
    floor = 0.997 if precision == "bf16" else 0.9995
    assert min(same_labels(found, reference, x)) >= floor
    summary = predictor.summary()
    assert 0.02 < summary.share_corrected < 0.35
    assert summary.corrected == int(found.corrected.sum())
    left = ~found.corrected
    torch.testing.assert_close(found.logits[left], reference.adjust(found.base[left]))
    assert summary.sampled > 40
    assert summary.agreed >= summary.sampled - 1
    if precision == "bf16":
        # 64 and the sample besides: the plain pass of all, a gradient pass and a final one of the close calls.
        assert noisy.images == 4000 + 2 * (summary.corrected + 64)


def test_eps_zero_leaves_nothing_to_correct() -> None:
    """With eps 0 close calls are no matter: no calibration, nothing corrected, labels of the plain model and tau."""
    reference, x = corrected(Smooth(), eps=0.0, tau=0.5), inputs(200)
    predictor = Predictor(reference, close_calls_only=True)
    assert not predictor.needs_calibration
    found = predict(predictor, x)
    assert torch.equal(found.logits, reference.adjust(found.base))
    assert not found.corrected.any()
    low = Predictor(reference, corrected(Noisy(Smooth(), 0.02), eps=0.0, tau=0.5), precision="auto")
    found = predict(low, x)
    assert same_labels(found, reference, x) == (1, 1)
    assert found.refined.any()
    assert low.summary().corrected == 0


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("close_calls_only", [False, True])
def test_too_much_for_low_precision_is_recomputed(precision: str, close_calls_only: bool) -> None:
    """An image for which low precision has no number gets the reference's, and takes no batch mate with it."""
    network, x = Smooth(), inputs(200)
    reference = corrected(network)
    predictor = Predictor(
        reference, corrected(NanFor(network, 1.5)), precision=precision, close_calls_only=close_calls_only
    )
    found = predict(predictor, x)
    over = x[:, 0] > 1.5
    assert over.any()
    assert found.refined[over].all()
    assert found.logits.isfinite().all()
    base, logits = reference.predict_both(x[over])
    torch.testing.assert_close(found.base[over], base)
    torch.testing.assert_close(found.logits[over], logits)


def test_an_image_that_the_reference_cannot_take_is_an_error() -> None:
    """Where the reference has no gradient either, the batch raises, nothing is counted, and others go on alone."""
    network, x = Smooth(), inputs(40)
    reference, low = corrected(NanFor(network, 1.5)), corrected(NanFor(network, 1.5))
    predictor = Predictor(reference, low, precision="bf16")
    over = x[:, 0] > 1.5
    with pytest.raises(ModelGradientError, match="not finite"):
        predictor.predict(x)
    assert predictor.summary().images == 0
    predict(predictor, x[~over])
    assert predictor.summary().images == int((~over).sum())


def test_calibration_passes_over_what_fails() -> None:
    """Images that the reference or low precision cannot take are left out of the calibration, alone."""
    network = Smooth()
    xs = inputs(64, seed=99)
    xs[:, 0] = (2 * xs[:, 0]).round() / 2 + 0.25  # no step crosses a limit
    predictor = Predictor(corrected(NanFor(network, 1.5)), corrected(NanFor(network, 1.0)), precision="auto")
    predictor.calibrate([Sampled(xs, [None] * 64)], ahead=1000)
    assert predictor.summary().calibrated_on == int((xs[:, 0] <= 1.0).sum())


NAMES = [f"{index}.png" for index in range(320)]


def run_of_320(predictor: Predictor, x: Tensor, names: list[str] | None) -> Predicted:
    """Calibrated on 64 of its own images, and predicted with batches of 32."""
    order = torch.randperm(320, generator=torch.Generator().manual_seed(1))[:64].tolist()
    predictor.compared = frozenset(NAMES[index] for index in order)
    drawn = [order[start : start + 16] for start in range(0, 64, 16)]
    predictor.calibrate(
        (Sampled(x[part], [NAMES[index] if names else None for index in part]) for part in drawn), ahead=320
    )
    parts = [
        predictor.predict(x[start : start + 32], names=names and names[start : start + 32])
        for start in range(0, 320, 32)
    ]
    return Predicted(*(torch.cat(found) for found in zip(*parts, strict=True)))


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_calibrated_images_are_rows(tau: float) -> None:
    """What is computed to calibrate is computed once, and rows are those of a run that was calibrated on others."""
    network, x = Smooth(), inputs(320)
    full, low = Noisy(network, 0.0), Noisy(network, 0.01)
    first = Predictor(corrected(full, tau=tau), corrected(low, tau=tau), precision="auto")
    expected = run_of_320(first, x, None)
    before, full.images, low.images = (full.images, low.images), 0, 0
    predictor = Predictor(corrected(full, tau=tau), corrected(low, tau=tau), precision="auto")
    found = run_of_320(predictor, x, NAMES)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    summary, other = predictor.summary(), first.summary()
    calibrated = summary.calibrated_on
    assert 16 <= calibrated <= 64
    # An image's two passes in low precision once, and those in full of the calibrated and of close calls alone.
    assert low.images == 2 * 320
    close = int(found.refined.sum())
    assert summary.recomputed == other.recomputed == close > 0
    assert full.images <= 2 * (calibrated + close + 320 // 32)
    assert before[1] - low.images == 2 * calibrated
    assert (summary.images, summary.corrected) == (other.images, other.corrected) == (320, 320)
    # Those of the calibrated that are no close calls were compared; the others are no images of that run.
    assert summary.sampled - other.sampled == pytest.approx(calibrated * (1 - summary.share_recomputed), abs=6)
    assert summary.agreed == summary.sampled


def test_a_precision_that_is_given_up_has_its_rows() -> None:
    """Where low precision is no use, the calibrated images' rows are those of the full computation, computed once."""
    network, x = Smooth(), inputs(320)
    full = Noisy(network, 0.0)
    reference = corrected(full, eps=0.5)
    predictor = Predictor(reference, corrected(Noisy(network, 2.0), eps=0.5), precision="auto")
    found = run_of_320(predictor, x, NAMES)
    assert full.images == 2 * 320
    torch.testing.assert_close(found.logits, reference.predict_both(x)[1])
    assert (predictor.summary().sampled, predictor.summary().recomputed) == (0, 0)


def test_calibration_ends_where_more_would_cost_more_than_it_saves() -> None:
    """Few images for a short run and more for a long one; more where few of them have most of the error, too."""
    network = Smooth()

    class Rarely(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            hit = (1e4 * x.detach().sum(1, keepdim=True)).cos() > 0.99  # some 5 in 100
            return found + 30 * self.size * hit * torch.tensor([1.0, -1.0, 0.5, -0.5])

    def taken(low: nn.Module, ahead: int) -> int:
        predictor = Predictor(corrected(network), corrected(low), precision="auto")
        batches = iter(others(inputs(256, seed=5)))
        predictor.calibrate(batches, ahead=ahead)
        left = 16 * len(list(batches))
        assert predictor.summary().calibrated_on == 256 - left
        return 256 - left

    found = [taken(Noisy(network, 0.03), ahead) for ahead in (320, 5_000, 50_000)]
    assert found[0] == 16 < found[1] < found[2]
    assert taken(Noisy(network, 0.0), 50_000) == 16  # no error, no close call
    assert taken(Rarely(network, 0.003), 5_000) > taken(Noisy(network, 0.003), 5_000)


def test_close_calls_are_told_by_64_images() -> None:
    """However long the run is: none of them is a row."""
    predictor = Predictor(corrected(Smooth()), close_calls_only=True)
    batches = iter(others(inputs(256, seed=5)))
    predictor.calibrate(batches, ahead=50_000)
    assert predictor.summary().calibrated_on == 64
    assert len(list(batches)) == 12


def test_a_precision_is_not_given_up_by_chance() -> None:
    """Where some two in five images are close calls more of them decide; where few or nearly all are, the first do."""
    network, taken = Smooth(), []
    for size in (0.03, 0.08, 5.0):
        predictor = Predictor(corrected(network), corrected(Noisy(network, size)), precision="auto")
        predictor.calibrate(others(inputs(64, seed=7)), ahead=320)
        taken.append(predictor.summary().calibrated_on)
    assert taken[0] == taken[2] == 16 < taken[1]
    assert predictor.summary().precision == "fp32"


def test_what_calibrated_images_tell_is_the_truth() -> None:
    """Over many calibrations the share of labels missed that they tell is about that of all other images."""
    network, x = Smooth(), inputs(20_000)
    reference, low = corrected(network), corrected(Noisy(network, 0.1))
    both = BothWays(*reference.predict_both(x), *low.predict_both(x))
    shortcuts = Shortcuts(reference, "bf16", close_calls_only=False)
    everything = torch.ones(len(x), dtype=torch.bool)
    missed = (both.base.argmax(1) != both.full_base.argmax(1)) | (both.logits.argmax(1) != both.full.argmax(1))
    taken, same = shortcuts.compare(both)
    assert torch.equal(~same.all(1), missed)
    assert taken.all()
    # With bounds: those of others decide, whose close calls are not counted.
    careful = replace(shortcuts, precision="auto")
    taken, same = careful.compare(both)
    doubtful = careful.doubtful(careful.measure(both), both.base, both.logits)
    assert (taken != ~doubtful).double().mean() < 0.005
    assert torch.equal(same.all(1), ~missed)
    _, _, tally = settle(both, everything, careful)
    assert (tally.sampled, tally.agreed) == (int(taken.sum()), int((taken & ~missed).sum()))
    assert settle(both, ~everything, careful)[2] == Tally()


@pytest.mark.parametrize("images", [0, FEWEST_CALIBRATED - 1])
def test_too_few_to_calibrate_on_means_the_reference(images: int) -> None:
    """Without enough images to calibrate on everything is computed in full, and the summary says why."""
    network, x = Smooth(), inputs(100)
    reference = corrected(network)
    predictor = Predictor(reference, corrected(Noisy(network, 0.5)), precision="auto", close_calls_only=True)
    predictor.calibrate(others(inputs(images)) if images else [], ahead=100)
    found = predictor.predict(x)
    assert torch.equal(found.logits, reference.predict_both(x)[1])
    summary = predictor.summary()
    assert (summary.precision, summary.low_dtype, summary.close_calls_only) == ("fp32", None, False)
    assert all(f"only {images} images could be calibrated on" in note for note in summary.notes)
    assert len(summary.notes) == 2


def test_a_shortcut_that_saves_nothing_is_given_up() -> None:
    """Where most images are close calls, low precision and the choice among them are dropped, with the reason."""
    network, x = Smooth(), inputs(100)
    reference = corrected(network, eps=0.5)
    predictor = Predictor(reference, corrected(Noisy(network, 2.0), eps=0.5), precision="auto", close_calls_only=True)
    found = predict(predictor, x, batch=100)
    assert torch.equal(found.logits, reference.predict_both(x)[1])
    summary = predictor.summary()
    assert "would be close calls: all in fp32" in summary.notes[0]
    assert "of the labels: all corrected" in summary.notes[1]
    assert (summary.corrected, summary.sampled) == (100, 0)


def test_a_precision_needs_its_network() -> None:
    """A precision that is not known, or without a network in it, is an error."""
    reference = corrected(Smooth())
    with pytest.raises(SettingsError, match="precision is 'fp8'; expected one of auto, fp32, bf16, fp16"):
        Predictor(reference, precision="fp8")
    with pytest.raises(SettingsError, match="no network in low precision"):
        Predictor(reference, precision="auto")


@dataclass
class Case:
    """What a run of one kind spends its time on."""

    precision: str
    close_calls_only: bool
    stages: set[str]


@pytest.mark.parametrize(
    "case",
    [
        Case("fp32", False, {"gradient pass", "final pass"}),
        Case("auto", False, {"gradient pass", "final pass", "refinement"}),
        Case("auto", True, {"plain pass", "gradient pass", "final pass", "refinement"}),
    ],
    ids=["fp32", "auto", "auto, close calls"],  # the same in every process: a set prints as it likes
)
def test_stages_are_timed(case: Case) -> None:
    """Each stage that ran has its seconds, and no other."""
    network, stopwatch = Smooth(), Stopwatch()
    predictor = Predictor(
        corrected(network),
        corrected(Noisy(network, 0.01)),
        precision=case.precision,
        close_calls_only=case.close_calls_only,
    )
    predict(predictor, inputs(10))
    predictor.predict(inputs(300), stopwatch)
    assert stopwatch.seconds.keys() == case.stages


def test_the_model_is_left_as_it_was() -> None:
    """Predicting leaves parameters, modes and the caller's tensor alone."""
    network, x = Smooth().train(), inputs(50)
    before = x.clone()
    predict(Predictor(corrected(network), corrected(Noisy(network, 0.01)), precision="auto"), x)
    assert torch.equal(x, before)
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())

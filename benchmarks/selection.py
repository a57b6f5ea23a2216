"""Is tune-eps fooled? How often it answers 'no correction' where none helps, and what it finds where one does.

Simulated validation sets with the class sizes of one fold of Skin7, of smaller sets and of other shapes. A base
prediction is right with a known recall in each class; every eps changes a growing share of the predictions, with
known chances of gain and loss, so the true figures of every candidate are known. For each scenario: the share of
sets in which 0 is answered (with the whole rule, and with the one-standard-error rule alone), the true gain of the
answer, the true gain of the best candidate, and what two estimates of the gain say on average: that of the chosen
candidate on the images that chose it, and the nested one.

    python benchmarks/selection.py [--sets 500] [--nested 30] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.selection.candidates import make_candidates
from imbalance_perturb.selection.cross_validation import select_by_cross_validation
from imbalance_perturb.selection.rule import SelectionRule, choose_among

Floats = NDArray[np.float64]

#: One fold of Skin7, with recalls like those of a plain network on it.
SKIN7 = (1341, 223, 220, 103, 65, 28, 23)
RECALLS = (0.94, 0.49, 0.55, 0.68, 0.40, 0.68, 0.39)
GRID = (0.0, *np.geomspace(1e-4, 3e-2, 13).tolist())

#: Share of the predictions that change at the largest eps, growing from there down as a power of eps.
CHANGED, POWER = 0.45, 0.8


@dataclass(frozen=True)
class World:
    """What is true: for each class its images and its recall under every candidate, and how much changes.

    ``gain`` and ``loss`` (C, K): chance of an image that is wrong at first to be right, and the reverse.
    """

    sizes: tuple[int, ...]
    recalls: tuple[float, ...]
    gain: Floats
    loss: Floats
    strengths: Floats
    independent: bool = False

    def true_recalls(self) -> Floats:
        """(C, K) expected recalls."""
        r = np.array(self.recalls)[:, None]
        return np.asarray(r * (1 - self.loss) + (1 - r) * self.gain)

    def true_values(self, objective: str) -> Floats:
        """(K,) expected objective."""
        recalls = self.true_recalls()
        if objective == "scr":
            return np.asarray(recalls[-1])
        if objective == "worst":
            return np.asarray(recalls.min(axis=0))
        if objective == "gmean":
            return np.asarray(np.exp(np.log(recalls).mean(axis=0)))
        return np.asarray(recalls.mean(axis=0))

    def draw(self, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A validation set: (N,) labels and (N, K) predictions, in which a wrong one is of the next class."""
        labels = np.repeat(np.arange(len(self.sizes)), self.sizes)
        images, candidates = len(labels), len(self.strengths)
        right = random.random(images) < np.array(self.recalls)[labels]
        # One threshold for an image: what a small eps changes, a larger one changes too.
        threshold = random.random((images, candidates if self.independent else 1))
        changed = np.where(right[:, None], threshold < self.loss[labels], threshold < self.gain[labels])
        correct = right[:, None] ^ changed
        return labels, np.where(correct, labels[:, None], (labels[:, None] + 1) % len(self.sizes))


def flows(sizes: tuple[int, ...], recalls: tuple[float, ...], grid: Floats, churn: float = 1.0) -> Floats:
    """(C, K) share of the images of a class that are gained, and as many lost, at every eps."""
    r = np.array(recalls)[:, None]
    share = churn * CHANGED / 2 * (np.asarray(grid) / max(grid)) ** POWER
    return np.asarray(np.minimum(share[None] * np.ones((len(sizes), 1)), np.minimum(r, 1 - r)))


def make_world(
    sizes: tuple[int, ...] = SKIN7,
    recalls: tuple[float, ...] = RECALLS,
    *,
    shift: Callable[[Floats], Floats] | None = None,
    churn: float = 1.0,
    copies: int = 1,
    independent: bool = False,
) -> World:
    """Equal gains and losses in every class, and on top the ``shift`` (C, K) of the recalls along the grid."""
    grid = np.array([0.0] + [eps for _ in range(copies) for eps in GRID[1:]])
    flow = flows(sizes, recalls, grid, churn)
    r = np.array(recalls)[:, None]
    moved = np.zeros_like(flow) if shift is None else shift(grid / max(GRID))
    gain = np.clip((flow + np.maximum(moved, 0)) / (1 - r), 0, 1)
    loss = np.clip((flow + np.maximum(-moved, 0)) / r, 0, 1)
    return World(sizes, recalls, gain, loss, grid, independent or copies > 1)


def trade(classes: int) -> Callable[[Floats], Floats]:
    """The rarer half gains recall, the commoner half loses as much: the MCR stays where it is."""
    sign = np.sign(np.arange(classes) - (classes - 1) / 2)
    return lambda x: np.asarray(0.12 * sign[:, None] * np.minimum(x, 1)[None] ** 0.7)


def harm(classes: int) -> Callable[[Floats], Floats]:
    """Every class loses a little, more with eps."""
    return lambda x: np.asarray(-0.05 * np.ones((classes, 1)) * x[None])


def help_(size: float, classes: int) -> Callable[[Floats], Floats]:
    """The rarer classes gain, the commonest loses; best in the middle of the grid, harmful at its end."""
    tilt = np.linspace(-0.5, 1.5, classes)

    def shift(x: Floats) -> Floats:
        position = np.where(x > 0, np.log(np.maximum(x, 1e-9)) / math.log(300) + 1, 0.0)
        rise = np.sin(np.pi * np.clip(position / 1.2, 0, 1)) - 1.5 * np.maximum(position - 0.8, 0)
        return np.asarray(2 * size * tilt[:, None] * rise[None] * (x > 0))

    return shift


@dataclass(frozen=True)
class Scenario:
    """A world, and the rule tried on it."""

    name: str
    world: World
    rule: SelectionRule


def scenarios() -> tuple[list[Scenario], list[Scenario]]:
    """Those where no eps helps, and those where one does."""
    tiny, tiny_recalls = (60, 20, 10), (0.9, 0.6, 0.5)
    many = tuple(int(n) for n in np.geomspace(100, 5, 50))
    many_recalls = tuple(np.linspace(0.9, 0.4, 50).tolist())
    half, fifth = (tuple(max(n // k, 4) for n in SKIN7) for k in (2, 5))
    large = tuple(4 * n for n in SKIN7)
    balanced = (100,) * 7
    mcr = SelectionRule()
    null = [
        Scenario("Skin7 fold, noise", make_world(), mcr),
        Scenario("Skin7 fold, noise, each eps on its own", make_world(independent=True), mcr),
        Scenario("Skin7 fold, little noise", make_world(churn=0.15), mcr),
        Scenario("Skin7 fold, trade at equal MCR", make_world(shift=trade(7)), mcr),
        Scenario("Skin7 fold, harm", make_world(shift=harm(7)), mcr),
        Scenario("Skin7 fold, 6 T/loss x 13 eps, all on their own", make_world(copies=6), mcr),
        Scenario("Skin7 fold / 2, noise", make_world(half), mcr),
        Scenario("Skin7 fold / 5, noise", make_world(fifth), mcr),
        Scenario("Skin7 fold / 5, trade at equal MCR", make_world(fifth, shift=trade(7)), mcr),
        Scenario("Skin7 fold x 4, noise", make_world(large), mcr),
        Scenario("90 images of 3 classes, noise", make_world(tiny, tiny_recalls), mcr),
        Scenario("50 classes of 100 to 5, noise", make_world(many, many_recalls), mcr),
        Scenario("50 classes of 100 to 5, trade", make_world(many, many_recalls, shift=trade(50)), mcr),
        Scenario("7 classes of 100, noise", make_world(balanced), mcr),
        Scenario("Skin7 fold, noise, accuracy drop <= 0.01", make_world(), replace(mcr, max_accuracy_drop=0.01)),
        Scenario("Skin7 fold, noise, for SCR", make_world(), replace(mcr, objective="scr")),
        Scenario("Skin7 fold, noise, for the worst class", make_world(), replace(mcr, objective="worst")),
        Scenario("Skin7 fold, noise, for the gmean", make_world(), replace(mcr, objective="gmean")),
    ]
    gains = [
        Scenario(f"Skin7 fold{where}, best eps gains {size:+.2f} MCR", make_world(sizes, shift=help_(size, 7)), mcr)
        for where, sizes in (("", SKIN7), (" / 2", half), (" / 5", fifth))
        for size in (0.02, 0.04, 0.07)
    ]
    gains += [
        Scenario(
            f"Skin7 fold, the same gain of +0.07, for {name}",
            make_world(shift=help_(0.07, 7)),
            replace(mcr, objective=name),
        )
        for name in ("scr", "worst", "gmean")
    ]
    return null, gains


@dataclass(frozen=True)
class Outcome:
    """One line of the result."""

    zero: float
    zero_plain: float
    true_gain: float
    plain_gain: float
    best_gain: float
    apparent: float
    nested: float
    nested_truth: float


def run(scenario: Scenario, sets: int, nested: int, random: np.random.Generator) -> Outcome:
    world, rule = scenario.world, scenario.rule
    truth = world.true_values(rule.objective)
    plain = replace(rule, significance=None)
    about = {"num_classes": len(world.sizes), "smallest_class": len(world.sizes) - 1}
    answers, plain_answers, apparent, estimates, worth = [], [], [], [], []
    for index in range(sets):
        labels, preds = world.draw(random)
        candidates = make_candidates(labels, preds, world.strengths, **about)
        choice = choose_among(candidates, rule, random)
        answers.append(choice.chosen)
        plain_answers.append(choose_among(candidates, plain, random).chosen)
        apparent.append(choice.gains[choice.chosen])
        if index < nested:
            found = select_by_cross_validation(labels, preds, world.strengths, rule=replace(rule, seed=index), **about)
            name = {"worst": "worst_class_recall"}.get(rule.objective, rule.objective)
            estimates.append(getattr(found.selected, name) - getattr(found.base, name))
            worth.append(float((truth[found.fold_choices] - truth[0]).mean()))
    chosen, plainly = np.array(answers), np.array(plain_answers)
    return Outcome(
        zero=float((chosen == 0).mean()),
        zero_plain=float((plainly == 0).mean()),
        true_gain=float((truth[chosen] - truth[0]).mean()),
        plain_gain=float((truth[plainly] - truth[0]).mean()),
        best_gain=float(truth.max() - truth[0]),
        apparent=float(np.mean(apparent)),
        nested=float(np.mean(estimates)) if estimates else math.nan,
        nested_truth=float(np.mean(worth)) if worth else math.nan,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sets", type=int, default=500, help="simulated validation sets of each scenario")
    parser.add_argument("--nested", type=int, default=30, help="of these, with the nested estimate too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        "answers 0: share of sets; '1-SE' is the one-standard-error rule without the test. Gains are in the objective:"
        "\ntrue gain of the answers (with the test, without), of the best candidate; on average, the gain of the"
        " chosen\ncandidate on the images that chose it, the nested estimate, and what the nested one is to estimate.\n"
    )
    for title, group in zip(("No eps helps", "An eps helps"), scenarios(), strict=True):
        print(
            f"{title:52} {'0':>6} {'0 1-SE':>7} | {'true':>7} {'1-SE':>7} {'best':>7} | {'own':>7} {'nested':>7}"
            f" {'truth':>7}"
        )
        for number, scenario in enumerate(group):
            start = time.perf_counter()
            o = run(scenario, options.sets, options.nested, np.random.default_rng((options.seed, number)))
            print(
                f"{scenario.name:52} {o.zero:6.1%} {o.zero_plain:7.1%} | {o.true_gain:+7.4f} {o.plain_gain:+7.4f}"
                f" {o.best_gain:+7.4f} | {o.apparent:+7.4f} {o.nested:+7.4f} {o.nested_truth:+7.4f}"
                f"   {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        print()


if __name__ == "__main__":
    main()

"""Intervals and tests where images come in groups that are alike: how often they hold, by group and by image.

    python benchmarks/group_coverage.py [--datasets 300] [--seed 0]

Simulated data sets of the class sizes and recalls of Skin7, and a correction that does nothing: how often the 95%
intervals contain the truth, and how often the p-values of the differences in MCR, accuracy, SCR and macro F1 are up to
0.05, in %.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from coverage import SKIN7, SKIN7_RECALL
from numpy.typing import NDArray

from imbalance_perturb.evaluation.evidence import GroupEvidence, ImageEvidence
from imbalance_perturb.evaluation.groups import Groups
from imbalance_perturb.evaluation.interval_options import IntervalOptions
from imbalance_perturb.evaluation.metrics import count_jointly
from imbalance_perturb.evaluation.results import Interval

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Grouped:
    """Images in groups of ``size`` on average, which follow their group with probability ``follow``, else none.

    Of ``classes`` a group has one, or, where it is a patient's, any. Nothing helps: as many images are lost as gained.
    """

    name: str
    images: tuple[int, ...]
    size: float
    follow: float
    patients: bool = False


GROUPED = (
    Grouped("eight like images a group", SKIN7, 8, 1.0),
    Grouped("eight images, rho 1/4", SKIN7, 8, 0.5),
    Grouped("eight independent images", SKIN7, 8, 0.0),
    Grouped("lesions as in Skin7: 1.3 images, rho 2/3", SKIN7, 1.34, 0.82),
    Grouped("patients with 8 images of several classes, rho 1/4", SKIN7, 8, 0.5, patients=True),
    Grouped("each image alone", SKIN7, 1, 1.0),
)

GROUP_FIGURES = ("MCR", "MCR diff.", "accuracy", "acc. diff.", "SCR", "SCR diff.", "worst", "F1 diff.")


def simulate_groups(
    scenario: Grouped, datasets: int, random: np.random.Generator
) -> Iterator[tuple[str, str, float, Interval | None, float | None]]:
    """(how, figure, truth, interval, p-value) of each data set, ``how`` being by group and by image."""
    recall, turned = np.array(SKIN7_RECALL), 0.03
    outcomes = np.cumsum(np.stack([recall - turned, *np.full((2, 7), turned)], axis=1), axis=1)
    options = IntervalOptions(resamples=1000)
    for _ in range(datasets):
        labels, group = _draw_groups(scenario, random)
        follows = random.random(len(labels)) < scenario.follow
        luck = np.where(follows, random.random(group.max() + 1)[group], random.random(len(labels)))
        kind = (luck[:, None] > outcomes[labels]).sum(axis=1)  # both right, lost, gained, both wrong
        wrong = (labels + 1) % 7
        preds = np.where(np.isin(kind, (0, 1)), labels, wrong), np.where(np.isin(kind, (0, 2)), labels, wrong)
        joint, columns = count_jointly(labels, *preds, 7), np.stack([labels, *preds], axis=1)
        by_group = GroupEvidence.of_images(joint, columns, Groups.from_names("group", group), options)
        totals = np.bincount(labels, minlength=7)
        for how, found in (("group", by_group), ("image", ImageEvidence(joint, options))):
            small = found.gain(6)
            assert small is not None
            yield how, "MCR", recall.mean(), found.mean_recall("base", np.ones(7)), None
            yield how, "MCR diff.", 0.0, found.difference(np.ones(7)), found.test_mcr()[0]
            yield how, "accuracy", recall @ totals / totals.sum(), found.mean_recall("base", totals), None
            yield how, "acc. diff.", 0.0, found.difference(totals), found.test_accuracy()[0]
            yield how, "SCR", recall[6], found.recalls("base")[6], None
            yield how, "SCR diff.", 0.0, small.interval, small.p_value
            yield how, "worst", recall.min(), found.worst_recall("base"), None
            yield how, "F1 diff.", 0.0, found.macro_f1()[2], found.test_macro_f1()[0]


def _draw_groups(scenario: Grouped, random: np.random.Generator) -> tuple[Counts, Counts]:
    """(N,) labels and (N,) groups; a class has its images, give or take a group."""
    labels = np.repeat(np.arange(len(scenario.images)), scenario.images)
    if scenario.patients:
        return labels, random.permutation(np.arange(len(labels)) // int(scenario.size))
    sizes = np.full(len(labels), int(scenario.size))
    if scenario.size % 1:
        sizes = random.geometric(1 / scenario.size, len(labels))
    of_group = np.repeat(np.arange(len(sizes)), sizes)[: len(labels)]
    first = np.r_[True, np.diff(of_group) > 0]
    return labels[np.maximum.accumulate(np.where(first, np.arange(len(labels)), 0))], of_group


def print_groups(datasets: int, seed: int) -> None:
    """Print coverages and sizes of tests, in percent, by group and by image."""
    print(f"| scenario | by | {' | '.join(GROUP_FIGURES)} | width MCR | tests: MCR, accuracy, SCR, F1 |")
    print(f"| --- | --- |{' ---: |' * (len(GROUP_FIGURES) + 1)} --- |")
    for scenario in GROUPED:
        inside: dict[tuple[str, str], list[bool]] = defaultdict(list)
        widths: dict[str, list[float]] = defaultdict(list)
        significant: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for how, figure, truth, interval, p_value in simulate_groups(scenario, datasets, np.random.default_rng(seed)):
            assert interval is not None  # every class has images
            inside[how, figure].append(interval.low - 1e-12 <= truth <= interval.high + 1e-12)
            if figure == "MCR":
                widths[how].append(interval.high - interval.low)
            if p_value is not None:
                significant[how, figure].append(p_value <= 0.05)
        for how in ("group", "image"):
            cells = [f"{100 * np.mean(inside[how, figure]):.1f}" for figure in GROUP_FIGURES]
            sizes = [f"{100 * np.mean(part):.1f}" for (by, _), part in significant.items() if by == how]
            row = " | ".join([*cells, f"{np.mean(widths[how]):.4f}", ", ".join(sizes)])
            print(f"| {scenario.name} | {how} | {row} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--datasets", type=int, default=300, help="simulated data sets a scenario (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    options = parser.parse_args()
    start = time.perf_counter()
    print_groups(options.datasets, options.seed)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imbalance_perturb import ClassCounts
from imbalance_perturb.errors import LabelsError
from imbalance_perturb.evaluation.evidence import GroupEvidence, ImageEvidence
from imbalance_perturb.evaluation.group_intervals import GroupedOutcomes
from imbalance_perturb.evaluation.groups import Groups, count_kinds
from imbalance_perturb.evaluation.interval_options import IntervalOptions
from imbalance_perturb.evaluation.metrics import count_jointly, macro_f1
from imbalance_perturb.evaluation.paired_evaluation import evaluate
from imbalance_perturb.evaluation.results import Interval
from imbalance_perturb.evaluation.significance import group_flip_test, mcnemar_test

Ints = NDArray[np.int64]

COUNTS = ClassCounts(("a", "b", "c"), (900, 90, 9))


def simulate(seed: int = 0, patients: bool = False, size: int = 4, number: int = 500) -> tuple[Ints, Ints, Ints, Ints]:
    """Labels, base and perturbed predictions, groups of 1 to ``2 * size`` images that mostly fare alike.

    Groups are of one class each, or, of ``patients``, of several.
    """
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 2 * size, number)
    group = np.repeat(np.arange(number), sizes)
    of_group = random.choice(3, number, p=[0.5, 0.3, 0.2])
    labels = random.choice(3, len(group), p=[0.5, 0.3, 0.2]) if patients else of_group[group]
    recall = np.array([0.9, 0.7, 0.4])
    alike = random.random(len(group)) < 0.8
    luck = np.where(alike, random.random(number)[group], random.random(len(group)))
    turn = np.where(alike, random.random(number)[group], random.random(len(group)))
    right = luck < recall[labels]
    right_after = np.where(turn < 0.15, luck < recall[labels] * 0.5 + 0.45, right)
    wrong = (labels + random.integers(1, 3, len(group))) % 3
    return labels, np.where(right, labels, wrong), np.where(right_after, labels, wrong), group


def evidence(labels: Ints, base: Ints, perturbed: Ints, group: Ints, **options: Any) -> GroupEvidence:
    images = np.stack([labels, base, perturbed], axis=1)
    joint = count_jointly(labels, base, perturbed, 3)
    return GroupEvidence.of_images(joint, images, Groups.from_names("lesion", group), IntervalOptions(**options))


def plain_cluster_bootstrap(
    labels: Ints, base: Ints, perturbed: Ints, group: Ints, within_classes: bool
) -> dict[str, tuple[float, float]]:
    """Percentile intervals from groups drawn with replacement, written with loops and no smoothing."""
    random, of_images = np.random.default_rng(1), np.unique(group)
    # Of each group and class: images, right before, right after.
    table = np.zeros((len(of_images), 3, 3))
    for g, label, before, after in zip(np.searchsorted(of_images, group), labels, base, perturbed, strict=True):
        table[g, label] += (1, before == label, after == label)
    strata = [np.flatnonzero(table[:, c, 0] > 0) for c in range(3)] if within_classes else [np.arange(len(table))]
    shares = np.bincount(labels) / len(labels)
    found: dict[str, list[float]] = {"mcr": [], "accuracy": [], "difference": []}
    for _ in range(3000):
        total = np.zeros((3, 3))
        for stratum in strata:
            total += table[random.choice(stratum, len(stratum))].sum(axis=0)
        recall, after = total[:, 1] / total[:, 0], total[:, 2] / total[:, 0]
        found["mcr"].append(recall.mean())
        found["accuracy"].append(recall @ shares)
        found["difference"].append((after - recall).mean())
    return {name: tuple(np.quantile(values, [0.025, 0.975])) for name, values in found.items()}


@pytest.mark.parametrize("patients", [False, True])
def test_the_intervals_are_those_of_a_plain_cluster_bootstrap(patients: bool) -> None:
    """With many groups the intervals agree with a bootstrap of whole groups, also of groups of several classes."""
    columns = simulate(patients=patients, number=2000)
    expected = plain_cluster_bootstrap(*columns, within_classes=not patients)
    found, totals = evidence(*columns), np.bincount(columns[0])
    for interval, name in (
        (found.mean_recall("base", np.ones(3)), "mcr"),
        (found.mean_recall("base", totals), "accuracy"),
        (found.difference(np.ones(3)), "difference"),
    ):
        assert interval is not None
        low, high = expected[name]
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.06 * (high - low)), name


def test_groups_of_one_image_change_nothing() -> None:
    """With every image in a group of its own, intervals and tests are those of independent images, but for chance."""
    labels, base, perturbed, _ = simulate()
    grouped = evidence(labels, base, perturbed, np.arange(len(labels)))
    alone = ImageEvidence(grouped.joint, grouped.options)
    totals = np.bincount(labels)

    def close(first: Interval | None, second: Interval | None, part: float = 0.04) -> None:
        assert first is not None
        assert second is not None
        width = second.high - second.low
        assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=part * width)

    for one, other in zip(grouped.recalls("base"), alone.recalls("base"), strict=True):
        close(one, other, 1e-9)
    close(grouped.worst_recall("perturbed"), alone.worst_recall("perturbed"), 1e-9)
    for weights in (np.ones(3), totals):
        close(grouped.mean_recall("base", weights), alone.mean_recall("base", weights))
        close(grouped.difference(weights), alone.difference(weights))
    for one, other in zip(grouped.macro_f1(), alone.macro_f1(), strict=True):
        close(one, other)
    for index in range(3):
        gain, own = grouped.gain(index), alone.gain(index)
        assert gain is not None
        assert own is not None
        assert gain.value == pytest.approx(own.value)
        close(gain.interval, own.interval)
        assert gain.p_value == pytest.approx(own.p_value, abs=0.015)
    for name in ("test_mcr", "test_accuracy", "test_macro_f1"):
        assert getattr(grouped, name)()[0] == pytest.approx(getattr(alone, name)()[0], abs=0.015)


def test_eight_copies_of_each_image_tell_as_much_as_one() -> None:
    """Of images that are there eight times each, intervals and tests by group are those of the images once."""
    labels, base, perturbed, _ = (column[:300] for column in simulate(size=1))
    once = ImageEvidence(count_jointly(labels, base, perturbed, 3), IntervalOptions())
    eight = evidence(*(np.repeat(column, 8) for column in (labels, base, perturbed)), np.repeat(np.arange(300), 8))
    for interval, own in zip(
        (*eight.recalls("base"), eight.worst_recall("base"), eight.mean_recall("base", np.ones(3)), *eight.macro_f1()),
        (*once.recalls("base"), once.worst_recall("base"), once.mean_recall("base", np.ones(3)), *once.macro_f1()),
        strict=True,
    ):
        assert interval is not None
        assert own is not None
        assert (interval.low, interval.high) == pytest.approx((own.low, own.high), abs=0.06 * (own.high - own.low))
    assert eight.test_mcr()[0] == pytest.approx(once.test_mcr()[0], abs=0.02)
    assert eight.test_macro_f1()[0] == pytest.approx(once.test_macro_f1()[0], abs=0.02)


def test_no_interval_and_no_test_takes_images_as_independent() -> None:
    """By groups of like images every interval of the result is wider and every test another."""
    labels, base, perturbed, _ = (column[:300] for column in simulate(size=1))
    columns = [np.repeat(column, 8) for column in (labels, base, perturbed)]
    costs = np.array([[0.0, 1, 2], [5, 0, 1], [9, 4, 0]])
    alone = evaluate(*columns, COUNTS, costs=costs).to_dict()
    grouped = evaluate(*columns, COUNTS, costs=costs, groups=np.repeat(np.arange(300), 8)).to_dict()
    seen = 0

    def walk(first: Any, second: Any) -> None:
        nonlocal seen
        if isinstance(first, list):
            first, second = dict(enumerate(first)), dict(enumerate(second))
        if not isinstance(first, dict):
            return
        for key, entry in first.items():
            intervals = entry if "ci95" in str(key) else None
            pairs = intervals.items() if isinstance(intervals, dict) else [(None, intervals)] if intervals else []
            for name, (low, high) in pairs:
                wide = second[key] if name is None else second[key][name]
                assert wide[1] - wide[0] > 1.5 * (high - low), (key, name)
                seen += 1
            if key == "test" and entry is not None:
                assert second[key] == "paired permutation of groups"
            walk(entry, second[key])

    walk(alone, grouped)
    assert seen >= 40
    assert grouped["group"] == {"column": "groups", "groups": 300, "largest": 8}
    assert alone["group"] is None


def test_order_and_names_do_not_matter() -> None:
    """The same groups in another order and under other names give the same result to the last digit."""
    columns = [column[:200] for column in simulate()]
    order = np.random.default_rng(0).permutation(200)
    labels, base, perturbed, group = (column[order] for column in columns)
    first = evaluate(*columns[:3], COUNTS, groups=columns[3])
    assert evaluate(labels, base, perturbed, COUNTS, groups=[f"L{g:05}" for g in group]).to_dict() == first.to_dict()


def test_macro_f1_against_loops_over_groups() -> None:
    """Test and interval of the macro F1 agree with swapping, and with drawing, whole groups one by one."""
    labels, base, perturbed, group = simulate(3)
    random, groups = np.random.default_rng(2), np.unique(group)
    found = evidence(labels, base, perturbed, group)

    def difference(first: Ints, second: Ints, images: Any = slice(None)) -> float:
        joint = count_jointly(labels[images], first[images], second[images], 3)
        return macro_f1(joint.perturbed) - macro_f1(joint.base)

    observed, extreme, draws = abs(difference(base, perturbed)), 0, []
    members = {g: np.flatnonzero(group == g) for g in groups}
    for _ in range(800):
        swap = np.isin(group, groups[random.random(len(groups)) < 0.5])
        extreme += abs(difference(np.where(swap, perturbed, base), np.where(swap, base, perturbed))) >= observed - 1e-12
        drawn = np.concatenate([members[g] for g in random.choice(groups, len(groups))])
        draws.append(difference(base, perturbed, drawn))
    assert found.test_macro_f1()[0] == pytest.approx(extreme / 800, abs=0.04)
    interval = found.macro_f1()[2]
    assert interval is not None
    low, high = np.quantile(draws, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.15)


def test_flips_of_single_images_are_mcnemar() -> None:
    """Groups that each move by one give McNemar's test; a few that move far weigh more than many."""
    random = np.random.default_rng
    assert group_flip_test([-1, 1], [4, 12], permutations=50_000, random=random(0)) == pytest.approx(
        mcnemar_test(4, 12), abs=0.005
    )
    # All 2 ** 4 signs of 5, 1, 1, 1: as far from 0 as observed, 8, are two of them.
    assert group_flip_test([5, 1], [1, 3], permutations=50_000, random=random(0)) == pytest.approx(2 / 16, abs=0.005)
    assert group_flip_test([0, 0], [1, 3], random=random(0)) == 1.0


def correlation(right: Ints, group: Ints, label: Ints | None = None) -> float:
    label = np.zeros_like(right) if label is None else label
    kinds = count_kinds(2 * label + right, 4, group)
    shares = np.tile(np.eye(2), (2, 1))
    return GroupedOutcomes.from_kinds(kinds, np.array([0, 0, 1, 1]), shares, 2, [0.0, 1.0], [1.0, 1.0]).rho


def test_correlation_within_groups() -> None:
    """Like images correlate by 1, independent ones by about 0, half of each by their share; unknown counts as 1."""
    random = np.random.default_rng(0)
    group, alike = np.repeat(np.arange(400), 5), np.repeat((random.random(400) < 0.6).astype(int), 5)
    other = (random.random(2000) < 0.6).astype(int)
    assert correlation(alike, group) == pytest.approx(1)
    assert correlation(other, group) < 0.05
    # Two images correlate only if both follow the group: 0.7 squared.
    mixed = np.where(random.random(2000) < 0.7, alike, other)
    assert correlation(mixed, group) == pytest.approx(0.49, abs=0.08)
    assert correlation(other, np.arange(2000)) == 0
    assert correlation(np.ones(2000, dtype=int), group) == 1
    assert correlation(mixed, group, np.repeat([0, 1], 1000)) == pytest.approx(0.49, abs=0.1)


@pytest.mark.parametrize("test", [GroupEvidence.test_mcr, GroupEvidence.test_accuracy])
def test_size_with_eight_like_images_a_group(test: Callable[[GroupEvidence], tuple[float, str]]) -> None:
    """Where eight images move alike and nothing helps, 5% of tests by group are significant, far more by image."""
    random, significant, by_image = np.random.default_rng(4), 0, 0
    for _ in range(300):
        labels = np.repeat([0, 1, 2], [80, 50, 20])
        base = np.where(random.random(150) < 0.7, labels, (labels + 1) % 3)
        turn = random.random(150) < 0.3
        perturbed = np.where(turn, np.where(base == labels, (labels + 1) % 3, labels), base)
        swap = random.random(150) < 0.5
        base, perturbed = np.where(swap, perturbed, base), np.where(swap, base, perturbed)
        columns = [np.repeat(column, 8) for column in (labels, base, perturbed)]
        found = evidence(*columns, np.repeat(np.arange(150), 8))
        significant += test(found)[0] <= 0.05
        by_image += getattr(ImageEvidence(found.joint, found.options), test.__name__)()[0] <= 0.05
    assert 0.015 <= significant / 300 <= 0.08
    assert by_image / 300 > 0.3


def test_coverage_with_groups_of_like_images() -> None:
    """Over 200 simulated data sets of 60 groups of like images the intervals hold the truth in 90 to 99%."""
    random = np.random.default_rng(5)
    recall, inside = np.array([0.95, 0.6, 0.3]), {"mcr": 0, "accuracy": 0, "recall": 0}
    for _ in range(200):
        of_group, sizes = np.repeat([0, 1, 2], [30, 20, 10]), random.integers(1, 10, 60)
        right = random.random(60) < recall[of_group]
        labels, group = np.repeat(of_group, sizes), np.repeat(np.arange(60), sizes)
        preds = np.repeat(np.where(right, of_group, (of_group + 1) % 3), sizes)
        found = evidence(labels, preds, preds, group, resamples=1000)
        shares = np.bincount(labels) / len(labels)
        for name, interval, truth in (
            ("mcr", found.mean_recall("base", np.ones(3)), recall.mean()),
            ("accuracy", found.mean_recall("base", shares), recall @ shares),
            ("recall", found.recalls("base")[2], 0.3),
        ):
            assert interval is not None
            inside[name] += interval.low <= truth <= interval.high
    assert all(0.9 <= number / 200 <= 0.995 for number in inside.values()), inside


def test_one_group_for_each_image() -> None:
    """Groups of other images than the labels are refused; few groups of a class are said."""
    labels = np.repeat([0, 1, 2], 8)
    with pytest.raises(LabelsError, match="groups are of 3 images, labels of 24; give one for each"):
        evaluate(labels, labels, labels, COUNTS, groups=["x", "y", "z"])
    found = evaluate(
        labels, labels, labels, COUNTS, groups=np.concatenate([np.arange(8), np.repeat([8, 9, 10, 11], 4)])
    )
    assert any("images of fewer than 5 groups of groups, so intervals say little: b, c" in n for n in found.notes)
    json.dumps(found.to_dict(), allow_nan=False)


def test_fewer_resamples_are_said() -> None:
    """So many different groups that fewer resamples are drawn are told in a note."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 60_000)
    group = random.integers(0, 9_000, 60_000)
    preds = np.where(random.random(60_000) < 0.7, labels, (labels + 1) % 3)
    images = np.stack([labels, preds, np.where(random.random(60_000) < 0.5, labels, preds)], axis=1)
    found = GroupEvidence.of_images(
        count_jointly(*images.T, 3), images, Groups.from_names("lesion", group), IntervalOptions()
    )
    assert len(found.kinds.counts) > 4_000
    assert found.resamples < 5000
    counts, options = ClassCounts(("a", "b", "c"), (9, 5, 2)), IntervalOptions(resamples=found.resamples + 1)
    notes = evaluate(*images.T, counts, groups=group, options=options).notes
    assert notes == (
        f"with so many different groups the intervals of means rest on fewer resamples: {found.resamples:,} for a"
        " difference",
    )


def test_predictive_values_and_costs_of_groups_of_one_image() -> None:
    """Specificity, PPV, NPV and costs have the intervals of independent images where each image is a group."""
    labels, base, perturbed, _ = simulate(number=400)
    given: dict[str, Any] = {"prevalence": [0.7, 0.2, 0.1], "costs": np.array([[0.0, 1, 2], [5, 0, 1], [9, 4, 0]])}
    alone = evaluate(labels, base, perturbed, COUNTS, **given)
    grouped = evaluate(labels, base, perturbed, COUNTS, groups=np.arange(len(labels)), **given)
    pairs = []
    for one, other in ((alone.base, grouped.base), (alone.perturbed, grouped.perturbed)):
        for first, second in zip(one.per_class, other.per_class, strict=True):
            assert (first.values.ppv, first.values.npv) == (second.values.ppv, second.values.npv)
            names = [f"{name}_interval" for name in ("specificity", "ppv", "npv")]
            pairs += [(getattr(first.values, name), getattr(second.values, name)) for name in names]
    assert alone.costs is not None
    assert grouped.costs is not None
    pairs += [(alone.costs.intervals[kind], grouped.costs.intervals[kind]) for kind in ("base", "perturbed")]
    for first, second in pairs:
        width = first.high - first.low
        assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=0.12 * width)

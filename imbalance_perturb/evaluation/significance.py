"""Test whether chance explains the difference between two predictions of the same images.

If the correction did nothing, which of the two predictions of an image is the perturbed one would be arbitrary:
all tests here swap the two within images, or within whole groups where images come in groups that are alike. Images on
which both are equally right say nothing either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbalance_perturb.evaluation.groups import GroupKinds
from imbalance_perturb.evaluation.metrics import IntArray, JointCounts, f1_parts, mean_f1

#: Permutations of a Monte Carlo test; the smallest p-value it can give is one over this plus one.
DEFAULT_PERMUTATIONS = 9999

#: Statistics closer than this are ties: only rounding separates them.
_TIE = 1e-12

#: Numbers in an array of the macro F1 test, which holds a dozen at a time.
_MAX_NUMBERS = 4_000_000


def mcnemar_test(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test: the binomial test of ``gained`` out of ``lost + gained`` at 1/2."""
    if lost + gained == 0:
        return 1.0
    # Half a second, which only a report has to wait for.
    from scipy.stats import binomtest

    return float(binomtest(gained, lost + gained).pvalue)


def adjust_by_holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """(K,) p-values adjusted for their number: Holm's step-down procedure (1979)."""
    found = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(found, kind="stable")
    adjusted = np.empty(len(found))
    adjusted[order] = np.minimum(np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1)), 1)
    return adjusted


def sign_flip_test(
    lost: ArrayLike,
    gained: ArrayLike,
    totals: ArrayLike,
    *,
    permutations: int = DEFAULT_PERMUTATIONS,
    random: np.random.Generator,
) -> float:
    """Two-sided paired permutation test of the difference in mean class recall.

    Args:
        lost: (C,) images that only the base prediction got right.
        gained: (C,) images that only the perturbed prediction got right.
        totals: (C,) images; classes without any are left out.
        permutations: random swaps of all images.
        random: source of the swaps.
    """
    down, up, images = (np.asarray(values, dtype=np.int64) for values in (lost, gained, totals))
    changed = down + up
    moving = (changed > 0) & (images > 0)
    if not moving.any():
        return 1.0
    scale = 1 / images[moving]
    observed = abs(((up - down)[moving] * scale).sum())
    statistic = np.zeros(permutations)
    for total, weight in zip(changed[moving], scale, strict=True):
        statistic += (2 * random.binomial(total, 0.5, permutations) - total) * weight
    extreme = int((np.abs(statistic) >= observed - _TIE).sum())
    return (1 + extreme) / (1 + permutations)


def group_flip_test(
    moves: ArrayLike,
    counts: ArrayLike,
    *,
    permutations: int = DEFAULT_PERMUTATIONS,
    random: np.random.Generator,
) -> float:
    """Two-sided paired permutation test of a difference to which each group of images adds its part.

    Args:
        moves: (U,) what one group of each kind adds.
        counts: (U,) groups of each kind, which are swapped whole.
        permutations: random swaps of all groups.
        random: source of the swaps.
    """
    found, times = np.asarray(moves, dtype=np.float64), np.asarray(counts, dtype=np.int64)
    size, kind = np.unique(np.abs(found).round(15), return_inverse=True)
    groups = np.bincount(kind.reshape(-1), times).astype(np.int64)
    observed = abs(float((found * times).sum()))
    statistic = np.zeros(permutations)
    for step, total in zip(size, groups, strict=True):
        if step > 0:
            statistic += (2 * random.binomial(total, 0.5, permutations) - total) * step
    extreme = int((np.abs(statistic) >= observed - _TIE).sum())
    return (1 + extreme) / (1 + permutations)


def macro_f1_test(
    joint: JointCounts,
    *,
    permutations: int = DEFAULT_PERMUTATIONS,
    random: np.random.Generator,
    kinds: GroupKinds | None = None,
) -> float:
    """Two-sided paired permutation test of the difference in macro F1; of ``kinds`` of groups, these are swapped."""
    label, base, perturbed = joint.cells.T
    moving = base != perturbed
    if not moving.any():
        return 1.0
    counts, label, base, perturbed = joint.counts[moving], label[moving], base[moving], perturbed[moving]
    # What one swapped image of a cell adds to the base prediction's columns; the other loses the same.
    right = (perturbed == label).astype(int) - (base == label).astype(int)
    given = _by_class(perturbed, np.ones(len(counts)), joint) - _by_class(base, np.ones(len(counts)), joint)
    hits = _by_class(label, right, joint)
    if kinds is not None:
        # Of a group with moving images all are swapped; the others say nothing.
        held = kinds.images[:, moving]
        swapping = np.diff(held.indptr) > 0
        held = held[swapping]
        counts, hits, given = kinds.counts[swapping], held @ hits, held @ given
    base_hits, base_totals = f1_parts(joint.base)
    other_hits, other_totals = f1_parts(joint.perturbed)
    observed = abs(float(mean_f1(other_hits, other_totals) - mean_f1(base_hits, base_totals)))
    chunk = max(1, min(permutations, _MAX_NUMBERS // max(len(counts), joint.num_classes)))
    extreme = 0
    for start in range(0, permutations, chunk):
        swapped = random.binomial(counts, 0.5, (min(chunk, permutations - start), len(counts)))
        to_hits, to_given = swapped @ hits, swapped @ given
        first = mean_f1(base_hits + to_hits, base_totals + to_given)
        second = mean_f1(other_hits - to_hits, other_totals - to_given)
        extreme += int((np.abs(second - first) >= observed - _TIE).sum())
    return (1 + extreme) / (1 + permutations)


def _by_class(classes: IntArray, values: NDArray[Any], joint: JointCounts) -> Any:
    """(K, C) sparse: each cell's value in the column of its class."""
    from scipy.sparse import csr_array

    return csr_array((values, (np.arange(len(classes)), classes)), shape=(len(classes), joint.num_classes))

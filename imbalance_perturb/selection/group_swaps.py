"""Swap the predictions of whole groups of images at random, for the max-T test of images that are not independent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from imbalance_perturb.selection.candidates import Candidates, Floats, Ints, objective_values
from imbalance_perturb.selection.group_folds import main_classes, sum_groups

#: Permutations; the smallest p-value is one over this plus one.
PERMUTATIONS = 1999

#: Objectives that are linear in the recalls.
LINEAR = ("mcr", "scr")

#: Numbers held at a time.
MAX_NUMBERS = 10_000_000


def swap_groups(candidates: Candidates, objective: str, random: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    """(B, K) gains over candidate 0 and their standard errors: as they are, then after random swaps of groups.

    With each image in a group of its own these are the figures that swaps within images have. Objectives that are not
    linear in the recalls have no standard errors here, but zeros.
    """
    assert candidates.groups is not None
    ids = np.unique(candidates.groups, return_inverse=True)[1].reshape(-1)
    change = candidates.correct.astype(np.float64) - candidates.correct[:, :1]
    if objective in LINEAR:
        yield from _swap_sums(candidates, change, objective, ids, random)
    else:
        yield from _swap_hits(candidates, change, objective, ids, random)


def _swap_sums(
    candidates: Candidates, change: Floats, objective: str, ids: Ints, random: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """What a group adds to a gain changes its sign; the spread is that within the groups of one class."""
    totals = np.bincount(candidates.labels, minlength=candidates.num_classes)
    weights = 1 / (np.maximum(totals, 1) * np.count_nonzero(totals))
    if objective == "scr":
        weights = (np.arange(len(totals)) == candidates.smallest) / np.maximum(totals, 1)
    sums = sum_groups(change * weights[candidates.labels, None], ids)
    strata = main_classes(candidates.labels, ids, len(sums))
    groups = np.bincount(strata, minlength=candidates.num_classes)
    moving = sums.any(axis=1)
    sums, strata = sums[moving], strata[moving]
    squares = (sums**2).sum(axis=0)
    for signs in _iter_signs(len(sums), sums.shape[1], random):
        gains, variance = np.zeros((len(signs), sums.shape[1])), np.zeros((len(signs), sums.shape[1])) + squares
        for stratum in np.unique(strata):
            part = signs[:, strata == stratum] @ sums[strata == stratum]
            gains += part
            # Groups that all moved alike would have no spread at all: n / (n + 1) leaves them some.
            variance -= part**2 / (groups[stratum] + 1)
        yield np.asarray(gains, dtype=np.float64), np.sqrt(np.maximum(variance, 0))


def _swap_hits(
    candidates: Candidates, change: Floats, objective: str, ids: Ints, random: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Images that a group gains or loses are handed over with it, and the objective is computed anew."""
    from scipy.sparse import csr_array

    hits, totals = candidates.count_all()
    image, column = np.nonzero(change)
    cell = candidates.labels[image] * change.shape[1] + column
    moves = csr_array((change[image, column], (ids[image], cell)), shape=(int(ids.max()) + 1, hits.size))
    moves = moves[np.flatnonzero(np.diff(moves.indptr))]
    for signs in _iter_signs(moves.shape[0], hits.size, random):
        moved = ((1 - signs) / 2 @ moves).reshape(len(signs), *hits.shape)
        after = objective_values(hits - moved, totals, objective, candidates.smallest)
        before = objective_values(hits[:, :1] + moved, totals, objective, candidates.smallest)
        gains = np.nan_to_num(after - before).astype(np.float64)
        yield gains, np.zeros_like(gains)


def _iter_signs(groups: int, beside: int, random: np.random.Generator) -> Iterator[Floats]:
    """(B, G) signs: first all 1, then random ones, as many at a time as fit beside so many numbers for each."""
    yield np.ones((1, groups))
    chunk = int(np.clip(MAX_NUMBERS // max(groups, beside, 1), 1, PERMUTATIONS))
    for start in range(0, PERMUTATIONS, chunk):
        signs = random.integers(0, 2, (min(chunk, PERMUTATIONS - start), groups))
        yield 2 * signs.astype(np.float64) - 1

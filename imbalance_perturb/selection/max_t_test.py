"""Test whether chance explains the largest of many gains: paired tests of all candidates at once.

If a candidate did nothing, which of the two predictions of an image is the corrected one would be arbitrary. So the
two are swapped within random images (or random groups of images, where these are not independent), for all candidates
alike, which keeps how much they have in common; and each gain is held against the largest of all (Westfall and Young's
max-T), which accounts for how many were tried.

A gain that is a sum over images changes its sign with a swap: :func:`mean_gain_p_values`. Figures that only count
images, such as the recall of the worst class, are counted anew: :func:`adjusted_p_values`. There a gain counts in
standard errors. Where the objective is linear in the recalls, each swapped gain has its own, from the spread within
classes: a class that truly moves one way then does not pass for noise. (Whatever the statistic, the test is exact where
candidates do nothing.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from imbalance_perturb.selection.candidates import Candidates, Floats, Ints, objective_values
from imbalance_perturb.selection.group_swaps import LINEAR, MAX_NUMBERS, PERMUTATIONS, swap_groups

#: Statistics closer than this are ties: only rounding separates them.
_TIE = 1e-9


def mean_gain_p_values(gains: Floats, random: np.random.Generator) -> Floats:
    """(K,) one-sided p-values of the sums of gains (N, K), adjusted for all K; 1 for columns of zeros.

    Signs are flipped for whole images. A sum counts in units of the root of its sum of squares, which no flip changes.
    """
    p_values = np.ones(gains.shape[1])
    size = np.sqrt((gains**2).sum(axis=0))
    moving = size > 0
    if not moving.any():
        return p_values
    units = gains[:, moving] / size[moving]
    observed = units.sum(axis=0)
    reached = np.zeros(len(observed), dtype=np.int64)
    chunk = int(np.clip(MAX_NUMBERS // len(units), 1, PERMUTATIONS))
    for start in range(0, PERMUTATIONS, chunk):
        number = min(chunk, PERMUTATIONS - start)
        bits = np.unpackbits(random.integers(0, 256, (number, -(-len(units) // 8)), dtype=np.uint8), axis=1)
        # The sum with flipped signs: twice that of the images that keep theirs, minus all.
        flipped = 2 * (bits[:, : len(units)].astype(np.float64) @ units) - observed
        reached += (flipped.max(axis=1)[:, None] >= observed - _TIE).sum(axis=0)
    p_values[moving] = (1 + reached) / (1 + PERMUTATIONS)
    return p_values


def adjusted_p_values(candidates: Candidates, objective: str, random: np.random.Generator) -> Floats:
    """(K,) one-sided p-values of the gains in the objective over candidate 0, adjusted for all K; 1 for candidate 0."""
    moving = (candidates.correct != candidates.correct[:, :1]).any(axis=0)
    p_values = np.ones(len(moving))
    if not moving.any():
        return p_values
    swaps = _swap_images if candidates.groups is None else swap_groups
    first, *parts = swaps(candidates, objective, random)
    observed, observed_errors = (found[0, moving] for found in first)
    gains, errors = (np.concatenate(found)[:, moving] for found in zip(*parts, strict=True))
    if objective not in LINEAR:
        observed_errors = np.sqrt((gains**2).mean(axis=0))
        errors = np.broadcast_to(observed_errors, gains.shape)
    largest = _divide(gains, errors).max(axis=1)
    reached = largest[:, None] >= _divide(observed, observed_errors) - _TIE
    p_values[moving] = (1 + reached.sum(axis=0)) / (1 + PERMUTATIONS)
    return p_values


def _swap_images(
    candidates: Candidates, objective: str, random: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """(B, K) gains and their standard errors: as they are, then after random swaps within images."""
    pairs = _Pairs.from_candidates(candidates, objective)
    yield pairs.evaluate(np.zeros((1, *pairs.hits.shape)))
    for moved in pairs.iter_swaps(random):
        yield pairs.evaluate(moved)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Each candidate beside candidate 0.

    ``hits`` (C, K), ``totals`` (C,); ``changed`` (C, K) images right under one of the two only; ``cells`` (P, 1 + K):
    class and change (-1, 0 or 1) under each candidate, of ``counts`` (P,) images each. ``present`` is the number of
    classes with images. Of the mean of all recalls only the C classes with a change are held: the others add nothing.
    """

    hits: Floats
    totals: Floats
    changed: Floats
    cells: Ints
    counts: Ints
    objective: str
    smallest: int
    present: int

    @classmethod
    def from_candidates(cls, candidates: Candidates, objective: str) -> _Pairs:
        hits, totals = candidates.count_all()
        change = candidates.correct.astype(np.int8) - candidates.correct[:, :1].astype(np.int8)
        moving = change.any(axis=1)
        # Images of one class that fare alike under all candidates differ in nothing: count them.
        rows = np.concatenate([candidates.labels[moving, None], change[moving]], axis=1)
        cells, counts = np.unique(rows, axis=0, return_counts=True)
        changed, _ = replace(candidates, correct=change != 0).count_all()
        present = int((totals > 0).sum())
        if objective == "mcr":
            kept = changed.any(axis=1)
            hits, totals, changed = hits[kept], totals[kept], changed[kept]
            cells[:, 0] = (np.cumsum(kept) - 1)[cells[:, 0]]
        return cls(hits, totals, changed, cells, counts, objective, candidates.smallest, present)

    def iter_swaps(self, random: np.random.Generator) -> Iterator[Floats]:
        """Hits that a candidate hands to candidate 0 by random swaps, (B, C, K) at a time."""
        chunk = int(np.clip(MAX_NUMBERS // max(self.hits.size, 1), 1, PERMUTATIONS))
        for start in range(0, PERMUTATIONS, chunk):
            number = min(chunk, PERMUTATIONS - start)
            moved = np.zeros((number, *self.hits.shape))
            labels, starts = np.unique(self.cells[:, 0], return_index=True)  # cells are sorted by class
            for label, first, end in zip(labels, starts, [*starts[1:], len(self.cells)], strict=True):
                images = random.binomial(self.counts[first:end], 0.5, (number, end - first))
                moved[:, label] = images.astype(np.float64) @ self.cells[first:end, 1:].astype(np.float64)
            yield moved

    def evaluate(self, moved: Floats) -> tuple[Floats, Floats]:
        """(B, K) gains and their standard errors (of linear objectives; else zeros) after these swaps."""
        if self.objective not in LINEAR:
            after = objective_values(self.hits - moved, self.totals, self.objective, self.smallest)
            before = objective_values(self.hits[:, :1] + moved, self.totals, self.objective, self.smallest)
            gains = np.nan_to_num(after - before)
            return gains, np.zeros_like(gains)
        images = np.maximum(self.totals, 1)
        weights = np.full(len(images), 1 / self.present)
        if self.objective == "scr":
            weights = (np.arange(len(images)) == self.smallest).astype(np.float64)
        mean = (self.hits - self.hits[:, :1] - 2 * moved) / images[:, None]
        # A class in which all images moved alike would have no spread at all: n / (n + 1) leaves it some.
        spread = (weights / images) ** 2 @ self.changed
        variance = spread - np.einsum("bck,bck,c->bk", mean, mean, weights**2 / (images + 1))
        return np.einsum("bck,c->bk", mean, weights), np.sqrt(np.maximum(variance, 0))


def _divide(gains: Floats, errors: Floats) -> Floats:
    return np.divide(gains, errors, out=np.zeros_like(gains), where=errors > 0)

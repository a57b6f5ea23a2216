"""Split images into folds, at random and each class evenly: image by image, or in whole groups that are alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from imbalance_perturb.data.labels import LabelledImages
from imbalance_perturb.errors import LabelsError, first_few
from imbalance_perturb.evaluation.groups import groups_of
from imbalance_perturb.selection.candidates import Floats, Ints, stratified_folds


def split_folds(labels: Ints, groups: Ints | None, folds: int, random: np.random.Generator) -> Ints:
    """(N,) fold of each image; with (N,) groups all images of a group are in one (``StratifiedGroupKFold``).

    Raises:
        LabelsError: as :func:`check_groups` does.
    """
    if groups is None:
        return stratified_folds(labels, folds, random)
    check_groups(labels, groups, folds)
    return _split_groups(labels.tobytes(), groups.tobytes(), folds, int(random.integers(2**31))).copy()


@lru_cache(maxsize=16)
def _split_groups(labels: bytes, groups: bytes, folds: int, seed: int) -> Ints:
    """As :func:`split_folds`; kept, since a split takes a second, and all methods of a comparison have the same."""
    # Half a second, which only groups have to wait for.
    from sklearn.model_selection import StratifiedGroupKFold

    truth, ids = (np.frombuffer(column, dtype=np.int64) for column in (labels, groups))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.zeros(len(truth), dtype=np.int64)
    with warnings.catch_warnings():
        # Of classes with fewer images than folds, which the commands' own notes name.
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(truth, truth, ids)):
            found[held_out] = fold
    return found


def deal_folds(labels: Ints, groups: Ints | None, folds: int, random: np.random.Generator) -> Ints:
    """(N,) fold of each image, groups dealt out by their commonest class: less even than :func:`split_folds`, and fast.

    For what takes hundreds of splits, or has few images.
    """
    if groups is None:
        return stratified_folds(labels, folds, random)
    first, ids = np.unique(groups, return_inverse=True)
    return stratified_folds(main_classes(labels, ids.reshape(-1), len(first)), folds, random)[ids.reshape(-1)]


def main_classes(labels: Ints, ids: Ints, number: int) -> Ints:
    """(G,) the commonest class of each group (of several the first), from (N,) numbers of groups below G."""
    pairs, images = np.unique(np.stack([ids, labels], axis=1), axis=0, return_counts=True)
    found = np.zeros(number, dtype=np.int64)
    # The last that is written stays: the one with the most images, of equals the lowest class.
    order = np.lexsort((-pairs[:, 1], images))
    found[pairs[order, 0]] = pairs[order, 1]
    return found


def sum_groups(values: Floats, groups: Ints) -> Floats:
    """(G, K) sums of (N, K) values over the images of each group that has some."""
    from scipy.sparse import csr_array

    ids = np.unique(groups, return_inverse=True)[1].reshape(-1)
    held = csr_array((np.ones(len(ids)), (ids, np.arange(len(ids)))), shape=(int(ids.max(initial=-1)) + 1, len(ids)))
    return np.asarray(held @ values, dtype=np.float64)


def check_groups(labels: Ints, groups: Ints, folds: int) -> None:
    """Refuse groups that cannot be split.

    Raises:
        LabelsError: if there are fewer groups than folds, or no class has as many images.
    """
    number, most = len(np.unique(groups)), int(np.bincount(labels).max(initial=0))
    if number < folds:
        raise LabelsError(
            f"{number} groups of images cannot be split into {folds} folds, since each stays in one; label images of"
            " more groups or ask for fewer folds"
        )
    if most < folds:
        raise LabelsError(
            f"no class has more than {most} images, so their groups cannot be split into {folds} folds; label more"
            " images or ask for fewer folds"
        )


def note_groups(val: LabelledImages, test: LabelledImages | None, folds: int, names: Sequence[str]) -> Iterator[str]:
    """Say which classes have images of too few groups to be in every fold, and which groups are on both sides.

    Args:
        val: what is chosen on, with cross-validation.
        test: what is scored on, if that is something else.
        folds: number of folds.
        names: of the C classes.
    """
    groups = groups_of(val, val.images.names)
    if groups is None:
        return
    pairs = np.unique(np.stack([val.select_labels(val.images.names), groups.ids], axis=1), axis=0)
    number = np.bincount(pairs[:, 0], minlength=len(names))
    few = [f"{name} ({n})" for name, n in zip(names, number, strict=True) if 0 < n < folds]
    if few:
        yield (
            f"images of fewer groups of {groups.column} than the {folds} folds, so not in every fold:"
            f" {first_few(few, 10)}"
        )
    if test is None:
        return
    both = {*val.groups.values()} & {*test.groups.values()}
    if both:
        yield (
            f"{len(both):,} groups of {groups.column} have images in {val.images.root} and in {test.images.root}"
            f" (first: {first_few(sorted(both))}): parameters chosen on a group that is scored flatter every method"
        )

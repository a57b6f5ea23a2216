"""Training, validation and test images of one fold (Section 3.1: five-fold cross-validation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from examples.paper.datasets import DataSet, Table

FOLDS = 5


@dataclass(frozen=True)
class Split:
    """What is trained on, what eps is chosen on, and what is scored."""

    train: Table
    validation: Table
    test: Table


def split(data: DataSet, fold: int, by: str, validation_parts: int = 8, limit: int | None = None) -> Split:
    """Fold `fold` of five is the test part, one of `validation_parts` parts of the others the validation part.

    by: 'group' keeps all images of a lesion or patient in one fold, where ids exist; 'image' is the paper's. Folds that
    the data set brings are taken. A data set with an official split has that one, as fold 0. limit: at most so many
    images of each part, for a trial: classes keep their shares.
    """
    if not data.folded:
        if fold:
            raise SystemExit(f"{data.name} has its official split: fold 0 alone")
        assert data.validation is not None
        assert data.official is not None
        parts = data.train, data.validation, data.official
    else:
        table = data.train
        numbers = table.folds[by] if by in table.folds else assign(table, FOLDS, by)
        rest = table.part(np.flatnonzero(numbers != fold))
        held = assign(rest, validation_parts, by) == 0
        parts = (
            rest.part(np.flatnonzero(~held)),
            rest.part(np.flatnonzero(held)),
            table.part(np.flatnonzero(numbers == fold)),
        )
    return Split(*(reduce(part, limit) for part in parts))


def assign(table: Table, parts: int, by: str) -> np.ndarray:
    """(N,) the part that each image falls into; classes have the same shares in each, groups stay whole."""
    numbers = np.zeros(len(table), dtype=np.int64)
    if by == "group" and table.groups:
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=0).split(
            table.labels, table.labels, table.groups
        )
    else:
        splitter = StratifiedKFold(parts, shuffle=True, random_state=0).split(table.labels, table.labels)
    for number, (_, inside) in enumerate(splitter):
        numbers[inside] = number
    return numbers


def reduce(table: Table, limit: int | None) -> Table:
    """At most `limit` images, of each class its share and at least two."""
    if limit is None or len(table) <= limit:
        return table
    kept = []
    for label in np.unique(table.labels):
        members = np.flatnonzero(table.labels == label)
        kept.extend(members[: max(2, round(limit * len(members) / len(table)))])
    return table.part(np.sort(np.array(kept)))

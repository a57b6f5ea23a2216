"""The predictions of a file as class indices and probabilities, proved to be of the classes that the counts have."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.errors import PredictionsError, first_few, printable
from imbalance_perturb.files.csv_tables import normal_path
from imbalance_perturb.predictions.reading import Record, iter_records

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The rows of a predictions file that hold a prediction, and the images of those that do not.

    ``base_preds`` and ``preds`` are (N,) class indices; ``base_probs`` and ``probs`` (N, C) probabilities, ``None``
    where the file has none.
    """

    images: tuple[str, ...]
    base_preds: IntArray
    preds: IntArray
    failed: tuple[str, ...]
    base_probs: Floats | None = None
    probs: Floats | None = None

    def select(self, chosen: Sequence[bool]) -> Predictions:
        """Select images by (N,) flags; nothing is copied where all are chosen."""
        if all(chosen):
            return self
        kept = np.array(chosen, dtype=bool)
        return replace(
            self,
            images=tuple(compress(self.images, chosen)),
            base_preds=self.base_preds[kept],
            preds=self.preds[kept],
            base_probs=None if self.base_probs is None else self.base_probs[kept],
            probs=None if self.probs is None else self.probs[kept],
        )


def load_predictions(path: str | Path, names: Sequence[str]) -> Predictions:
    """Load a predictions file (``.csv``, ``.jsonl`` or ``.parquet``).

    Args:
        path: the file.
        names: C class names in class-index order.

    Raises:
        PredictionsError: if the file cannot be read, lacks columns, is empty, has an image twice, names a class
            that is none, or has probabilities of some classes only.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(f"{path}: no such file; imbperturb predict makes it")
    reader = _Reader(path, names)
    for record in iter_records(path):
        reader.add(record)
    return reader.finish()


class _Reader:
    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names
        self._index = {name: position for position, name in enumerate(names)}
        self._columns = {kind: [f"{kind}{name}" for name in names] for kind in ("base_p_", "p_")}
        self._with_probs: bool | None = None
        self._rows: list[tuple[str, int, int]] = []
        # Eight bytes each: with thousands of classes Python's own floats would fill the memory.
        self._probs = {kind: array("d") for kind in self._columns}
        self._failed: list[str] = []
        self._unknown: dict[str, int] = {}

    def add(self, record: Record) -> None:
        if record.is_empty("image"):
            raise PredictionsError(f"{self._path}, line {record.line}: the image is empty; every row is of one image")
        image = normal_path(record.text("image"))
        if record.error is not None:
            self._failed.append(image)
            return
        if record.is_empty("base_pred") or record.is_empty("pred"):
            raise PredictionsError(
                f"{self._path}, line {record.line}: {printable(image)} has neither a prediction nor an error; predict"
                " it again"
            )
        found = [record.text("base_pred"), record.text("pred")]
        for name in found:
            if name not in self._index:
                self._unknown.setdefault(name, record.line)
        if self._unknown:
            return
        self._rows.append((image, self._index[found[0]], self._index[found[1]]))
        if self._with_probs is None:
            self._with_probs = self._find_probabilities(record)
        if not self._with_probs and any(columns[0] in record for columns in self._columns.values()):
            raise PredictionsError(
                f"{self._path}, line {record.line}: has probabilities, rows before it have none; predict all alike"
            )
        if self._with_probs:
            for kind, columns in self._columns.items():
                self._probs[kind].extend(record.probabilities(columns))

    def finish(self) -> Predictions:
        if self._unknown:
            raise PredictionsError(
                f"{self._path}, line {min(self._unknown.values())}: predicts classes that are none of the counts:"
                f" {first_few(sorted(self._unknown), 10)}; the classes are {first_few(self._names, 20)}"
            )
        images = [image for image, _, _ in self._rows]
        if not images and not self._failed:
            raise PredictionsError(f"{self._path}: holds no prediction; imbperturb predict makes one row an image")
        doubles = [image for image, count in Counter([*images, *self._failed]).items() if count > 1]
        if doubles:
            raise PredictionsError(
                f"{self._path}: {len(doubles):,} images stand more than once (first: {first_few(doubles)});"
                " every image has one row"
            )
        return Predictions(
            images=tuple(images),
            base_preds=np.array([base for _, base, _ in self._rows], dtype=np.int64),
            preds=np.array([pred for _, _, pred in self._rows], dtype=np.int64),
            failed=tuple(self._failed),
            base_probs=self._matrix("base_p_"),
            probs=self._matrix("p_"),
        )

    def _matrix(self, kind: str) -> Floats | None:
        return np.frombuffer(self._probs[kind]).reshape(-1, len(self._names)) if self._with_probs else None

    def _find_probabilities(self, row: Record) -> bool:
        wanted = [column for columns in self._columns.values() for column in columns]
        missing = [column for column in wanted if column not in row]
        if missing and len(missing) < len(wanted):
            raise PredictionsError(
                f"{self._path}: has probabilities of some classes only (not there: {first_few(missing)});"
                " expected p_<class> and base_p_<class> of all classes, or none"
            )
        return not missing

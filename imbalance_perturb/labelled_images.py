"""Images that each have a true class: what a choice or a comparison is made on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imbalance_perturb.data.image_files import ImageList, find_images
from imbalance_perturb.data.labels import check_all_labelled, load_labels


@dataclass(frozen=True)
class LabelledImages:
    """``images``, the class index of each by name, and how many labels are of images that are not there."""

    images: ImageList
    labels: dict[str, int]
    unused_labels: int

    def of(self, names: Sequence[str]) -> NDArray[np.int64]:
        """(N,) class indices of these images."""
        return np.array([self.labels[name] for name in names], dtype=np.int64)


def find_labelled_images(path: str | Path, labels: str | Path | None, classes: Sequence[str]) -> LabelledImages:
    """The images of a folder or CSV with their labels.

    Args:
        path: as for :func:`find_images`.
        labels: CSV with image,label, or a folder of class folders; by default ``path`` itself.
        classes: C class names in class-index order.

    Raises:
        ImageFolderError: if there are no images.
        LabelsError: if the labels cannot be used, or an image has none.
    """
    images = find_images(path)
    source = Path(path if labels is None else labels)
    truth = load_labels(source, classes)
    check_all_labelled(source, truth, images.names, f"images in {path}", "label them, or leave them out")
    found = {name: truth[name] for name in images.names}
    return LabelledImages(images, found, len(truth) - len(found))
